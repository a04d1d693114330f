// Visits: events that follow one another within half an hour share a session id, in all of a site's tabs.

import { uuid } from "./event.js";
import type { Kept } from "./kept.js";

/** How long a session outlives its last event, and how exactly that is kept; in milliseconds. */
const IDLE = 30 * 60_000;
const EXACT = 10_000;

/** Gives the session for an event at this time, and keeps it alive. */
export function sessions(kept: Kept): (now: number) => string {
  let id = "";
  let activeAt = 0;
  let written = 0;
  return (now) => {
    // Another tab may have gone on with it, or begun another.
    const [keptId, keptAt] = (kept.get("session") || "").split(" ");
    if (+keptAt > activeAt) [id, activeAt] = [keptId, +keptAt];
    // Not even a clock that was far ahead keeps it for ever.
    if (!id || Math.abs(now - activeAt) > IDLE) [id, written] = [uuid(now), 0];
    activeAt = now;
    if (Math.abs(now - written) > EXACT && kept.set("session", id + " " + now)) written = now;
    return id;
  };
}
