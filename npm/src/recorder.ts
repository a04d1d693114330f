// Records events in their final form, with their time, and holds them until they may be stored.

import { isBot } from "./bots.js";
import type { Permission } from "./consent.js";
import type { Report } from "./console.js";
import type { Driver } from "./driver.js";
import { addProperties, cut, encode, ID_LENGTH, uuid } from "./event.js";
import type { CheckedOptions } from "./options.js";
import { createSession } from "./session.js";
import { BOT, INVALID, QUEUE_FULL } from "./status.js";
import type { Storage } from "./storage.js";
import type { TrackedEvent } from "./types.js";

/** How many events are held in memory until they may be stored. Beyond that, the oldest is dropped. */
const HELD = 1000;

export interface Recorder {
  /**
   * Records an event that happened at `now`, unless there are no `fields`. What is wrong with it is counted and reported.
   * Returns what is stored.
   */
  record(
    now: number,
    type: TrackedEvent["event_type"],
    fields: () => Partial<TrackedEvent> | false | "",
  ): TrackedEvent | undefined;
  identify(userId: string | number | null): void;
  /** How many events are held. */
  held(): number;
  /** Passes the held events on: they may be stored now. */
  release(): void;
  /** Forgets the held events, the visit and the browser's id. */
  reset(): void;
}

export function createRecorder(
  { sampleRate, anonymousId, beforeSend, bots, debug }: CheckedOptions,
  permission: Permission,
  storage: Storage,
  driver: Driver,
  report: Report,
): Recorder {
  let session = createSession(storage);
  let held: [now: number, event: string][] = [];
  let visitor: string | undefined;
  let user: string | undefined;
  const bot = bots !== "keep" && isBot();

  return {
    record(time, event_type, fields) {
      // Some pages have a clock with fractions.
      const now = Math.floor(time);
      if (permission.disabledReason()) return;
      try {
        const given = fields();
        if (!given) return;
        if (bot && bots === "drop") {
          driver.refuse(BOT);
          return;
        }
        const session_id = session(now);
        // The same decision for the whole visit.
        if (parseInt(session_id.slice(-8), 16) / 2 ** 32 >= sampleRate) return;
        if (anonymousId && !visitor) {
          visitor = storage.get("visitor") || "";
          if (visitor.length !== ID_LENGTH) visitor = uuid(now);
          storage.set("visitor", visitor);
        }
        let event: ReturnType<NonNullable<typeof beforeSend>> = {
          event_id: uuid(now),
          event_type,
          occurred_at: now,
          session_id,
          anonymous_id: visitor,
          user_id: user,
          weight: sampleRate < 1 ? Math.round(1 / sampleRate) : undefined,
          ...given,
        };
        if (bot) event.properties = addProperties({ bot }, given.properties);
        if (beforeSend) event = beforeSend(event as TrackedEvent);
        if (!event) return;
        const json = encode(event);
        if (driver.isOpen()) driver.add(now, json);
        else if (held.push([now, json]) > HELD && held.shift()) driver.refuse(QUEUE_FULL);
        return event;
      } catch (problem) {
        driver.refuse(INVALID);
        if (debug) report("refused", problem);
      }
    },
    identify(userId) {
      const id = typeof userId === "number" ? String(userId) : userId || undefined;
      user = typeof id === "string" && cut("user_id", id) === id ? id : undefined;
      if (id !== user) report("identify", userId);
    },
    held: () => held.length,
    release() {
      if (visitor) storage.set("visitor", visitor);
      for (const [now, event] of held.splice(0)) {
        session(now);
        driver.add(now, event);
      }
    },
    reset() {
      held = [];
      visitor = undefined;
      session = createSession(storage);
    },
  };
}
