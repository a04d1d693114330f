// Lanes: each page writes its batches in a lane of its own, which nobody else touches while the page lives. Whoever
// starts takes over the lanes of pages that are gone.

import { timeOf, uuid } from "./event.js";
import type { Kept } from "./kept.js";

/** A page asks for its lane's lock when it begins. A lane younger than this may not have it yet; in milliseconds. */
const YOUNG = 10_000;
/** Without Web Locks: how often a page says that it is there, and how long that holds. Hidden pages are slow. */
const BEAT = 10_000;
const LEASE = 180_000;

export interface Lanes {
  /** The lane to write in. It is begun when it is first needed. */
  name(): string;
  /** Takes over what others have left: now, and once more when young lanes have grown up and pages that were just left are gone. */
  adopt(first?: boolean): void;
  /** Lets go of all lanes, for there is nothing in them. A browser does not keep a page for later that holds a lock. */
  rest(): void;
  /** Lets go of all lanes with what is in them, and takes over no more: the page may sleep for long, or be gone. */
  leave(): void;
}

/** `take` is called with the name of each lane that is taken over. Names of locks begin with `prefix`. */
export function lanes(kept: Kept, prefix: string, take: (lane: string) => void): Lanes {
  const locks = globalThis.navigator?.locks;
  let own = "";
  let held: string[] = [];
  let letGo: (() => void)[] = [];
  let visit = {};
  let timer: ReturnType<typeof setTimeout>;
  let beat: ReturnType<typeof setInterval>;

  const hold = (lane: string) => {
    held.push(lane);
    return new Promise<void>((resolve) => letGo.push(resolve));
  };
  const say = () => held.forEach((lane) => kept.set(lane, String(Date.now())));

  const self: Lanes = {
    name() {
      if (!own) {
        const lane = (own = uuid(Date.now()));
        // Asked for in a moment: it takes longer than all else that a call does.
        const ask = () => locks!.request(prefix + lane, () => (own === lane ? hold(lane) : undefined)).catch(() => {});
        if (locks) queueMicrotask(ask);
        else {
          hold(lane);
          say();
          clearInterval(beat);
          beat = setInterval(say, BEAT);
        }
      }
      return own;
    },
    adopt(first = true) {
      const mine = visit;
      let again = false;
      for (const lane of new Set(kept.names().filter((name) => name[36] === "/").map((name) => name.slice(0, 36)))) {
        if (held.includes(lane)) continue;
        const young = Math.abs(Date.now() - timeOf(lane)) < YOUNG;
        again ||= first || young;
        if (young) continue;
        if (locks) {
          locks
            .request(prefix + lane, { ifAvailable: true }, (lock) => {
              if (!lock || mine !== visit) return;
              take(lane);
              return hold(lane);
            })
            .catch(() => {});
        } else if (Date.now() - Number(kept.get(lane) || timeOf(lane)) > LEASE) {
          // Of those who come at once, the last to write has it.
          const claim = String(Date.now() + Math.random());
          kept.set(lane, claim);
          setTimeout(() => {
            if (mine !== visit || kept.get(lane) !== claim) return;
            take(lane);
            hold(lane);
          }, 500);
        }
      }
      clearTimeout(timer);
      if (again) timer = setTimeout(() => self.adopt(false), YOUNG);
    },
    rest() {
      clearInterval(beat);
      for (const resolve of letGo) resolve();
      if (!locks) for (const lane of held) kept.set(lane);
      own = "";
      held = [];
      letGo = [];
    },
    leave() {
      visit = {};
      clearTimeout(timer);
      self.rest();
    },
  };
  return self;
}
