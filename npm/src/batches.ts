// Batches until the collector has answered for them: as text, each under a name of its own, in storage where it
// takes them and in memory where it does not. The form is that of the Rust crate's body.rs: one event a line.

import { bytes, timeOf, uuid } from "./event.js";
import type { Kept } from "./kept.js";

/** Why events are dropped, in the order in which the core numbers them. */
export const REASONS = ["queue_full", "expired", "refused", "too_large", "storage", "invalid"];

/** Where the id of a batch begins in its name: after its lane. */
const ID = 37;
/** How much is kept before the core is there, at most. */
const EARLY_CHARACTERS = 20_000;
const EARLY_BATCHES = 30;
const SDK = "tallymark-js/0.1.0";
const CLOSING = "\n]}";
/** A part is called like its whole, and by its number. */
const PART = /\.\d$/;

interface Batch {
  name: string;
  text: string;
  events: number;
  /** Whether it is in storage. If not, it lives as long as the page. */
  stored: boolean;
}

/** What the core asks for. Batches have numbers; 0 and `false` say that it could not be done. */
export interface Host {
  /** From 0 to 1. */
  random(): number;
  /** Begins a batch with the event at hand. */
  begin(now: number): number;
  /** Adds the event at hand. */
  extend(batch: number): boolean;
  /** Gives a batch its end, with the losses that it shall report. */
  seal(batch: number, ...lost: number[]): boolean;
  /** Makes a batch of some events of another: as part 0 those asked for again, as others a range. */
  part(whole: number, number: number, from: number, to: number): number;
  remove(batch: number): void;
  /** Its length in bytes. */
  size(batch: number): number;
}

export interface Batches extends Host {
  /** The event at hand, as JSON. */
  event: string;
  /** The indexes that the collector has asked for again. */
  asked: number[];
  /** Every batch by its number. */
  all: Map<number, Batch>;
  /** The body to send. */
  body(batch: number): string;
  /** When it was made. */
  madeAt(batch: number): number;
  /** The batch that events go into while there is no core, if one is begun. */
  early: number;
  /** Keeps the event at hand while there is no core. `false` if there is no more room. */
  addEarly(now: number): boolean;
  /** Writes what was added. Not with each event: a task that tells many has them written once, when it ends. */
  save(): void;
  /** Takes over the batches of a lane. Says how many could not be read. */
  adopt(lane: string): [found: number[], corrupt: number];
  /** Lets go of what is in storage: somebody else may take it over. */
  leave(): void;
}

/** `lane` names the lane of new batches. */
export function batches(kept: Kept, lane: () => string): Batches {
  const all = new Map<number, Batch>();
  let last = 0;
  /** Those that have changed. They are in storage, as far as it takes them, before anything is sent. */
  const unsaved = new Set<number>();
  const add = (batch: Batch) => (all.set(++last, batch), last);
  const opening = (id: string) => `{"batch_id":"${id}","sdk":"${SDK}","events":[\n`;
  const closed = (text: string) => (text.includes("\n]") ? text : text + CLOSING);

  const self: Batches = {
    event: "",
    asked: [],
    early: 0,
    all,
    random: Math.random,
    begin(now) {
      const id = uuid(now);
      const name = lane() + "/" + id;
      unsaved.add(add({ name, text: opening(id) + self.event, events: 1, stored: true }));
      return last;
    },
    extend(number) {
      const batch = all.get(number)!;
      batch.text += ",\n" + self.event;
      batch.events++;
      unsaved.add(number);
      return true;
    },
    seal(number, ...lost) {
      const said = lost.map((events, reason) => events && `"${REASONS[reason]}":${events}`).filter(Boolean);
      all.get(number)!.text += said.length ? `\n],"lost":{${said}}}` : CLOSING;
      unsaved.add(number);
      return true;
    },
    part(whole, number, from, to) {
      const { name, text, events, stored } = all.get(whole)!;
      const lines = text.split("\n").slice(1, events + 1).map((line) => line.replace(/,$/, ""));
      const chosen = lines.filter((_, at) => (number ? at >= from && at < to : self.asked.includes(at)));
      if (chosen.length !== to - from) return 0;
      const part = { name: name + "." + number, text: opening(uuid(self.madeAt(whole))) + chosen.join(",\n") + CLOSING, events: to - from, stored };
      // What was safe stays safe, or stays whole.
      return stored && !kept.set(part.name, part.text) ? 0 : add(part);
    },
    remove(number) {
      const batch = all.get(number)!;
      if (batch.stored) kept.set(batch.name);
      all.delete(number);
    },
    size: (number) => bytes(all.get(number)!.text),
    body: (number) => closed(all.get(number)!.text),
    madeAt: (number) => timeOf(all.get(number)!.name.slice(ID)),
    save() {
      for (const number of unsaved) {
        const batch = all.get(number);
        if (!batch?.stored) continue;
        batch.stored = kept.set(batch.name, batch.text);
        // What is there of it must not be taken for the whole.
        if (!batch.stored) kept.set(batch.name);
      }
      unsaved.clear();
    },
    addEarly(now) {
      const open = all.get(self.early);
      if (open && open.text.length + self.event.length < EARLY_CHARACTERS && self.extend(self.early)) return true;
      return all.size < EARLY_BATCHES && !!(self.early = self.begin(now));
    },
    adopt(lane) {
      const names = kept.names().filter((name) => name.startsWith(lane + "/")).sort();
      const found: number[] = [];
      let corrupt = 0;
      for (const name of names) {
        try {
          // A part beside its whole was never sent: the page was gone while it divided the batch.
          if (PART.test(name) && names.includes(name.replace(PART, ""))) throw 0;
          const text = closed(kept.get(name)!);
          const { batch_id, events } = JSON.parse(text);
          // Another version of the tracker may have begun it, with another name.
          if (!text.startsWith(`{"batch_id":"${batch_id}"`)) throw 1;
          found.push(add({ name, text, events: events.length, stored: true }));
        } catch (damage) {
          if (damage) corrupt++;
          kept.set(name);
        }
      }
      return [found, corrupt];
    },
    leave() {
      self.save();
      for (const [number, { stored }] of all) if (stored) all.delete(number);
      self.early = 0;
    },
  };
  return self;
}
