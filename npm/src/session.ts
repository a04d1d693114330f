// Keeps the session for the next page of this tab, where the browser lets us. While a page lives, the core
// remembers it.

const NAME = "tallymark";

/** The session kept: its id, and when its last event happened. */
export function keptSession(): [id: string, activeAt: number] {
  try {
    const [id = "", activeAt] = (sessionStorage.getItem(NAME) || "").split(" ");
    return [id, Number(activeAt)];
  } catch {
    return ["", 0];
  }
}

export function keepSession(id: string, activeAt: number): void {
  try {
    sessionStorage.setItem(NAME, id + " " + activeAt);
  } catch {
    // Storage is full or forbidden: the next page starts a session of its own.
  }
}
