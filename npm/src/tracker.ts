// One tracker: its parts, its methods, and what it listens to in the page.

import { watchClicks } from "./clicks.js";
import { createPermission } from "./consent.js";
import type { Source } from "./core.js";
import { createDriver } from "./driver.js";
import { cut } from "./event.js";
import { inertTracker } from "./inert.js";
import { watchPages } from "./pages.js";
import { createRecorder } from "./recorder.js";
import { openStorage } from "./storage.js";
import { createPost, type Post } from "./transport.js";
import type { Options, Tracker } from "./types.js";

/** A call made before the script had loaded: the method's name, when, and its arguments. */
export type EarlyCall = [method: string, at: number, ...args: unknown[]];

/** Starts a tracker and makes the early calls, each at its own time. Never throws. */
export function startTracker(options: Options, source: Source, early: EarlyCall[] = []): Tracker {
  if (typeof document === "undefined") return inertTracker();
  const warn = (problem: unknown) => {
    if (options.debug) console.warn("tallymark:", problem);
  };
  let post: Post;
  let referrer: string;
  try {
    post = createPost(options.endpoint, options.username, options.key);
    referrer = document.referrer;
  } catch (error) {
    console.warn("tallymark:", error);
    return inertTracker("options");
  }

  const prefix = `tallymark/${options.username}/`;
  // What the visitor has chosen may always be stored.
  const choice = openStorage(prefix, () => true);
  const permission = createPermission(options, choice);
  const storage = openStorage(prefix, permission.granted);
  const driver = createDriver(storage, prefix, source, post, warn);
  const recorder = createRecorder(options, permission, storage, driver, warn);
  /** Whether the page was shown. One that is prerendered may never be. */
  let shown = false;

  /** Begins to store and send: at the start, after consent, and when the page comes back. */
  const open = () => {
    if (shown && permission.granted() && driver.open()) recorder.release();
  };
  /** Forgets everything stored except the opt-out. */
  const erase = () => {
    driver.clear();
    recorder.reset();
    for (const name of choice.names()) if (name !== "out") choice.set(name);
  };
  const methods = (clock: () => number): Tracker => ({
    pageView: (view = {}) =>
      recorder.record(clock(), "page_view", () => {
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
    click: (buttonId, properties?) =>
      recorder.record(clock(), "button_click", () => ({ button_id: text(buttonId), properties })),
    track: (name, properties?) => recorder.record(clock(), "custom", () => ({ name: text(name), properties })),
    identify: recorder.identify,
    setConsent(consent) {
      permission.setConsent(consent);
      if (consent === "denied") erase();
      else if (consent !== "granted" && driver.isOpen()) driver.close();
      open();
    },
    optOut() {
      erase();
      permission.setOptedOut(true);
    },
    optIn() {
      permission.setOptedOut(false);
      open();
    },
    flush: driver.flush,
    status: () => ({ ...driver.status(recorder.held()), disabledReason: permission.disabledReason() }),
  });
  const tracker = methods(Date.now);

  const replay = (...calls: EarlyCall[]) => {
    for (const [method, at, ...args] of calls) {
      // biome-ignore lint/complexity/noBannedTypes: the name comes from the page
      (methods(() => at) as unknown as Record<string, Function>)[method]?.(...args);
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
    if (driver.isOpen()) driver.suspend();
  });
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    driver.stop();
    open();
  });
  addEventListener("online", driver.resume);
  if ((document as { prerendering?: boolean }).prerendering) {
    document.addEventListener("prerenderingchange", begin, { once: true });
  } else begin();
  return tracker;
}

function text(value: unknown): string {
  if (typeof value !== "string") throw `a string is needed, got ${typeof value}`;
  return value;
}
