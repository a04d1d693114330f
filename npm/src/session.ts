// Visits: events less than half an hour apart share a session id, in all tabs of a site.

import { ID_LENGTH, uuid } from "./event.js";
import type { Storage } from "./storage.js";

/** How long a session lasts after its last event, and how precisely that time is stored; in milliseconds. */
const IDLE = 30 * 60_000;
const PRECISION = 10_000;

/** Returns the session for an event at the given time, and keeps it alive. */
export type Session = (now: number) => string;

export function createSession(storage: Storage): Session {
  let id = "";
  let activeAt = 0;
  let written = 0;
  return (now) => {
    // Another tab may have continued the session, or begun another.
    const [storedId, storedAt] = (storage.get("session") || "").split(" ");
    if (+storedAt > activeAt && storedId.length === ID_LENGTH) [id, activeAt] = [storedId, +storedAt];
    // The absolute difference: a clock that was far ahead must not keep a session alive.
    if (!id || Math.abs(now - activeAt) > IDLE) [id, written] = [uuid(now), 0];
    activeAt = now;
    if (Math.abs(now - written) > PRECISION && storage.set("session", `${id} ${now}`)) written = now;
    return id;
  };
}
