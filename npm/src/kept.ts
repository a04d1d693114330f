// What a site keeps in the browser: texts in `localStorage`, under names that begin as it says.

/** Texts by name. Nothing throws: where nothing may be kept, nothing is found. */
export interface Kept {
  get(name: string): string | null;
  /** Keeps a text, or forgets it if there is none. Says whether that worked. */
  set(name: string, text?: string): boolean;
  /** The names there are. */
  names(): string[];
}

/** Keeps texts only while `may` allows; finds and forgets them at any time. */
export function keep(prefix: string, may: () => boolean): Kept {
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
        else if (may()) localStorage.setItem(prefix + name, text);
        else return false;
        return true;
      }, false),
    names: () =>
      attempt(() => Object.keys(localStorage), [])
        .filter((name) => name.startsWith(prefix))
        .map((name) => name.slice(prefix.length)),
  };
}
