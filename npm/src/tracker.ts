// One tracker: its parts, its methods, and what it listens to in the page.

import { createClean } from "./address.js";
import { watchClicks } from "./clicks.js";
import { createPermission } from "./consent.js";
import type { Report } from "./console.js";
import type { Source } from "./core.js";
import { fromDocument, listen } from "./dom.js";
import { createDriver } from "./driver.js";
import { addProperties, cut } from "./event.js";
import { type CheckedOptions, CONSENTS } from "./options.js";
import { watchPages } from "./pages.js";
import { createRecorder } from "./recorder.js";
import { openStorage } from "./storage.js";
import { createPost } from "./transport.js";
import type { Tracker } from "./types.js";

/** A call made before the script had loaded: the method's name, when, and its arguments. */
export type EarlyCall = [method: string, at: number, ...args: unknown[]];

export interface Running {
  tracker: Tracker;
  /** Makes early calls, each at its own time. Those added to the list later are made at once. */
  replay(calls: EarlyCall[]): void;
}

/** Starts a tracker, after the early calls. */
export function startTracker(options: CheckedOptions, source: Source, report: Report, early: EarlyCall[]): Running {
  const warn = (problem: unknown) => {
    if (options.debug) report("refused", problem);
  };
  const post = createPost(options);
  let referrer = fromDocument("referrer");

  const site = `tallymark/${options.username}`;
  // What is stored belongs to this collector.
  const prefix = `${site}@${options.endpoint}#`;
  // What the visitor has chosen may always be stored.
  const choice = openStorage(`${site}#`, () => true);
  const permission = createPermission(options, choice);
  const storage = openStorage(prefix, permission.granted);
  const driver = createDriver(options, storage, prefix, source, post, report);
  const recorder = createRecorder(options, permission, storage, driver, report);
  /** Whether the page was shown. One that is prerendered may never be. */
  let shown = false;
  /** Records a new address at once. */
  let endWait = () => {};

  /** Begins to store and send: at the start, after consent, and when the page comes back. */
  const open = () => {
    if (shown && permission.granted() && driver.open()) recorder.release();
  };
  /** Forgets everything stored except the opt-out. */
  const erase = () => {
    driver.clear();
    recorder.reset();
    for (const name of storage.names()) storage.set(name);
  };
  const clean = createClean(options);
  /** Whether the page is not excluded. */
  const included = () => !options.exclude.length || !!clean(location.href);
  const methods = (clock: () => number): Tracker => ({
    pageView(view = {}) {
      const recorded = recorder.record(clock(), "page_view", () => {
        const campaign = {};
        const url = clean(text(view.url ?? location.href), campaign);
        const referral = text(view.referralUrl ?? referrer ?? "");
        return (
          url && {
            url: cut("url", url),
            referral_url: referral ? cut("referral_url", clean(referral)) || undefined : undefined,
            title: cut("title", text(view.title ?? fromDocument("title") ?? "")) || undefined,
            properties: Object.keys(campaign)[0] ? addProperties(campaign, view.properties) : view.properties,
          }
        );
      });
      // What was sent, and not what a hook has removed.
      if (recorded) referrer = recorded.url!;
    },
    click: (buttonId, properties?) => {
      recorder.record(clock(), "button_click", () => included() && { button_id: buttonId, properties });
    },
    track: (name, properties?) => {
      recorder.record(clock(), "custom", () => included() && { name, properties });
    },
    identify: recorder.identify,
    setConsent(consent) {
      if (!CONSENTS.includes(consent)) return report("consent", consent);
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
    flush() {
      endWait();
      driver.flush();
    },
    status: () => ({ ...driver.status(recorder.held()), disabledReason: permission.disabledReason() }),
  });

  const tracker = methods(Date.now);

  const replay = (calls: EarlyCall[]) => {
    const call = (...made: EarlyCall[]) => {
      for (const [method, at, ...args] of made) {
        // biome-ignore lint/complexity/noBannedTypes: the name comes from the page
        (methods(() => at) as unknown as Record<string, Function>)[method]?.(...args);
      }
      return 0;
    };
    call(...calls);
    calls.push = call;
  };
  replay(early);

  const begin = () => {
    shown = true;
    open();
    if (options.pageViews) endWait = watchPages((url, at) => methods(() => at).pageView({ url }), clean, options);
  };
  if (options.trackClicks) watchClicks(tracker.click, warn);
  if (options.outbound || options.downloads || options.forms) {
    source.script().then(
      ({ watchLinks }) => watchLinks(tracker.click, clean, warn, listen, options),
      (error) => report("links", error),
    );
  }
  listen(document, "visibilitychange", () => fromDocument("hidden") && tracker.flush());
  listen(window, "pagehide", () => {
    tracker.flush();
    permission.disabledReason();
    if (driver.isOpen()) driver.suspend();
  });
  listen(window, "pageshow", (event: PageTransitionEvent) => {
    if (!event.persisted) return;
    driver.stop();
    open();
  });
  listen(window, "online", driver.resume);
  if (fromDocument("prerendering" as "hidden")) listen(document, "prerenderingchange", begin, { once: true });
  else begin();
  return { tracker, replay };
}

function text(value: unknown): string {
  if (typeof value !== "string") throw "invalid_argument";
  return value;
}
