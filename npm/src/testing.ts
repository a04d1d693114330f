// For tests of applications: a tracker that records in memory, without timers, storage or requests.

import { encode, uuid } from "./event.js";
import { inertTracker } from "./inert.js";
import type { AnyEvents, TrackedEvent, Tracker } from "./types.js";

export interface RecordingTracker<Events = AnyEvents> extends Tracker<Events> {
  /** The events so far, in order, in the form in which they would be sent. */
  readonly events: TrackedEvent[];
  /** Forgets the events, the user id, the consent and the opt-out. */
  reset(): void;
}

/**
 * Makes a tracker that keeps its events in `events`. It has the limits of a real one, but throws what a real one counts as
 * `invalid`, so that a test fails. It records nothing automatically.
 *
 * @example
 * const tracker = createRecordingTracker<Events>();
 * checkout(tracker);
 * expect(tracker.events).toMatchObject([{ name: "charge", properties: { value: 100 } }]);
 */
export function createRecordingTracker<Events = AnyEvents>(): RecordingTracker<Events> {
  const events: TrackedEvent[] = [];
  let user: string | undefined;
  let consent = "granted";
  let optedOut = false;
  const session_id = uuid(Date.now());
  const record = (event_type: TrackedEvent["event_type"], fields: Partial<TrackedEvent>) => {
    if (optedOut || consent === "denied") return;
    const event = {
      event_id: uuid(Date.now()),
      event_type,
      occurred_at: Date.now(),
      session_id,
      user_id: user,
      ...fields,
    };
    try {
      events.push(JSON.parse(encode(event)));
    } catch (code) {
      throw new Error(`tallymark: this event would be dropped: ${code}`);
    }
  };
  const tracker: RecordingTracker = {
    ...inertTracker({ ready: true }),
    events,
    reset() {
      events.length = 0;
      user = undefined;
      consent = "granted";
      optedOut = false;
    },
    pageView: ({ url = globalThis.location?.href ?? "/", referralUrl, title, properties } = {}) =>
      record("page_view", { url, referral_url: referralUrl, title, properties }),
    click: (button_id, properties) => record("button_click", { button_id, properties }),
    track: (name, properties?) => record("custom", { name, properties }),
    identify(userId) {
      user = userId == null ? undefined : String(userId);
    },
    setConsent(given) {
      consent = given;
    },
    optOut() {
      optedOut = true;
    },
    optIn() {
      optedOut = false;
    },
  };
  const { status } = tracker;
  tracker.status = () => ({ ...status(), made: events.length, queued: events.length });
  return tracker as unknown as RecordingTracker<Events>;
}
