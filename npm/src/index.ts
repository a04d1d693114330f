// The typed API of the package: createTracker, what it takes and what it gives.

import { start } from "./tracker.js";

/** What a tracker needs to know. */
export interface Options {
  /**
   * Where the collector is, such as `https://collect.example`; `/` is the page's own origin. `/v1/batch`
   * is added to it.
   */
  endpoint: string;
  /** The site's name at the collector. */
  username: string;
  /** The site's write key. It is public: it can only write, and only from the site's origins. */
  key: string;
  /** Whether to count a view of the page at the start. Default: `true`. */
  pageViews?: boolean;
  /** Whether to say in the console what was refused and what went wrong. Default: `false`. */
  debug?: boolean;
}

/** A page view. What is absent is taken from the page. */
export interface View {
  /** The page's address, at most 4 KiB; relative to the page. Default: `location.href`. */
  url?: string;
  /** The page that led here, cut to 4 KiB. Default: `document.referrer`, later on the view before. */
  referralUrl?: string;
  /** The page's title, cut to 1 KiB. Default: `document.title`. */
  title?: string;
  /** Anything that JSON can hold, as an object. */
  properties?: object;
}

/**
 * Where the events have gone. `made` is always the sum of `delivered`, `rejected`, `queued` and everything
 * in `dropped`.
 */
export interface Status {
  /** Events made, refused ones included. */
  made: number;
  /** Events the collector has taken. */
  delivered: number;
  /** Events the collector has refused for good. */
  rejected: number;
  /**
   * Events dropped here, by reason: `invalid` (bad arguments, or beyond a limit), `queue_full`, `expired`
   * (older than a week), `refused` and `too_large` (the collector can never take the batch), `storage`,
   * `failed` (the tracker has turned itself off).
   */
  dropped: Record<string, number>;
  /** Events still to be delivered. */
  queued: number;
  /** Why nothing is sent: the key is wrong, or it is not allowed from this origin. Tried again after 5 minutes. */
  paused: null | "unauthorized" | "forbidden";
  /** Whether the tracker's WebAssembly is running. Until then, events wait. */
  ready: boolean;
  /** Why the tracker has turned itself off: bad options, its WebAssembly did not load, or it crashed. */
  failed: null | "options" | "load" | "crash";
}

/** Any event, with any properties or none. */
export type AnyEvents = Record<string, object | undefined>;

/** Counts page views, clicks and events. Nothing here ever throws; what cannot be counted shows in `status`. */
export interface Tracker<Events = AnyEvents> {
  /** Counts a view of the page, such as after a change of route. The first is counted by itself. */
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
  /** Sends what is queued now, instead of within 2 seconds. */
  flush(): void;
  /** Where the events have gone. */
  status(): Status;
}

/**
 * Starts a tracker: counts a page view and the clicks on elements with `data-tallymark-click`, and
 * whatever it is told. One a page is enough. On a server it does nothing.
 *
 * @example
 * type Events = { charge: { value: number }; signed_up: undefined };
 * const tracker = createTracker<Events>({ endpoint: "https://collect.example", username: "shop", key: "…" });
 * tracker.track("charge", { value: 100 });
 */
export function createTracker<Events = AnyEvents>(options: Options): Tracker<Events> {
  return start(options, new URL("./tallymark.wasm", import.meta.url)) as Tracker<Events>;
}
