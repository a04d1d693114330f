// Web Locks for pages that have none, such as those without HTTPS: leases in storage, renewed while they are held. A part of
// fallback.js.

import { type Locks, leaseOf, STALE } from "./locks.js";
import type { Storage } from "./storage.js";

/** How often a lease is renewed, in milliseconds. Timers of hidden pages are slow: up to a minute. */
const BEAT = 10_000;
/** How long a page waits to see whether another one claims the same lane. */
const CLAIM = 500;

/** `holder` is the id of this page. */
export function createLeases(storage: Storage, holder: string): Locks {
  const write = (lane: string) => storage.set(lane, `${Date.now()} ${holder}`);
  return {
    async request(lane, { ifAvailable }, callback) {
      if (ifAvailable) {
        // A lease far in the future is from a wrong clock.
        if (Math.abs(Date.now() - leaseOf(storage, lane)[0]) <= 2 * STALE) return callback(null);
        // If several pages claim it at once, the last one to write gets it.
        write(lane);
        await new Promise((resolve) => setTimeout(resolve, CLAIM));
        if (leaseOf(storage, lane)[1] !== holder) return callback(null);
      } else write(lane);
      const beat = setInterval(() => {
        const [at, by] = leaseOf(storage, lane);
        // A page that was frozen does not renew a lease that others may have taken.
        if (by === holder && Math.abs(Date.now() - at) <= STALE) write(lane);
      }, BEAT);
      try {
        return await callback(lane);
      } finally {
        clearInterval(beat);
        if (leaseOf(storage, lane)[1] === holder) storage.set(lane);
      }
    },
  };
}
