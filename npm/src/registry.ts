// The trackers of the page: one for each collector and site, also if the page has several copies of this package.

import { reporter } from "./console.js";
import type { Source } from "./core.js";
import { outsideZones } from "./dom.js";
import { inertTracker } from "./inert.js";
import { type CheckedOptions, checkOptions } from "./options.js";
import { type EarlyCall, type Running, startTracker } from "./tracker.js";
import type { Tracker } from "./types.js";

interface Entry extends Running {
  /** Until a difference was reported. */
  options?: CheckedOptions;
}

/** Marks trackers and names their list: elements cannot have this name, and all copies of the package know it. */
export const REGISTRY = Symbol.for("tallymark");

const entries = (): Record<string, Entry> => {
  const page = globalThis as { [REGISTRY]?: Record<string, Entry> };
  page[REGISTRY] ||= {};
  return page[REGISTRY];
};

/** Starts a tracker, or returns the one for the same endpoint and username, and makes the early calls. Never throws. */
export function obtainTracker(given: object, source: Source, early: EarlyCall[] = []): Tracker {
  const report = reporter(source);
  try {
    const options = checkOptions(given, report);
    if (!options) return inertTracker({ failed: "options" });
    if (options.disabled) return inertTracker({ disabledReason: "disabled" });
    const all = entries();
    const id = `${options.endpoint} ${options.username}`;
    if (all[id]) all[id].replay(early);
    else {
      all[id] = outsideZones(() => ({ ...startTracker(options, source, report, early), options }));
      Object.assign(all[id].tracker, { [REGISTRY]: 1 });
    }
    const { options: first, tracker } = all[id];
    // Functions are compared by their code.
    if (first && String(Object.values(first)) !== String(Object.values(options))) {
      report("differs", id, first, options);
      all[id].options = undefined;
    }
    return tracker;
  } catch (error) {
    report("crash", error);
    return inertTracker({ failed: "options" });
  }
}
