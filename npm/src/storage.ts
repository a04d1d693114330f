// What a tracker stores in the browser: texts in `localStorage`, under names with a common prefix.

/** Texts by name. Nothing throws: where storage is refused, nothing is found. */
export interface Storage {
  get(name: string): string | null;
  /** Stores a text, or removes it if none is given. Returns whether that worked. */
  set(name: string, text?: string): boolean;
  /** The names that are in use. */
  names(): string[];
  /** Makes room for a batch: drops the oldest batches of all trackers of the origin above the cap. */
  makeRoom(): void;
}

/** What all trackers of an origin store together, in characters. The rest of the quota is for the application. */
const CAP = 256 * 1024;
/** What a batch may need, and what must be left for the application when one begins; in characters. */
export const BATCH = 32 * 1024;
/** The name of a batch of any tracker. It ends with its id, which sorts by time. */
const BATCH_NAME = /^tallymark\/.*#.{36}\//;

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
    makeRoom: () =>
      attempt(() => {
        // Other pages grow meanwhile.
        let room = CAP - 2 * BATCH;
        const id = (name: string) => name.slice(name.lastIndexOf("/"));
        const names = Object.keys(localStorage).filter((name) => BATCH_NAME.test(name));
        for (const name of names.sort((one, other) => (id(one) < id(other) ? 1 : -1))) {
          const text = localStorage.getItem(name)!;
          room -= name.length + text.length;
          if (room > 0) continue;
          // Its number of events stays behind, below zero, so that they are counted if the page that made it ends without sending it.
          const events = text.split("\n{").length - 1;
          if (events) localStorage.setItem(name, String(-events));
        }
      }, undefined),
  };
}
