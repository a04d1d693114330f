// What a tracker stores in the browser: texts in `localStorage`, under names with a common prefix.

/** Texts by name. Nothing throws: where storage is refused, nothing is found. */
export interface Storage {
  get(name: string): string | null;
  /** Stores a text, or removes it if none is given. Returns whether that worked. */
  set(name: string, text?: string): boolean;
  /** The names that are in use. */
  names(): string[];
}

/** Stores texts only while `allowed` returns true; reads and removes them at any time. */
export function openStorage(prefix: string, allowed: () => boolean): Storage {
  const attempt = <T>(act: () => T, otherwise: T): T => {
    try {
      return act();
    } catch {
      return otherwise;
    }
  };
  return {
    get: (name) => attempt(() => localStorage.getItem(prefix + name), null),
    set: (name, text) =>
      attempt(() => {
        if (!text) localStorage.removeItem(prefix + name);
        else if (allowed()) localStorage.setItem(prefix + name, text);
        else return false;
        return true;
      }, false),
    names: () =>
      attempt(() => Object.keys(localStorage), [])
        .filter((name) => name.startsWith(prefix))
        .map((name) => name.slice(prefix.length)),
  };
}
