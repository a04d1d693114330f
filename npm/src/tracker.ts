// One tracker: takes down what happens in the page, and does what the core says.

import { Core, load } from "./core.js";
import type { Options, Status, Tracker } from "./index.js";
import { watchClicks } from "./page.js";
import { keepSession, keptSession } from "./session.js";
import { type Post, transport } from "./transport.js";

/** How many events wait for the core at most; beyond that the oldest goes. */
const HELD = 1000;
/** More characters than any text may have. The core knows the limits; this keeps its memory small. */
const LONGEST = 40_000;

const enum Kind {
  PageView,
  Click,
  Custom,
}

/** The places of the core's texts and figures, as its documentation lists them. */
const enum Place {
  Session = 0,
  Body = 1,
  Paused = 1,
  Problem = 2,
  Delivered = 2,
  Rejected = 3,
  Queued = 4,
  Dropped = 5,
}

/** What `Core.push` takes after kind and time; an empty text is none. */
type Fields = [key: string, referralUrl: string, title: string, properties: string];
type Held = [kind: Kind, at: number, ...fields: Fields];

/** A call made before the script was there: the method's name, when, and its arguments. */
export type Early = [method: string, at: number, ...args: unknown[]];

/** Starts a tracker; `early` are calls to make up for, each at its own time. Never throws. */
export function start(options: Options, wasm: URL, early: Early[] = []): Tracker {
  const server = typeof document === "undefined";
  const lost: Record<string, number> = {};
  let made = 0;
  let held: Held[] = [];
  let core: Core | undefined;
  let post: Post;
  let settled = figures();
  let failed: Status["failed"] = null;
  let hurry = false;
  let timer: ReturnType<typeof setTimeout>;
  let referrer: string;
  let replayed = 0;

  const warn = (problem: unknown) => {
    if (options.debug) console.warn("tallymark:", problem);
  };
  const lose = (reason: string) => {
    lost[reason] = (lost[reason] || 0) + 1;
  };
  const refuse = (problem: unknown) => {
    lose("invalid");
    warn(problem);
  };
  const stop = (why: Status["failed"], error: unknown) => {
    failed = why;
    core = undefined;
    held = [];
    clearTimeout(timer);
    warn(error);
  };
  /** Whatever the core throws is a crash, and a crashed core is not to be used again. */
  const use = (act: (core: Core) => void) => {
    try {
      if (core) act(core);
    } catch (error) {
      stop("crash", error);
    }
  };

  /** Takes down an event, in its final form and with its time. */
  const make = (kind: Kind, fields: () => Fields) => {
    if (server) return;
    made++;
    try {
      const event: Held = [kind, replayed || Date.now(), ...fields()];
      if (failed) return;
      held.push(event);
      if (held.length > HELD) {
        held.shift();
        lose("queue_full");
      }
      pump();
    } catch (error) {
      refuse(error);
    }
  };

  /** Feeds the core what has been held, and does what it says until there is nothing to do. */
  const pump = () =>
    use((core) => {
      if (held.length) {
        for (const event of held.splice(0)) core.push(...event) || refuse(core.text(Place.Problem));
        keepSession(core.text(Place.Session), core.figure(Place.Session));
      }
      if (hurry) core.flush();
      hurry = false;
      clearTimeout(timer);
      // The `online` event goes on with this.
      if (navigator.onLine === false) return;
      const now = Date.now();
      let then: number;
      while (!(then = core.poll(now))) send(core.text(Place.Body));
      if (then < Infinity) timer = setTimeout(pump, then - now);
    });
  const send = (body: string) => {
    const batchId: string = JSON.parse(body).batch_id;
    post(batchId, body).then((answer) => {
      use((core) => {
        core.answer(Date.now(), batchId, ...answer);
        settled = figures(core);
      });
      pump();
    });
  };

  const tracker: Tracker = {
    pageView: (view = {}) =>
      make(Kind.PageView, () => {
        const url = new URL(text(view.url ?? location.href), location.href).href;
        const referral = text(view.referralUrl ?? referrer);
        referrer = url;
        return [url, referral, text(view.title ?? document.title), json(view.properties)];
      }),
    click: (buttonId, properties?) => make(Kind.Click, () => [text(buttonId), "", "", json(properties)]),
    track: (name, properties?) => make(Kind.Custom, () => [text(name), "", "", json(properties)]),
    flush() {
      hurry = true;
      pump();
    },
    status() {
      use((core) => {
        settled = figures(core);
      });
      const { delivered, rejected, paused } = settled;
      const dropped = { ...settled.dropped };
      for (const reason in lost) dropped[reason] = (dropped[reason] || 0) + lost[reason];
      let queued = held.length + settled.queued;
      if (failed) {
        queued = 0;
        const gone = made - delivered - rejected - Object.values(dropped).reduce((sum, events) => sum + events, 0);
        if (gone) dropped.failed = gone;
      }
      return { made, delivered, rejected, dropped, queued, paused: failed ? null : paused, ready: !!core, failed };
    },
  };
  if (server) return tracker;

  try {
    const { endpoint, username, key } = options;
    post = transport(endpoint, username, key);
    referrer = document.referrer;
  } catch (error) {
    options = { ...options, debug: true };
    stop("options", error);
    return tracker;
  }

  const replay = (...calls: Early[]) => {
    for (const [method, at, ...args] of calls) {
      replayed = at;
      if (method === "pageView" || method === "click" || method === "track") (tracker[method] as Function)(...args);
      replayed = 0;
    }
    return 0;
  };
  replay(...early);
  early.push = replay;

  if (options.pageViews !== false) tracker.pageView();
  watchClicks(tracker.click, warn);
  document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && tracker.flush());
  addEventListener("pagehide", tracker.flush);
  addEventListener("online", () => {
    use((core) => core.resume());
    pump();
  });
  load(wasm).then(
    () => {
      try {
        core = new Core(...keptSession());
        pump();
      } catch (error) {
        stop("crash", error);
      }
    },
    (error) => stop("load", error),
  );
  return tracker;
}

function figures(core?: Core) {
  const figure = (place: number) => (core ? core.figure(place) : 0);
  const dropped: Record<string, number> = {};
  for (let place: number = Place.Dropped, reason; core && (reason = core.text(place)); place++) {
    const events = figure(place);
    if (events) dropped[reason] = events;
  }
  const paused = ({ 401: "unauthorized", 403: "forbidden" } as const)[figure(Place.Paused)] || null;
  const [delivered, rejected, queued] = [Place.Delivered, Place.Rejected, Place.Queued].map(figure);
  return { delivered, rejected, queued, dropped, paused };
}

function text(value: unknown): string {
  if (typeof value !== "string") throw new TypeError("a string is needed, not " + typeof value);
  return value.slice(0, LONGEST);
}

/** Properties as JSON text, taken at once, since the page may change the object later. */
function json(properties: unknown): string {
  if (properties == null) return "";
  // Half of a surrogate pair is no Unicode, and would cost the whole batch.
  const lone = /\\\\|\\ud[89a-f]../g;
  return text(JSON.stringify(properties)).replace(lone, (escape) => (escape[1] === "u" ? "\ufffd" : escape));
}
