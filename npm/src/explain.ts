// What the console lines say: what is wrong, with the name and the value, and what to do. A part of fallback.js.

/** What is expected of each option. */
const EXPECTED: Record<string, string> = {
  endpoint: 'a URL that begins with "https://" or "http://", or "/" for the origin of the page',
  username: "the site's name at the collector",
  key: "the site's write key (tmw_…)",
  sampleRate: "a number above 0 and at most 1, such as 0.1",
  consent: '"granted", "pending" or "denied"',
  query: '"keep", "drop", or a list of parameters, such as "id, page"',
  exclude: 'a list of paths, such as "/admin/*, /preview"',
  bots: '"flag", "drop" or "keep"',
  credentials: '"omit", "same-origin" or "include"',
  beforeSend: "a function, which only createTracker can be given",
};
for (const name of [
  "pageViews",
  "hash",
  "whenVisible",
  "trackClicks",
  "outbound",
  "downloads",
  "forms",
  "anonymousId",
  "gpc",
  "dnt",
  "disabled",
  "debug",
]) {
  EXPECTED[name] = "true or false";
}

/** Limits of fields in bytes. */
const LIMITS: Record<string, number> = { name: 128, button_id: 256, user_id: 128, session_id: 128, anonymous_id: 128 };

function shown(value: unknown): string {
  try {
    return typeof value === "function" ? "a function" : `"${String(value).slice(0, 60)}"`;
  } catch {
    return typeof value;
  }
}

type Line = [text: string, level?: "warn" | "error"];

/** Each topic's text. `label` is how the page spells an option. */
const TOPICS: Record<string, (label: (name: string) => string, ...details: never[]) => Line | Promise<Line>> = {
  /** An option is wrong, and `used` applies instead. */
  option(label, name: string, value: unknown, used: unknown) {
    const expected = EXPECTED[name];
    if (!expected) {
      const names = Object.keys(EXPECTED).filter((known) => label === String || known !== "beforeSend");
      return [
        `the option \`${label(name)}\` does not exist and is ignored. There are: ${names.map(label).join(", ")}.`,
      ];
    }
    let is = value == null || value === "" ? "is missing" : `is ${shown(value)}`;
    if (name === "key" && value != null && value !== "")
      is =
        value === "secret"
          ? "is the secret key, which reads the site's numbers: replace that key, and never put it into a page"
          : "is not a text";
    const result =
      used == null
        ? name in { endpoint: 1, username: 1, key: 1 }
          ? "Nothing is recorded."
          : "It is ignored."
        : `${shown(used)} is used.`;
    return [
      `the option \`${label(name)}\` ${is}; expected ${expected}. ${result}`,
      result.startsWith("Nothing") ? "error" : "warn",
    ];
  },
  module: () => [
    'remove type="module" from the script tag of tallymark.js; in a module, import createTracker instead.',
    "error",
  ],
  taken: () => [
    "window.tallymark is something else in this page. Page views and clicks are recorded; to call the tracker, rename that variable.",
  ],
  differs(label, site: string, first: Record<string, unknown>, second: Record<string, unknown>) {
    const names = Object.keys(first).filter((name) => String(first[name]) !== String(second[name]));
    const labels = names.map((name) => `\`${label(name)}\``).join(", ");
    return [
      `this page starts two trackers for ${site} with a different ${labels}. The options of the first apply; remove one, or make the options equal.`,
    ];
  },
  identify: (_, value: unknown) => [
    `identify(${shown(value)}): expected a text or number of at most 128 bytes, or null. The events have no user_id.`,
  ],
  consent: (_, value: unknown) => [
    `setConsent(${shown(value)}): expected ${EXPECTED.consent}. The consent stays as it was.`,
  ],
  load: (_, error: unknown) => [
    `tallymark.wasm and fallback.js could not be loaded (${error}). Put both beside the script, of the same version, and allow them in the page's policy. Events are stored and sent from a later page.`,
    "error",
  ],
  links: (_, error: unknown) => [
    `fallback.js could not be loaded (${error}), so outbound links, downloads and forms are not recorded. Put it beside the script, of the same version.`,
    "error",
  ],
  crash: (_, error: unknown) => [
    `the core has stopped (${error}). Events are stored and sent from a later page.`,
    "error",
  ],
  /** An event was dropped, with `debug`. */
  refused(_, code: unknown) {
    const [, field] = /^(\w+)_too_long$/.exec(String(code)) ?? [];
    return [`an event was dropped: ${code}${field && field in LIMITS ? `, the limit is ${LIMITS[field]} bytes` : ""}.`];
  },
  ignored: (_, problem: unknown) => [`${problem}. The event is recorded without it.`],
  worker: () => [
    "there is no page to track in a worker: create the tracker in the page, and send it messages from here.",
  ],
  /** The collector did not accept a batch, with `debug`. */
  async answer(_, status: number, site: string, endpoint: string, response?: Response) {
    const known = `\`tallymark-collector site set ${site} --origin ${location.origin}\``;
    if (status === 401)
      return [`the collector refuses the username "${site}" with this key (401). Correct \`username\` or \`key\`.`];
    if (status === 403) {
      const { code, detail } = await response!.json().catch(() => ({}));
      return [
        !code || code === "origin_not_allowed"
          ? `the collector does not know the origin ${location.origin} (403). Add it: ${known}.`
          : `the collector refuses "${site}" (403 ${code}${detail ? `: ${detail}` : ""}).`,
      ];
    }
    if (status === 300)
      return [
        `${endpoint} redirects, as logins do. Correct \`endpoint\`, or set \`credentials\` if a login is in front of the collector.`,
      ];
    if (status === 404) return [`there is no collector at ${endpoint} (404). Correct \`endpoint\`.`];
    if (status >= 0)
      return [
        `${endpoint} answers ${status ? `with status ${status}` : "with something that is not a receipt"}. Events are stored, and sent again.`,
      ];
    const reached = await fetch(`${endpoint}/health`, {
      mode: "no-cors",
      credentials: "omit",
      cache: "no-store",
    }).catch(() => null);
    return [
      reached
        ? `the collector at ${endpoint} is running, but this page may not use it. If it does not know the origin ${location.origin}, add it: ${known}. Otherwise something in the browser blocks the requests.`
        : `no answer from ${endpoint}. The collector is down, the address is wrong, or something in the browser or the page's policy blocks the requests. Events are stored, and sent again.`,
    ];
  },
};

/** Writes the line of a topic. `tag` says that the options are attributes. */
export async function explain(topic: string, tag: boolean, details: unknown[]): Promise<void> {
  const attribute = (name: string) => "data-" + name.replace(/[A-Z]/g, (letter) => "-" + letter.toLowerCase());
  const [text, level = "warn"] = await TOPICS[topic](tag ? attribute : String, ...(details as never[]));
  console[level](`tallymark: ${text}`);
}
