// One tracker: takes down what happens in the page, keeps it, and does what the core says.

import { REASONS, batches } from "./batches.js";
import { watchClicks } from "./clicks.js";
import { type Core, type Source, load } from "./core.js";
import { bytes, cut, encode, uuid } from "./event.js";
import type { Consent, Options, Status, TrackedEvent, Tracker } from "./index.js";
import { keep } from "./kept.js";
import { lanes } from "./lanes.js";
import { watchPages } from "./pages.js";
import { sessions } from "./session.js";
import { type Post, transport } from "./transport.js";

/** How many events are held in memory until they may be stored; beyond that the oldest goes. */
const HELD = 1000;
/** So many requests in a row without any answer mean that something blocks them, and for how long that is believed. */
const BLOCKED = 8;
const BLOCKED_MS = 5 * 60_000;

/** The places of `REASONS` that are given here. */
const enum Reason {
  QueueFull = 0,
  Storage = 4,
  Invalid = 5,
}

/** How many figures the core has before those dropped by reason: the status that has stopped it, delivered, rejected. */
const FIGURES = 3;

/** A call made before the script was there: the method's name, when, and its arguments. */
export type Early = [method: string, at: number, ...args: unknown[]];

/** Starts a tracker; `early` are calls to make up for, each at its own time. Never throws. */
export function start(options: Options, source: Source, early: Early[] = []): Tracker {
  const server = typeof document === "undefined";
  const { sampleRate = 1, beforeSend } = options;
  const prefix = `tallymark/${options.username}/`;
  const choice = keep(prefix, () => true);
  const kept = keep(prefix, () => consent === "granted" && !off());
  let session = sessions(kept);
  const queue = batches(kept, () => lane.name());

  let consent: Consent = options.consent || "granted";
  let out = false;
  let visitor: string | undefined;
  let user: string | undefined;
  /** Whether the page has been shown; one that is rendered in advance may never be. */
  let shown = false;
  /** Whether events may be kept and sent. Until then they are held. */
  let live = false;
  let held: [now: number, json: string][] = [];
  let core: Core | undefined;
  let failed: Status["failed"] = null;
  let post: Post;
  let made = 0;
  let adopted = 0;
  /** Events dropped by reason, until the core is told. */
  let lost: number[] = [];
  let settled: number[] = [];
  let unanswered = 0;
  let hurry = true;
  let soon = false;
  let timer: ReturnType<typeof setTimeout>;
  let referrer: string;
  let replayed = 0;

  const warn = (problem: unknown) => {
    if (options.debug) console.warn("tallymark:", problem);
  };
  const off = (): Status["off"] => {
    const { globalPrivacyControl, doNotTrack } = navigator as { globalPrivacyControl?: boolean; doNotTrack?: string };
    // Another tab may have said so.
    if (out || choice.get("out")) return "opted_out";
    if (options.gpc !== false && globalPrivacyControl) return "gpc";
    if (options.dnt && doNotTrack === "1") return "dnt";
    return consent === "denied" ? "denied" : null;
  };
  const stop = (why: Status["failed"], error: unknown) => {
    failed = why;
    core = undefined;
    clearTimeout(timer);
    warn(error);
  };
  /** Whether there is a core to do it. Whatever that throws is a crash, and a crashed core is not to be used again. */
  const use = (act: (core: Core) => void) => {
    try {
      if (core) act(core);
    } catch (error) {
      stop("crash", error);
    }
    return !!core;
  };
  const lose = (reason: number, events = 1) => {
    if (!use((core) => core.lose(reason, events))) lost[reason] = (lost[reason] || 0) + events;
  };

  /** Takes down an event, in its final form and with its time. */
  const count = (event_type: TrackedEvent["event_type"], fields: () => Partial<TrackedEvent>) => {
    if (server || failed === "options" || off()) return;
    const now = replayed || Date.now();
    try {
      const session_id = session(now);
      // The same for the whole of a visit.
      if (parseInt(session_id.slice(-8), 16) / 2 ** 32 >= sampleRate) return;
      if (options.anonymousId && !visitor) kept.set("visitor", (visitor = kept.get("visitor") || uuid(now)));
      const weight = sampleRate < 1 ? Math.round(1 / sampleRate) : undefined;
      let event: ReturnType<NonNullable<Options["beforeSend"]>> = {
        event_id: uuid(now),
        event_type,
        occurred_at: now,
        session_id,
        anonymous_id: visitor,
        user_id: user,
        weight,
        ...fields(),
      };
      if (beforeSend) event = beforeSend(event as TrackedEvent);
      if (event) add(now, encode(event));
    } catch (problem) {
      made++;
      lose(Reason.Invalid);
      warn(problem);
    }
  };
  const add = (now: number, json: string) => {
    made++;
    queue.event = json;
    if (!live) {
      if (held.push([now, json]) > HELD && held.shift()) lose(Reason.QueueFull);
      return;
    }
    if (core) use((core) => core.push(now, bytes(json)));
    else if (!queue.addEarly(now)) lose(Reason.QueueFull);
    // Writing and sending take longer than all the rest. Before the page can go, they are done all the same.
    if (!soon) queueMicrotask(pump);
    soon = true;
  };

  /** Does what the core says until there is nothing to do. */
  const pump = () => {
    soon = false;
    use((core) => {
      clearTimeout(timer);
      if (hurry) core.flush();
      hurry = false;
      // The `online` event goes on with this.
      if (navigator.onLine === false) return;
      const now = Date.now();
      let then = now + blockedFor(now);
      while (then <= now && (then = core.poll(now)) < 0) send(-then);
      if (then < Infinity) timer = setTimeout(pump, then - now);
    });
    queue.save();
  };
  /** For how long it is no use to send. */
  const blockedFor = (now: number) => {
    const rest = Number(kept.get("blocked")) - now;
    return rest > 0 && rest <= BLOCKED_MS ? rest : 0;
  };
  const send = (batch: number) => {
    const sender = core;
    queue.save();
    post(queue.body(batch)).then(({ status, retryAfter = NaN, accepted = 0, rejected = 0, retry = [] }) => {
      // The page was left since, and the batch is somebody else's.
      if (core !== sender) return;
      unanswered = status < 0 && !document.hidden ? unanswered + 1 : 0;
      if (unanswered >= BLOCKED) kept.set("blocked", String(Date.now() + BLOCKED_MS));
      else if (status >= 0) kept.set("blocked");
      queue.asked = retry;
      use((core) => core.answer(Date.now(), batch, Math.max(status, 0), retryAfter, accepted, rejected, retry.length));
      pump();
      if (!queue.all.size) lane.rest();
    });
  };

  const take = (batches: Iterable<number>) =>
    use((core) => {
      for (const batch of batches) core.adopt(batch, queue.madeAt(batch), queue.all.get(batch)!.events, queue.size(batch));
    });
  const lane = lanes(kept, prefix, (name) => {
    const [found, corrupt] = queue.adopt(name);
    for (const batch of found) adopted += queue.all.get(batch)!.events;
    adopted += corrupt;
    if (corrupt) lose(Reason.Storage, corrupt);
    take(found);
    pump();
  });
  const inBatches = () => {
    let events = 0;
    for (const batch of queue.all.values()) events += batch.events;
    return events;
  };
  /** Goes on with what there is: at the start, after consent, and when the page comes back. */
  const open = () => {
    if (live || !shown || consent !== "granted" || off()) return;
    live = true;
    made -= held.length;
    if (visitor) kept.set("visitor", visitor);
    for (const event of held.splice(0)) {
      session(event[0]);
      add(...event);
    }
    load(source, queue).then(
      (loaded) => {
        if (!live || core) return;
        core = loaded;
        queue.early = 0;
        take(queue.all.keys());
        lost.splice(0).forEach((events, reason) => lose(reason, events));
        lane.adopt();
        pump();
      },
      (error) => stop("load", error),
    );
  };
  /** Lets go of all that is stored: the page may sleep for long, or be gone. What it still tells is stored all the same. */
  const close = () => {
    core = undefined;
    clearTimeout(timer);
    lane.leave();
    queue.leave();
    // What could not be stored stays.
    made = inBatches();
    adopted = 0;
    settled = [];
    lost = [];
  };
  /** Forgets all that was kept, but not that the visitor has opted out. */
  const erase = () => {
    close();
    live = false;
    held = [];
    queue.all.clear();
    made = 0;
    visitor = undefined;
    session = sessions(kept);
    for (const name of choice.names()) if (name !== "out") choice.set(name);
  };

  const tracker: Tracker = {
    pageView: (view = {}) =>
      count("page_view", () => {
        const url = new URL(text(view.url ?? location.href), location.href).href;
        const referral = text(view.referralUrl ?? referrer);
        referrer = url;
        return {
          url: cut("url", url),
          referral_url: cut("referral_url", referral) || undefined,
          title: cut("title", text(view.title ?? document.title)) || undefined,
          properties: view.properties,
        };
      }),
    click: (buttonId, properties?) => count("button_click", () => ({ button_id: text(buttonId), properties })),
    track: (name, properties?) => count("custom", () => ({ name: text(name), properties })),
    identify(userId) {
      user = userId || undefined;
    },
    setConsent(given) {
      consent = given;
      if (given === "denied") erase();
      else if (given !== "granted" && live) {
        close();
        live = false;
      }
      open();
    },
    optOut() {
      erase();
      out = true;
      choice.set("out", "1");
    },
    optIn() {
      choice.set("out");
      out = false;
      open();
    },
    flush() {
      hurry = true;
      pump();
    },
    status() {
      use((core) => {
        settled = Array.from({ length: FIGURES + REASONS.length }, (_, place) => core.figure(place));
      });
      const [stopped = 0, delivered = 0, rejected = 0, ...drops] = settled;
      const dropped: Record<string, number> = {};
      REASONS.forEach((reason, place) => {
        const events = (drops[place] || 0) + (lost[place] || 0);
        if (events) dropped[reason] = events;
      });
      const queued = held.length + inBatches();
      let paused: Status["paused"] = ({ 401: "unauthorized", 403: "forbidden" } as const)[stopped] || null;
      if (blockedFor(Date.now())) paused = "blocked";
      if (!server && navigator.onLine === false) paused = "offline";
      return { made, adopted, delivered, rejected, dropped, queued, paused, off: server ? null : off(), ready: !!core, failed };
    },
  };
  if (server) return tracker;

  try {
    post = transport(options.endpoint, options.username, options.key);
    referrer = document.referrer;
  } catch (error) {
    options = { ...options, debug: true };
    stop("options", error);
    return tracker;
  }

  const replay = (...calls: Early[]) => {
    for (const [method, at, ...args] of calls) {
      replayed = at;
      (tracker as unknown as Record<string, Function>)[method]?.(...args);
      replayed = 0;
    }
    return 0;
  };
  replay(...early);
  early.push = replay;

  const begin = () => {
    shown = true;
    open();
    if (options.pageViews !== false) watchPages(tracker.pageView, options);
  };
  if (options.trackClicks !== false) watchClicks(tracker.click, warn);
  document.addEventListener("visibilitychange", () => document.hidden && tracker.flush());
  addEventListener("pagehide", () => {
    tracker.flush();
    if (live) close();
  });
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    live = false;
    open();
  });
  addEventListener("online", () => {
    kept.set("blocked");
    use((core) => core.resume());
    pump();
  });
  if ((document as { prerendering?: boolean }).prerendering) document.addEventListener("prerenderingchange", begin, { once: true });
  else begin();
  return tracker;
}

function text(value: unknown): string {
  if (typeof value !== "string") throw "a string is needed, not " + typeof value;
  return value;
}
