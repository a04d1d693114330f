// Lanes: each page writes its batches in a lane of its own, which no other page touches while this one lives. Pages
// adopt the lanes of pages that are gone.

import { timeOf, uuid } from "./event.js";
import type { Storage } from "./storage.js";

/** A page requests its lane's lock when the lane begins. A lane younger than this may not have it yet. In milliseconds. */
const YOUNG = 10_000;
/** Without Web Locks: how often a page renews its lease, and how long that is valid. Timers of hidden pages are slow. */
const BEAT = 10_000;
const LEASE = 180_000;
/** Without Web Locks: how long a page waits to see whether another one claims the same lane. */
const CLAIM = 500;

export interface Lanes {
  /** The lane to write in. It begins when it is first needed. */
  current(): string;
  /** Adopts the lanes of pages that are gone: now, and once more when young lanes are old enough. */
  adopt(first?: boolean): void;
  /** Releases all lanes when they are empty: browsers do not put a page that holds a lock into the back/forward cache. */
  release(): void;
  /** Releases all lanes with what is in them and adopts no more: the page may be frozen or end. */
  leave(): void;
}

/** `onAdopt` gets the name of each adopted lane. The names of locks begin with `prefix`. */
export function createLanes(storage: Storage, prefix: string, onAdopt: (lane: string) => void): Lanes {
  const locks = globalThis.navigator?.locks;
  let own = "";
  let held: string[] = [];
  let releases: (() => void)[] = [];
  /** Changes when the page leaves its lanes. What began before then no longer applies. */
  let epoch = {};
  let timer: ReturnType<typeof setTimeout>;
  let beat: ReturnType<typeof setInterval>;

  const hold = (lane: string) => {
    held.push(lane);
    return new Promise<void>((resolve) => releases.push(resolve));
  };
  const renew = () => {
    for (const lane of held) storage.set(lane, String(Date.now()));
  };

  const self: Lanes = {
    current() {
      if (!own) {
        own = uuid(Date.now());
        const lane = own;
        if (locks) {
          // In a microtask, because the request takes longer than the rest of the call.
          queueMicrotask(() => {
            locks.request(prefix + lane, () => (own === lane ? hold(lane) : undefined)).catch(() => {});
          });
        } else {
          hold(lane);
          renew();
          clearInterval(beat);
          beat = setInterval(renew, BEAT);
        }
      }
      return own;
    },
    adopt(first = true) {
      const began = epoch;
      let again = false;
      const lanes = storage.names().filter((name) => name[36] === "/");
      for (const lane of new Set(lanes.map((name) => name.slice(0, 36)))) {
        if (held.includes(lane)) continue;
        const young = Math.abs(Date.now() - timeOf(lane)) < YOUNG;
        again ||= first || young;
        if (young) continue;
        if (locks) {
          locks
            .request(prefix + lane, { ifAvailable: true }, (lock) => {
              if (!lock || began !== epoch) return;
              onAdopt(lane);
              return hold(lane);
            })
            .catch(() => {});
        } else if (Math.abs(Date.now() - Number(storage.get(lane) || timeOf(lane))) > LEASE) {
          // If several pages claim it at once, the last one to write gets it.
          const claim = String(Date.now() + Math.random());
          storage.set(lane, claim);
          setTimeout(() => {
            if (began !== epoch || storage.get(lane) !== claim) return;
            onAdopt(lane);
            hold(lane);
          }, CLAIM);
        }
      }
      clearTimeout(timer);
      if (again) timer = setTimeout(() => self.adopt(false), YOUNG);
    },
    release() {
      clearInterval(beat);
      for (const resolve of releases) resolve();
      if (!locks) for (const lane of held) storage.set(lane);
      own = "";
      held = [];
      releases = [];
    },
    leave() {
      epoch = {};
      clearTimeout(timer);
      self.release();
    },
  };
  return self;
}
