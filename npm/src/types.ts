// The public types: options, events, status, and the tracker.

/** The options of a tracker. */
export interface Options {
  /** The URL of the collector, such as `https://collect.example`; `/` is the page's own origin. `/v1/batch` is appended. */
  endpoint: string;
  /** The site's name at the collector. Names in the browser's storage contain it. */
  username: string;
  /** The site's write key. It is public: it can only write, and only from the site's origins. */
  key: string;
  /**
   * Whether to record page views automatically: the first page, those that a router shows by `history`, and pages restored
   * from the back/forward cache. A prerendered page counts when it is shown. Default: `true`.
   */
  pageViews?: boolean;
  /** Whether addresses that differ only after `#` are different pages. Default: `false`. */
  hash?: boolean;
  /**
   * What happens to the parameters of addresses, after those of campaigns and advertisements (`utm_*`, `ref`, `source`,
   * `fbclid` and other click ids) and secrets (`token`, `*_token`, `*_secret`, `password*`, `jwt`) are removed: `"keep"`,
   * `"drop"`, or the only parameters to keep, whatever they are. Default: `"keep"`.
   */
  query?: "keep" | "drop" | string[];
  /**
   * Pages that make no events, by their paths. `*` stands for any characters: `/admin/*`. With the option `hash`, the
   * fragment counts as part of the path: `/#/admin/*`. Default: none.
   */
  exclude?: string[];
  /** Whether a page opened in the background counts only when it becomes visible. Default: `false`. */
  whenVisible?: boolean;
  /** Whether to record clicks on elements with `data-tallymark-click`. Default: `true`. */
  trackClicks?: boolean;
  /**
   * Whether to record clicks on links to other hosts, with `outbound:HOST/PATH` as the button's id and the address as the
   * property `url`. Default: `false`.
   */
  outbound?: boolean;
  /**
   * Whether to record clicks on links with `download` or to a file such as a PDF, with `download:PATH` as the button's id
   * (`download:HOST/PATH` on other hosts) and the address as the property `url`. Default: `false`.
   */
  downloads?: boolean;
  /**
   * Whether to record submitted forms, with `form:` and the form's `id`, `name` or the path of its `action` as the button's
   * id. What was entered is never read. Default: `false`.
   */
  forms?: boolean;
  /**
   * What becomes of the events of automated browsers and crawlers: `"flag"` adds the property `bot: true`, `"drop"` counts
   * them in `status().dropped.bot` and nowhere else, `"keep"` treats them like others. Default: `"flag"`.
   */
  bots?: "flag" | "drop" | "keep";
  /** Whether to give this browser an id, store it, and send it with every event. Default: `false`. */
  anonymousId?: boolean;
  /**
   * The share of visits to record, above 0 and at most 1, preferably `1 / n`. A visit is recorded completely or not at all,
   * and its events have the `weight` n. Default: 1.
   */
  sampleRate?: number;
  /**
   * The visitor's consent. While it is `"pending"`, events are held in memory, at most 1,000, and nothing is stored or
   * sent. When it is `"denied"`, no events are made. Default: `"granted"`.
   */
  consent?: Consent;
  /** Whether to make no events if the browser sends the Global Privacy Control signal. Default: `true`. */
  gpc?: boolean;
  /** Whether to make no events if the browser sends Do Not Track. Default: `false`. */
  dnt?: boolean;
  /**
   * Gets each event before it is stored and returns the event to store. If it returns `null`, `false` or nothing, the
   * event is discarded.
   */
  // biome-ignore lint/suspicious/noConfusingVoidType: a hook may have no return statement
  beforeSend?: (event: TrackedEvent) => TrackedEvent | null | undefined | false | void;
  /**
   * Whether requests carry cookies: `"omit"`, `"same-origin"` or `"include"`, as with `fetch`. Needed only if the collector
   * is behind a login. Default: `"omit"`.
   */
  credentials?: "omit" | "same-origin" | "include";
  /** Makes a tracker that does nothing, for tests of the application. Default: `false`. */
  disabled?: boolean;
  /** Whether to write refused events and failures to the console. Default: `false`. */
  debug?: boolean;
}

/** Whether events may be stored and sent. */
export type Consent = "granted" | "pending" | "denied";

/** An event as it is sent. Absent fields are left out. */
export interface TrackedEvent {
  /** A UUID. */
  event_id: string;
  event_type: "page_view" | "button_click" | "custom";
  /** When it happened, in milliseconds since the Unix epoch. */
  occurred_at: number;
  /** The visit. It ends after 30 minutes without an event, and all tabs of a site share it. At most 128 bytes. */
  session_id?: string;
  /** The browser, with the option `anonymousId`. At most 128 bytes. */
  anonymous_id?: string;
  /** The person, as given to `identify`. At most 128 bytes. */
  user_id?: string;
  /** Page views: the address, without its fragment and what else the options remove, at most 4 KiB. */
  url?: string;
  /** Page views: the page that led here, at most 4 KiB. */
  referral_url?: string;
  /** Page views: at most 1 KiB. */
  title?: string;
  /** Clicks: at most 256 bytes. */
  button_id?: string;
  /** Custom events: at most 128 bytes. */
  name?: string;
  /**
   * An object that can be converted to JSON. Page views also have `utm_source`, `utm_medium`, `utm_campaign`, `utm_term` and
   * `utm_content` from their address, and automated browsers `bot: true`.
   */
  properties?: object;
  /** How many events this one represents, with the option `sampleRate`. */
  weight?: number;
}

/** A page view. Absent fields are taken from the page. */
export interface View {
  /** The address, absolute or relative to the page, cut to 4 KiB. Default: `location.href`. */
  url?: string;
  /** The page that led here, cut to 4 KiB. Default: `document.referrer`, later the address that the previous view has sent. */
  referralUrl?: string;
  /** The title, cut to 1 KiB. Default: `document.title`. */
  title?: string;
  /** An object that can be converted to JSON. */
  properties?: object;
}

/**
 * What became of the events since the page was last shown: `made + adopted` always equals the sum of `delivered`,
 * `rejected`, `queued` and everything in `dropped`.
 */
export interface Status {
  /** Events made, including those that were refused. */
  made: number;
  /** Events that earlier pages had left in the browser. */
  adopted: number;
  /** Events that the collector has accepted. */
  delivered: number;
  /** Events that the collector has rejected permanently. */
  rejected: number;
  /**
   * Events dropped in the browser, by reason: `invalid` (bad arguments, or above a limit), `queue_full` (above 256 KiB),
   * `expired` (older than a week), `refused` and `too_large` (the collector can never accept the batch), `storage` (the
   * stored batch cannot be read), `bot` (with the option `bots: "drop"`).
   */
  dropped: Record<string, number>;
  /** Events still to be delivered. */
  queued: number;
  /**
   * Why nothing is sent: the key is wrong, or the origin is not allowed (retried after 5 minutes); the endpoint redirects, as
   * logins do; the browser is offline (tried once a minute all the same); or something in the browser blocks the requests
   * (retried after 5 minutes).
   */
  paused: null | "unauthorized" | "forbidden" | "redirected" | "offline" | "blocked";
  /** Why no events are made: the option `disabled`, or the visitor has opted out, sends a privacy signal, or has denied consent. */
  disabledReason: null | "disabled" | "opted_out" | "gpc" | "dnt" | "denied";
  /** Whether the core is running. Until then, events are stored and wait. */
  ready: boolean;
  /** Why the tracker cannot work: wrong options, the core could not be loaded, or it crashed. */
  failed: null | "options" | "load" | "crash";
}

/** Any event, with any properties or none. */
export type AnyEvents = Record<string, object | undefined>;

/** Records page views, clicks and custom events. No method throws; `status` shows what could not be recorded. */
export interface Tracker<Events = AnyEvents> {
  /** Records a page view. With the option `pageViews`, that happens automatically. */
  pageView(view?: View): void;
  /**
   * Records a click on a button. For elements with `data-tallymark-click`, that happens automatically.
   *
   * @param buttonId The site's name for the button: not empty, at most 256 bytes.
   * @param properties An object that can be converted to JSON. The event may have 32 KiB in total.
   */
  click(buttonId: string, properties?: object): void;
  /**
   * Records a custom event.
   *
   * @param name Its name: not empty, at most 128 bytes.
   * @param properties An object that can be converted to JSON, which happens immediately. The event may have 32 KiB in
   * total.
   */
  track<Name extends keyof Events & string>(
    name: Name,
    ...properties: undefined extends Events[Name] ? [properties?: Events[Name]] : [properties: Events[Name]]
  ): void;
  /**
   * Sets the `user_id` of the events from now on, until the page ends. `null` removes it.
   *
   * @param userId The site's own id of the person: a number, or a text of at most 128 bytes. Anything else is reported, and
   * the events have no `user_id`.
   */
  identify(userId: string | number | null): void;
  /**
   * Sets the visitor's decision; any other value is reported and changes nothing. `"granted"` stores and sends the events that were held; `"denied"` discards them and
   * everything stored.
   */
  setConsent(consent: Consent): void;
  /** Makes no more events in this browser, and removes everything stored except this decision. */
  optOut(): void;
  /** Takes the opt-out back. */
  optIn(): void;
  /** Sends what is queued now, instead of within 2 seconds. */
  flush(): void;
  /** Returns what became of the events. */
  status(): Status;
}
