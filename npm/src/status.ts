// Counts what became of the events since the page was shown, for `status()`.

import { REASONS } from "./batches.js";
import type { Core } from "./core.js";
import type { Status } from "./types.js";

/** The places of `REASONS` that this side uses. */
export const QUEUE_FULL = 0;
export const STORAGE = 4;
export const INVALID = 5;
/** Not in `REASONS`: nothing was lost, so it is not reported to the collector. */
export const BOT = REASONS.length;

/** The core's first numbers: the HTTP status that has paused it, delivered, rejected. Those dropped by reason follow. */
const FIRST_REASON = 3;

export interface Counts {
  made: number;
  adopted: number;
  /** Events dropped, by reason, that are not yet reported to the core. */
  dropped: number[];
  /** The core's numbers when they were last read. */
  core: number[];
}

export const newCounts = (made = 0): Counts => ({ made, adopted: 0, dropped: [], core: [] });

/** Reads the core's numbers. */
export function readCore(counts: Counts, core: Core): void {
  counts.core = Array.from({ length: FIRST_REASON + REASONS.length }, (_, place) => core.stat(place));
}

/** The counts in the form of `status()`. `held` events wait for consent. */
export function statusOf({ made, adopted, dropped, core }: Counts, held = 0, batched = 0): Status {
  const [pausedBy = 0, delivered = 0, rejected = 0] = core;
  const status: Status = {
    made: made + held,
    adopted,
    delivered,
    rejected,
    dropped: {},
    queued: held + batched,
    paused: ({ 401: "unauthorized", 403: "forbidden" } as const)[pausedBy] || null,
    disabledReason: null,
    ready: false,
    failed: null,
  };
  [...REASONS, "bot"].forEach((reason, place) => {
    const events = (core[FIRST_REASON + place] || 0) + (dropped[place] || 0);
    if (events) status.dropped[reason] = events;
  });
  return status;
}
