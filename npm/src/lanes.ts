// Lanes: each page writes its batches in a lane of its own, which no other page touches while this one lives. Pages
// adopt the lanes of pages that are gone.

import type { Source } from "./core.js";
import { timeOf, uuid } from "./event.js";
import { type Locks, leaseOf, STALE } from "./locks.js";
import type { Storage } from "./storage.js";

/** A page requests its lane's lock when the lane begins. A lane younger than this may not have it yet. In milliseconds. */
const YOUNG = 10_000;
export interface Lanes {
  /** The lane to write in. It begins when it is first needed. */
  current(): string;
  /** Whether other pages may have adopted the lanes, because this one was frozen for long and there are no Web Locks. */
  lost(): boolean;
  /** Adopts the lanes of pages that are gone: now, and once more when young lanes are old enough. */
  adopt(first?: boolean): void;
  /** Releases all lanes when they are empty: browsers do not put a page that holds a lock into the back/forward cache. */
  release(): void;
  /** Releases all lanes with what is in them and adopts no more: the page may be frozen or end. */
  leave(): void;
}

/** `onAdopt` gets the name of each adopted lane. The names of locks begin with `prefix`. */
export function createLanes(storage: Storage, prefix: string, source: Source, onAdopt: (lane: string) => void): Lanes {
  const webLocks = navigator.locks as Locks | undefined;
  const holder = uuid(Date.now());
  let own = "";
  let held: string[] = [];
  let releases: (() => void)[] = [];
  /** Changes when the page leaves its lanes. What began before then no longer applies. */
  let epoch = {};
  let timer: ReturnType<typeof setTimeout>;

  const hold = (lane: string) => {
    held.push(lane);
    return new Promise<void>((resolve) => releases.push(resolve));
  };
  const request = async (lane: string, ifAvailable: boolean, callback: (lock: unknown) => unknown) => {
    try {
      if (webLocks) await webLocks.request(prefix + lane, { ifAvailable }, callback);
      // Pages without HTTPS have no Web Locks.
      else await (await source.script()).createLeases(storage, holder).request(lane, { ifAvailable }, callback);
    } catch {
      // Locks can be refused.
    }
  };

  const self: Lanes = {
    current() {
      if (!own) {
        const lane = uuid(Date.now());
        own = lane;
        // Later, because the request takes longer than the rest of the call.
        queueMicrotask(() => request(lane, false, () => own === lane && hold(lane)));
      }
      return own;
    },
    lost: () =>
      !webLocks &&
      [own, ...held].some((lane) => {
        const [at, by = holder] = leaseOf(storage, lane);
        return by !== holder || Math.abs(Date.now() - at) > STALE;
      }),
    adopt(first = true) {
      const began = epoch;
      let again = false;
      const lanes = storage.names().filter((name) => name[36] === "/");
      for (const lane of new Set(lanes.map((name) => name.slice(0, 36)))) {
        if (lane === own || held.includes(lane)) continue;
        const young = Math.abs(Date.now() - timeOf(lane)) < YOUNG;
        again ||= first || young;
        if (young) continue;
        request(lane, true, (lock) => {
          if (!lock || began !== epoch) return;
          onAdopt(lane);
          return hold(lane);
        });
      }
      clearTimeout(timer);
      if (again) timer = setTimeout(() => self.adopt(false), YOUNG);
    },
    release() {
      for (const resolve of releases) resolve();
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
