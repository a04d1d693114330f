// The typed API of the package: createTracker, what it takes and what it gives.

import type { Source } from "./core.js";
import { start } from "./tracker.js";

/** The wasm in hexadecimal, put here by build.mjs. */
declare const WASM: string;

/** What a tracker needs to know. */
export interface Options {
  /**
   * Where the collector is, such as `https://collect.example`; `/` is the page's own origin. `/v1/batch`
   * is added to it.
   */
  endpoint: string;
  /** The site's name at the collector. What is kept in the browser is kept under this name. */
  username: string;
  /** The site's write key. It is public: it can only write, and only from the site's origins. */
  key: string;
  /**
   * Whether to count views by itself: the page's, those that a router shows by `history`, and the page again when it
   * comes back from the back/forward cache. A page that is rendered in advance counts when it is shown. Default: `true`.
   */
  pageViews?: boolean;
  /** Whether an address that differs only behind `#` is another page. Default: `false`. */
  hash?: boolean;
  /** Whether a page opened in the background counts only when it is first looked at. Default: `false`. */
  whenVisible?: boolean;
  /** Whether to count clicks on elements with `data-tallymark-click`. Default: `true`. */
  trackClicks?: boolean;
  /** Whether to give this browser an id, kept until it is erased, and send it with every event. Default: `false`. */
  anonymousId?: boolean;
  /**
   * The share of visits to count, over 0 and at most 1, best as `1 / n`. A visit is counted whole or not at all, and its
   * events have the `weight` n. Default: 1.
   */
  sampleRate?: number;
  /**
   * The visitor's consent. While it is `"pending"`, events are held in memory, at most 1,000, and nothing is stored or
   * sent. When it is `"denied"`, none are made. Default: `"granted"`.
   */
  consent?: Consent;
  /** Whether to make no events where the browser sends the Global Privacy Control signal. Default: `true`. */
  gpc?: boolean;
  /** Whether to make no events where the browser says Do Not Track. Default: `false`. */
  dnt?: boolean;
  /**
   * Sees each event before it is stored, and gives back what to store instead; nothing (`null`, `false` or no value) to
   * make no event.
   */
  beforeSend?: (event: TrackedEvent) => TrackedEvent | null | undefined | false | void;
  /** Whether to say in the console what was refused and what went wrong. Default: `false`. */
  debug?: boolean;
}

/** Whether events may be stored and sent. */
export type Consent = "granted" | "pending" | "denied";

/** An event as it is sent. What is absent is left out. */
export interface TrackedEvent {
  /** A UUID. */
  event_id: string;
  event_type: "page_view" | "button_click" | "custom";
  /** When it happened, in milliseconds since the Unix epoch. */
  occurred_at: number;
  /** The visit: it ends after 30 minutes without an event, and all of a site's tabs share it. At most 128 bytes. */
  session_id?: string;
  /** The browser, if the site asks for that. At most 128 bytes. */
  anonymous_id?: string;
  /** The person, by the site's own name. At most 128 bytes. */
  user_id?: string;
  /** Of a page view: at most 4 KiB. */
  url?: string;
  /** Of a page view: at most 4 KiB. */
  referral_url?: string;
  /** Of a page view: at most 1 KiB. */
  title?: string;
  /** Of a click: at most 256 bytes. */
  button_id?: string;
  /** Of an event of the site's own: at most 128 bytes. */
  name?: string;
  /** Anything that JSON can hold, as an object. */
  properties?: object;
  /** How many events this one stands for, where only a sample is counted. */
  weight?: number;
}

/** A page view. What is absent is taken from the page. */
export interface View {
  /** The page's address, cut to 4 KiB; relative to the page. Default: `location.href`. */
  url?: string;
  /** The page that led here, cut to 4 KiB. Default: `document.referrer`, later on the view before. */
  referralUrl?: string;
  /** The page's title, cut to 1 KiB. Default: `document.title`. */
  title?: string;
  /** Anything that JSON can hold, as an object. */
  properties?: object;
}

/**
 * Where the events have gone since the page was last shown: `made + adopted` is always the sum of `delivered`,
 * `rejected`, `queued` and everything in `dropped`.
 */
export interface Status {
  /** Events made, refused ones included. */
  made: number;
  /** Events that pages before this one had left in the browser. */
  adopted: number;
  /** Events the collector has taken. */
  delivered: number;
  /** Events the collector has refused for good. */
  rejected: number;
  /**
   * Events dropped here, by reason: `invalid` (bad arguments, or beyond a limit), `queue_full` (over a megabyte),
   * `expired` (older than a week), `refused` and `too_large` (the collector can never take the batch), `storage` (what
   * was stored cannot be read).
   */
  dropped: Record<string, number>;
  /** Events still to be delivered. */
  queued: number;
  /**
   * Why nothing is sent: the key is wrong, or it is not allowed from this origin (tried again after 5 minutes); the
   * browser is offline; or something in it blocks the requests (tried again after 5 minutes).
   */
  paused: null | "unauthorized" | "forbidden" | "offline" | "blocked";
  /** Why no events are made: the visitor has opted out, signals that, or has denied consent. */
  off: null | "opted_out" | "gpc" | "dnt" | "denied";
  /** Whether the tracker's core is running. Until then, events are kept and wait. */
  ready: boolean;
  /** Why the tracker cannot work: bad options, its core could not be loaded, or it crashed. */
  failed: null | "options" | "load" | "crash";
}

/** Any event, with any properties or none. */
export type AnyEvents = Record<string, object | undefined>;

/** Counts page views, clicks and events. Nothing here ever throws; what cannot be counted shows in `status`. */
export interface Tracker<Events = AnyEvents> {
  /** Counts a view of the page. With `pageViews` on, that happens by itself. */
  pageView(view?: View): void;
  /**
   * Counts a click on a button, as `data-tallymark-click` does by itself.
   *
   * @param buttonId The site's name for the button: not empty, at most 256 bytes.
   * @param properties Anything that JSON can hold, as an object. The event may have 32 KiB in all.
   */
  click(buttonId: string, properties?: object): void;
  /**
   * Counts an event of the site's own.
   *
   * @param name Its name: not empty, at most 128 bytes.
   * @param properties Anything that JSON can hold, as an object, taken as it is now. The event may have
   * 32 KiB in all.
   */
  track<Name extends keyof Events & string>(
    name: Name,
    ...properties: undefined extends Events[Name] ? [properties?: Events[Name]] : [properties: Events[Name]]
  ): void;
  /**
   * Gives the events from now on a `user_id`, until the page goes or `null` takes it away.
   *
   * @param userId The site's own name for the person, at most 128 bytes.
   */
  identify(userId: string | null): void;
  /**
   * Says what the visitor has decided. With `"granted"`, what was held is stored and sent; with `"denied"`, that and
   * everything stored is forgotten.
   */
  setConsent(consent: Consent): void;
  /** Makes no more events in this browser, and forgets everything stored but that. */
  optOut(): void;
  /** Takes that back. */
  optIn(): void;
  /** Sends what is queued now, instead of within 2 seconds. */
  flush(): void;
  /** Where the events have gone. */
  status(): Status;
}

const trackers: Record<string, Tracker> = {};

// The wasm is in the module, and the other is an import, because that is what every bundler understands as it is.
const source: Source = {
  wasm: () => new Uint8Array(WASM.length / 2).map((_, at) => parseInt(WASM.slice(2 * at, 2 * at + 2), 16)),
  script: () => import("./fallback.js"),
};

/**
 * Starts a tracker, or gives the one there is for this endpoint and username. It counts page views and the clicks on
 * elements with `data-tallymark-click`, and whatever it is told. Returns at once. On a server it does nothing.
 *
 * @example
 * type Events = { charge: { value: number }; signed_up: undefined };
 * const tracker = createTracker<Events>({ endpoint: "https://collect.example", username: "shop", key: "…" });
 * tracker.track("charge", { value: 100 });
 */
export function createTracker<Events = AnyEvents>(options: Options): Tracker<Events> {
  options ||= {} as Options;
  return (trackers[options.endpoint + " " + options.username] ||= start(options, source)) as Tracker<Events>;
}
