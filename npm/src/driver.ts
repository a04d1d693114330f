// Drives the core: hands it the events, stores and sends what it decides, and reports the answers to it.

import { createBatches } from "./batches.js";
import type { Report } from "./console.js";
import { type Core, loadCore, type Source } from "./core.js";
import { fromDocument, outsideZones } from "./dom.js";
import { createLanes } from "./lanes.js";
import type { CheckedOptions } from "./options.js";
import { BOT, newCounts, QUEUE_FULL, readCore, STORAGE, statusOf } from "./status.js";
import type { Storage } from "./storage.js";
import { type Post, REDIRECT } from "./transport.js";
import type { Status } from "./types.js";

/** After so many requests in a row without an answer, something blocks them; in milliseconds, how long that is assumed. */
const BLOCKED = 8;
const BLOCKED_MS = 5 * 60_000;
/** How often to try while the browser says that it is offline, in milliseconds. */
const OFFLINE_MS = 60_000;

export interface Driver {
  /** Starts to store and send. Returns whether that is new. */
  open(): boolean;
  /** Whether events may be added. */
  isOpen(): boolean;
  /** Queues an event. */
  add(now: number, event: string): void;
  /** Counts an event that is not queued, with its place in `REASONS`, or `BOT`. */
  refuse(reason: number): void;
  /** Sends what is queued, without waiting for more. */
  flush(): void;
  /** Ends all waits: the network is back. */
  resume(): void;
  /** Releases everything stored, because the page may be frozen or end. Events that follow are stored all the same. */
  suspend(): void;
  /** Stops until `open`. */
  stop(): void;
  /** Releases everything stored and stops. */
  close(): void;
  /** Also forgets what is in memory. */
  clear(): void;
  status(held: number): Status;
}

/** `prefix` is for the names of locks. */
export function createDriver(
  { endpoint, username, debug }: CheckedOptions,
  storage: Storage,
  prefix: string,
  source: Source,
  post: Post,
  report: Report,
): Driver {
  const batches = createBatches(storage, () => lanes.current());
  let counts = newCounts();
  let core: Core | undefined;
  let failed: Status["failed"] = null;
  let open = false;
  let flushRequested = true;
  let pumpScheduled = false;
  let unanswered = 0;
  /** The status of the last answer. */
  let answered = 200;
  /** The browser says that it is offline, but the collector has answered. */
  let wronglyOffline = false;
  /** When to send the next time although the browser is offline. */
  let offlineUntil = 0;
  let timer: ReturnType<typeof setTimeout>;

  const fail = (why: "load" | "crash", error: unknown) => {
    failed = why;
    core = undefined;
    clearTimeout(timer);
    report(why, error);
  };
  /** Calls the core, if there is one, and returns whether there still is. A core that throws is not used again. */
  const use = (act: (core: Core) => void) => {
    try {
      if (core) act(core);
    } catch (error) {
      fail("crash", error);
    }
    return !!core;
  };
  const drop = (reason: number, events: number) => {
    if (reason === BOT || !use((core) => core.lose(reason, events)))
      counts.dropped[reason] = (counts.dropped[reason] || 0) + events;
  };
  const batched = () => {
    let events = 0;
    for (const batch of batches.all.values()) events += batch.events;
    return events;
  };
  const offline = () => navigator.onLine === false && !wronglyOffline;
  /** For how long requests are considered blocked. Pages share this. */
  const blockedFor = (now: number) => {
    const rest = Number(storage.get("blocked")) - now;
    return rest > 0 && rest <= BLOCKED_MS ? rest : 0;
  };

  /** Does what the core asks for until it asks to wait. */
  const pump = () =>
    outsideZones(() => {
      pumpScheduled = false;
      leaveLost();
      use((core) => {
        clearTimeout(timer);
        if (flushRequested) core.flush();
        flushRequested = false;
        const wall = Date.now();
        let wait = blockedFor(wall);
        if (offline() && batches.all.size) {
          // Browsers are wrong about this at times.
          if (wall < offlineUntil) wait = Math.min(offlineUntil - wall, OFFLINE_MS);
          else offlineUntil = wall + OFFLINE_MS;
        }
        const now = core.now();
        let then = now + wait;
        while (then <= now) {
          then = core.poll(now);
          if (then < 0) send(-then);
        }
        if (then < Infinity) timer = setTimeout(pump, then - now);
      });
      batches.save();
    });
  const send = (batch: number) => {
    const sender = core;
    batches.save();
    post(batches.body(batch)).then(({ status, response, retryAfter = NaN, accepted = 0, rejected = 0, retry = [] }) => {
      // The page was left in the meantime, and another one may have adopted the batch.
      if (core !== sender) return;
      if (debug && status !== answered && status !== 200) report("answer", status, username, endpoint, response);
      answered = status;
      wronglyOffline = status >= 0;
      unanswered = status < 0 && !fromDocument("hidden") && !offline() ? unanswered + 1 : 0;
      if (unanswered >= BLOCKED) storage.set("blocked", String(Date.now() + BLOCKED_MS));
      else if (status >= 0) storage.set("blocked");
      use((core) => core.answer(core.now(), batch, Math.max(status, 0), retryAfter, accepted, rejected, retry));
      pump();
      if (!batches.all.size) lanes.release();
    });
  };

  /** Hands batches over to the core. */
  const handOver = (numbers: Iterable<number>) =>
    use((core) => {
      core.now();
      for (const batch of numbers)
        core.adopt(batch, batches.madeAt(batch), batches.all.get(batch)!.events, batches.size(batch));
    });
  const lanes = createLanes(storage, prefix, source, (lane) => {
    const [found, corrupt, dropped] = batches.adopt(lane);
    for (const batch of found) counts.adopted += batches.all.get(batch)!.events;
    counts.adopted += corrupt + dropped;
    if (corrupt) drop(STORAGE, corrupt);
    if (dropped) drop(QUEUE_FULL, dropped);
    handOver(found);
    pump();
  });

  /** Without Web Locks, other pages adopt the lanes of a page that was frozen for long. It begins a new one. */
  const leaveLost = () => {
    if (!lanes.lost()) return;
    self.close();
    self.open();
  };

  const self: Driver = {
    open() {
      if (open) return false;
      open = true;
      loadCore(source, batches).then(
        (loaded) => {
          if (!open || core) return;
          core = loaded;
          batches.endEarly();
          handOver(batches.all.keys());
          counts.dropped.splice(0).forEach((events, reason) => drop(reason, events));
          lanes.adopt();
          pump();
        },
        (error) => fail("load", error),
      );
      return true;
    },
    isOpen: () => open,
    add(now, event) {
      leaveLost();
      counts.made++;
      if (core) use((core) => core.push(now, event));
      else if (!batches.addEarly(now, event)) drop(QUEUE_FULL, 1);
      // Writing and sending are slow, so they wait for the end of the task. The page cannot end before that.
      if (!pumpScheduled) queueMicrotask(pump);
      pumpScheduled = true;
    },
    refuse(reason) {
      counts.made++;
      drop(reason, 1);
    },
    flush() {
      flushRequested = true;
      pump();
    },
    resume() {
      storage.set("blocked");
      use((core) => core.resume());
      pump();
    },
    suspend() {
      core = undefined;
      clearTimeout(timer);
      lanes.leave();
      batches.leave();
      // What could not be stored stays.
      counts = newCounts(batched());
    },
    stop() {
      open = false;
    },
    close() {
      self.suspend();
      open = false;
    },
    clear() {
      self.close();
      batches.all.clear();
      counts = newCounts();
    },
    status(held) {
      use((core) => readCore(counts, core));
      const status = statusOf(counts, held, batched());
      if (answered === REDIRECT) status.paused = "redirected";
      if (blockedFor(Date.now())) status.paused = "blocked";
      if (offline()) status.paused = "offline";
      return { ...status, ready: !!core, failed };
    },
  };
  return self;
}
