// Checks the options and fills in the defaults. Each mistake is reported once, and what can still work does.

import type { Report } from "./console.js";
import type { Consent, Options } from "./types.js";

/** All options with their defaults. `endpoint` is absolute and has no slash at the end. */
export type CheckedOptions = Required<Omit<Options, "beforeSend">> & { beforeSend: Options["beforeSend"] | null };

/** The values of `consent`. */
export const CONSENTS: Consent[] = ["granted", "pending", "denied"];

/** Every option with its default; `undefined` if it is required. What is expected of each is said in `explain.ts`. */
const DEFAULTS: { [Name in keyof CheckedOptions]: CheckedOptions[Name] | undefined } = {
  endpoint: undefined,
  username: undefined,
  key: undefined,
  pageViews: true,
  hash: false,
  query: "keep",
  exclude: [],
  whenVisible: false,
  trackClicks: true,
  outbound: false,
  downloads: false,
  forms: false,
  bots: "flag",
  anonymousId: false,
  sampleRate: 1,
  consent: "granted",
  gpc: true,
  dnt: false,
  beforeSend: null,
  credentials: "omit",
  disabled: false,
  debug: false,
};

/** Options that are one of these words. */
const WORDS: { [name: string]: string[] | undefined } = {
  consent: CONSENTS,
  bots: ["flag", "drop", "keep"],
  credentials: ["omit", "same-origin", "include"],
};

/** Converts a value, which may be the text of an attribute. Throws or returns `undefined` if it is wrong. */
function read(name: string, value: unknown, initial: unknown): unknown {
  const text = String(value);
  // An attribute without a value means true.
  if (initial === !!initial) return text === "false" ? false : /^(true)?$/.test(text) || undefined;
  if (initial === 1) return Number(value) > 0 && Number(value) <= 1 ? Number(value) : undefined;
  if (WORDS[name]) return WORDS[name].find((word) => word === text);
  if (name === "query" && /^(keep|drop)$/.test(text)) return text;
  // Lists of texts, which attributes separate by commas.
  if (name === "query" || name === "exclude") return text.split(/[\s,]+/).filter(Boolean);
  if (name === "beforeSend") return typeof value === "function" ? value : undefined;
  // Without a scheme, "127.0.0.1:8787" would be a path. The page's `<base>` does not apply.
  if (name === "endpoint" && /^(https?:\/)?\/[^?#@]*$/i.test(text))
    return new URL(text, location.href).href.replace(/\/*$/, "");
  if (name === "username" || (name === "key" && !/^tms_/.test(text)))
    return typeof value === "string" ? value : undefined;
}

/** Returns `undefined` if a required option is missing or wrong. */
export function checkOptions(given: object, report: Report): CheckedOptions | undefined {
  const checked: Record<string, unknown> = {};
  let complete = true;
  for (const name of Object.keys({ ...DEFAULTS, ...given })) {
    const value = (given as Record<string, unknown>)[name];
    // An unknown option has no right value.
    let initial: unknown = Object.keys(DEFAULTS).includes(name) ? DEFAULTS[name as keyof CheckedOptions] : null;
    const required = initial === undefined;
    const absent = value == null || (required && value === "");
    let used: unknown;
    try {
      if (!absent) used = read(name, value, initial);
    } catch {
      // Wrong.
    }
    if (absent ? required : used === undefined) {
      // Nothing is stored without a clear yes.
      if (name === "consent" && !/^granted$/i.test(value as string)) initial = "pending";
      // A key must not get into the console.
      report("option", name, name === "key" && !absent ? /^tms_/.test(value as string) && "secret" : value, initial);
      complete &&= !required;
    }
    checked[name] = used ?? initial;
  }
  return complete ? (checked as unknown as CheckedOptions) : undefined;
}
