// Batches until the collector has acknowledged them: as text, each under its own name, in storage where that works and
// in memory otherwise. The format is that of `body.rs` in the Rust crate: one event per line.

import { bytes, timeOf, uuid } from "./event.js";
import { BATCH, type Storage } from "./storage.js";

/** Why events are dropped, in the order of the core's `Reason`. */
export const REASONS = ["queue_full", "expired", "refused", "too_large", "storage", "invalid"];

/** The package's version, defined by build.mjs. */
declare const VERSION: string;

/** Where the batch id begins in a name: after the lane. */
const ID = 37;
/** How much is stored before the core runs, at most. */
const EARLY_CHARACTERS = 20_000;
const EARLY_BATCHES = 9;
const CLOSING = "\n]}";
/** How much a batch grows until room is made again, in characters. */
const GROWTH = 8000;
/** A part has the name of the whole and a number. */
const PART = /\.\d$/;

interface Batch {
  name: string;
  text: string;
  events: number;
  /** Whether it is in storage. If not, it is lost when the page ends. */
  stored: boolean;
  /** The length from which room is made again before it is saved. */
  roomAt?: number;
}

/** Batches have numbers above 0; 0 and `false` mean that it failed. */
export interface Batches {
  /** Every batch by its number. */
  all: Map<number, Batch>;
  /** Begins a batch with an event, given as JSON. */
  begin(now: number, event: string): number;
  /** Adds an event. */
  extend(batch: number, event: string): boolean;
  /** Closes a batch, with the losses that it reports, in the order of `REASONS`. */
  seal(batch: number, lost: number[]): boolean;
  /** Makes a new batch from the events at these indexes of another. */
  part(whole: number, number: number, indexes: number[]): number;
  remove(batch: number): void;
  /** Its length in bytes. */
  size(batch: number): number;
  /** The request body. */
  body(batch: number): string;
  /** When it was made. */
  madeAt(batch: number): number;
  /** Stores an event while there is no core. `false` if there is no room left. */
  addEarly(now: number, event: string): boolean;
  /** Ends the batch that `addEarly` adds to: the core has it now. */
  endEarly(): void;
  /** Writes what has changed. Called when a task ends and not for each event, because writing is slow. */
  save(): void;
  /** Takes over the batches of a lane. Also returns how many could not be read, and the events dropped to make room. */
  adopt(lane: string): [found: number[], corrupt: number, dropped: number];
  /** Forgets what is in storage, so that another page can adopt it. */
  leave(): void;
}

/** `lane` returns the lane of new batches. */
export function createBatches(storage: Storage, lane: () => string): Batches {
  const all = new Map<number, Batch>();
  let last = 0;
  /** The batch of `addEarly`. */
  let early = 0;
  /** Batches that have changed. They are saved before anything is sent. */
  const unsaved = new Set<number>();
  const add = (batch: Batch) => {
    all.set(++last, batch);
    return last;
  };
  const opening = (id: string) => `{"batch_id":"${id}","sdk":"tallymark-js/${VERSION}","events":[\n`;
  const closed = (text: string) => (text.includes("\n]") ? text : text + CLOSING);

  /** Reads a stored batch. `undefined` if it is damaged. */
  const read = (name: string): Batch | undefined => {
    try {
      const text = closed(storage.get(name)!);
      const { batch_id, events } = JSON.parse(text);
      // Another version of the tracker may have begun it, with another `sdk`.
      if (text.startsWith(`{"batch_id":"${batch_id}"`)) return { name, text, events: events.length, stored: true };
    } catch {
      // Not a batch.
    }
  };

  const self: Batches = {
    all,
    begin(now, event) {
      const id = uuid(now);
      unsaved.add(add({ name: `${lane()}/${id}`, text: opening(id) + event, events: 1, stored: true }));
      return last;
    },
    extend(number, event) {
      const batch = all.get(number)!;
      batch.text += `,\n${event}`;
      batch.events++;
      unsaved.add(number);
      return true;
    },
    seal(number, lost) {
      const reported = lost.map((events, reason) => events && `"${REASONS[reason]}":${events}`).filter(Boolean);
      all.get(number)!.text += reported.length ? `\n],"lost":{${reported}}}` : CLOSING;
      unsaved.add(number);
      return true;
    },
    part(whole, number, indexes) {
      const { name, text, events, stored } = all.get(whole)!;
      const lines = text.split("\n").slice(1, events + 1);
      const chosen = lines.filter((_, at) => indexes.includes(at)).map((line) => line.replace(/,$/, ""));
      if (chosen.length !== indexes.length) return 0;
      const part = {
        name: `${name}.${number}`,
        text: opening(uuid(self.madeAt(whole))) + chosen.join(",\n") + CLOSING,
        events: chosen.length,
        stored,
      };
      // If the part cannot be stored, the whole stays, which is.
      return stored && !storage.set(part.name, part.text) ? 0 : add(part);
    },
    remove(number) {
      const batch = all.get(number)!;
      if (batch.stored) storage.set(batch.name);
      all.delete(number);
    },
    size: (number) => bytes(all.get(number)!.text),
    body: (number) => closed(all.get(number)!.text),
    madeAt: (number) => timeOf(all.get(number)!.name.slice(ID)),
    addEarly(now, event) {
      const open = all.get(early);
      if (open && open.text.length + event.length < EARLY_CHARACTERS) return self.extend(early, event);
      if (all.size >= EARLY_BATCHES) return false;
      early = self.begin(now, event);
      return true;
    },
    endEarly() {
      early = 0;
    },
    save() {
      for (const number of unsaved) {
        const batch = all.get(number);
        if (!batch?.stored) continue;
        // Not each time, because that looks at all that is stored.
        if (batch.text.length >= (batch.roomAt || 0)) {
          batch.roomAt = batch.text.length + GROWTH;
          storage.makeRoom();
          // Not into the last of the quota: the application may need that.
          batch.stored = storage.set(batch.name, batch.text + " ".repeat(BATCH));
        }
        batch.stored &&= storage.set(batch.name, batch.text);
        // A stored beginning must not be taken for the whole batch.
        if (!batch.stored) storage.set(batch.name);
      }
      unsaved.clear();
    },
    adopt(lane) {
      const names = storage
        .names()
        .filter((name) => name.startsWith(`${lane}/`))
        .sort();
      const found: number[] = [];
      let corrupt = 0;
      let dropped = 0;
      for (const name of names) {
        // A part beside its whole was never sent: the page ended while it divided the batch.
        const partial = PART.test(name) && names.includes(name.replace(PART, ""));
        const evicted = Math.max(-Number(storage.get(name)), 0) || 0;
        const batch = partial || evicted ? undefined : read(name);
        if (batch) found.push(add(batch));
        else storage.set(name);
        if (!partial) {
          dropped += evicted;
          if (!batch && !evicted) corrupt++;
        }
      }
      return [found, corrupt, dropped];
    },
    leave() {
      self.save();
      for (const [number, { stored }] of all) if (stored) all.delete(number);
      early = 0;
    },
  };
  return self;
}
