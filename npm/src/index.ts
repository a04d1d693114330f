// The package's API: createTracker and its types.

import { reporter } from "./console.js";
import type { Source } from "./core.js";
import { inertTracker } from "./inert.js";
import { obtainTracker } from "./registry.js";
import type { AnyEvents, Options, Tracker } from "./types.js";

export type { AnyEvents, Consent, Options, Status, TrackedEvent, Tracker, View } from "./types.js";

/** The wasm in hexadecimal, defined by build.mjs. */
declare const WASM: string;
/** In workers only. */
declare const importScripts: unknown;

// The wasm is inside the module and the fallback is an import, because every bundler supports that without configuration.
const source: Source = {
  wasm: () => new Uint8Array(WASM.length / 2).map((_, at) => parseInt(WASM.slice(2 * at, 2 * at + 2), 16)),
  script: () => import("./fallback.js"),
};

/**
 * Starts a tracker, or returns the existing one for this endpoint and username. It records page views, clicks on elements
 * with `data-tallymark-click`, and the calls of its methods. It returns at once. On a server it does nothing.
 *
 * @example
 * type Events = { charge: { value: number }; signed_up: undefined };
 * const tracker = createTracker<Events>({ endpoint: "https://collect.example", username: "shop", key: "…" });
 * tracker.track("charge", { value: 100 });
 */
export function createTracker<Events = AnyEvents>(options: Options): Tracker<Events> {
  if (typeof document === "undefined") {
    // A server needs no line about that.
    if (typeof importScripts === "function") reporter(source)("worker");
    return inertTracker() as Tracker<Events>;
  }
  return obtainTracker(Object(options), source) as Tracker<Events>;
}
