// A tracker that does nothing: on a server, with the option `disabled`, and where the options are wrong.

import { newCounts, statusOf } from "./status.js";
import type { Status, Tracker } from "./types.js";

export function inertTracker(state: Partial<Status> = {}): Tracker {
  const nothing = () => {};
  return {
    pageView: nothing,
    click: nothing,
    track: nothing,
    identify: nothing,
    setConsent: nothing,
    optOut: nothing,
    optIn: nothing,
    flush: nothing,
    status: () => ({ ...statusOf(newCounts()), ...state }),
  };
}
