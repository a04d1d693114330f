// The trackers of the page: one for each collector and site, also if the page has several copies of this package.

import { reporter } from "./console.js";
import type { Source } from "./core.js";
import { inertTracker } from "./inert.js";
import { type CheckedOptions, checkOptions } from "./options.js";
import { type EarlyCall, type Running, startTracker } from "./tracker.js";
import type { Tracker } from "./types.js";

interface Entry extends Running {
  /** Until a difference was reported. */
  options?: CheckedOptions;
}

/** Elements of the page cannot have this name, and all copies know it. */
const REGISTRY = Symbol.for("tallymark");

const entries = (): Record<string, Entry> => {
  const page = globalThis as { [REGISTRY]?: Record<string, Entry> };
  page[REGISTRY] ||= {};
  return page[REGISTRY];
};

/** Whether a value is one of the trackers here. */
export const isTracker = (value: unknown): boolean => Object.values(entries()).some(({ tracker }) => tracker === value);

/** Starts a tracker, or returns the one for the same endpoint and username, and makes the early calls. Never throws. */
export function obtainTracker(given: object, source: Source, early: EarlyCall[] = []): Tracker {
  if (typeof document === "undefined") return inertTracker();
  const report = reporter(source);
  try {
    const options = checkOptions(given, report);
    if (!options) return inertTracker({ failed: "options" });
    if (options.disabled) return inertTracker({ disabledReason: "disabled" });
    const all = entries();
    const id = `${options.endpoint} ${options.username}`;
    all[id] ||= { ...startTracker(options, source, report), options };
    const first = all[id].options;
    const names = Object.keys(options) as (keyof CheckedOptions)[];
    const other = names.filter((name) => first && String(first[name]) !== String(options[name]));
    if (other.length) {
      report("differs", id, other);
      all[id].options = undefined;
    }
    all[id].replay(early);
    return all[id].tracker;
  } catch (error) {
    report("crash", error);
    return inertTracker({ failed: "options" });
  }
}
