// Checks the options and fills in the defaults. Each mistake is reported once, and what can still work does.

import type { Report } from "./console.js";
import type { Consent, Options } from "./types.js";

/** All options with their defaults. `endpoint` is absolute and has no slash at the end. */
export type CheckedOptions = Required<Omit<Options, "beforeSend">> & { beforeSend: Options["beforeSend"] | null };

/**
 * How an option is read: its default, or `undefined` if it is required; a function that converts a value, which may be the
 * text of an attribute, and returns `undefined` or throws if it is wrong; and what a wrong value becomes instead of the
 * default. What is expected of each option is said in `explain.ts`.
 */
type Rule<T> = [initial: T | undefined, read: (value: unknown) => T | undefined, otherwise?: (value: unknown) => T];

/** An attribute without a value means true. */
const flag = (initial: boolean): Rule<boolean> => [
  initial,
  (value) => (String(value) === "false" ? false : /^(true)?$/.test(String(value)) || undefined),
];
const word = <T extends string>(...words: T[]): Rule<T> => [
  words[0],
  (value) => words.find((word) => word === String(value)),
];
const text = (value: unknown) => (typeof value === "string" ? value : undefined);

const RULES: { [Name in keyof CheckedOptions]: Rule<CheckedOptions[Name]> } = {
  // Without a scheme, "127.0.0.1:8787" would be a path. The page's `<base>` does not apply.
  endpoint: [
    undefined,
    (value) =>
      /^(https?:\/)?\/[^?#@]*$/i.test(value as string)
        ? new URL(value as string, location.href).href.replace(/\/*$/, "")
        : undefined,
  ],
  username: [undefined, text],
  key: [undefined, (value) => (/^tms_/.test(value as string) ? undefined : text(value))],
  pageViews: flag(true),
  hash: flag(false),
  whenVisible: flag(false),
  trackClicks: flag(true),
  anonymousId: flag(false),
  sampleRate: [1, (value) => (Number(value) > 0 && Number(value) <= 1 ? Number(value) : undefined)],
  // Nothing is stored without a clear yes.
  consent: [
    "granted",
    word<Consent>("granted", "pending", "denied")[1],
    (value) => (/^granted$/i.test(value as string) ? "granted" : "pending"),
  ],
  gpc: flag(true),
  dnt: flag(false),
  beforeSend: [null, (value) => (typeof value === "function" ? (value as CheckedOptions["beforeSend"]) : undefined)],
  credentials: word("omit", "same-origin", "include"),
  disabled: flag(false),
  debug: flag(false),
};

const UNKNOWN: Rule<null> = [null, () => undefined];

/** Returns `undefined` if a required option is missing or wrong. */
export function checkOptions(given: object, report: Report): CheckedOptions | undefined {
  const checked: Record<string, unknown> = {};
  let complete = true;
  for (const name of Object.keys({ ...RULES, ...given })) {
    const known = Object.keys(RULES).includes(name);
    const [initial, read, otherwise] = (known ? RULES[name as keyof CheckedOptions] : UNKNOWN) as Rule<unknown>;
    const value = (given as Record<string, unknown>)[name];
    const absent = value == null || (value === "" && initial === undefined);
    let used: unknown;
    try {
      if (!absent) used = read(value);
    } catch {
      // Wrong.
    }
    if (absent ? initial === undefined : used === undefined) {
      used = otherwise ? otherwise(value) : initial;
      // A key must not get into the console.
      report("option", name, name === "key" && !absent ? /^tms_/.test(value as string) && "secret" : value, used);
      complete &&= used !== undefined;
    }
    checked[name] = used ?? initial;
  }
  return complete ? (checked as unknown as CheckedOptions) : undefined;
}
