// Loads the core, as WebAssembly or, where that is not allowed, as a script, and calls it. Only numbers pass between
// WebAssembly and JavaScript, so that no generated glue is needed; texts and lists stay on this side during a call.

import type * as Wasm from "../build/tracker_bg.wasm.js";
import type { Batches } from "./batches.js";
import { bytes } from "./event.js";
import type { watchLinks } from "./links.js";
import type { Locks } from "./locks.js";
import type { Storage } from "./storage.js";

/** The functions of tracker-wasm. */
type Exports = typeof Wasm;

/** The functions that tracker-wasm calls: see `host.rs`. */
export interface Host {
  /** From 0 to 1. */
  random(): number;
  begin(): number;
  extend(batch: number): boolean;
  seal(batch: number, ...lost: number[]): boolean;
  /** Part 0 has the events that the collector asked for again, other parts a range of the whole. */
  part(whole: number, number: number, from: number, to: number): number;
  remove(batch: number): void;
  size(batch: number): number;
}

/** Makes a core that works on the batches of this host. */
export type Instantiate = (imports: { host: Host }) => Exports | Promise<Exports>;

/** Where the built core comes from. */
export interface Source {
  wasm(): BufferSource | Promise<BufferSource>;
  /** fallback.js: the same as a script, and what else is rarely needed. */
  script(): Promise<{
    instantiate: Instantiate;
    explain(topic: string, tag: boolean, details: unknown[]): unknown;
    createLeases(storage: Storage, holder: string): Locks;
    watchLinks: typeof watchLinks;
  }>;
  /** Whether the options are attributes of a script tag. */
  tag?: true;
}

/** One queue. */
export interface Core extends Pick<Exports, "adopt" | "lose" | "flush" | "poll" | "resume" | "stat"> {
  /** Reads the clocks. Returns the time of `poll` and `answer` in milliseconds: it passes as time does, however clocks are set. */
  now(): number;
  /** Queues an event, given as JSON, that was made at this time of the wall clock. */
  push(at: number, event: string): void;
  /** Reports the answer to a batch. `retry` has the indexes of the events that the collector asks for again. */
  answer(
    now: number,
    batch: number,
    status: number,
    retryAfter: number,
    accepted: number,
    rejected: number,
    retry: number[],
  ): void;
}

/** Attempts after the first: 1, 4 and 16 seconds later. */
const RETRIES = 3;

let loading: ReturnType<Source["wasm"]> | undefined;

/** Makes a core that works on these batches. Its code is loaded once for all trackers of the page. */
export async function loadCore(source: Source, batches: Batches): Promise<Core> {
  let pushed = "";
  let pushedAt = 0;
  let requested: number[] = [];
  const host: Host = {
    random: Math.random,
    begin: () => batches.begin(pushedAt, pushed),
    extend: (batch) => batches.extend(batch, pushed),
    seal: (batch, ...lost) => batches.seal(batch, lost),
    part: (whole, number, from, to) =>
      batches.part(whole, number, number ? Array.from({ length: to - from }, (_, at) => from + at) : requested),
    remove: batches.remove,
    size: batches.size,
  };
  const exports = await instantiate(source, host);
  const now = () => exports.tick(Date.now(), performance.now());
  return {
    ...exports,
    now,
    push(at, event) {
      pushed = event;
      pushedAt = at;
      exports.push(now(), bytes(event));
    },
    answer(now, batch, status, retryAfter, accepted, rejected, retry) {
      requested = retry;
      exports.answer(now, batch, status, retryAfter, accepted, rejected, retry.length);
    },
  };
}

async function instantiate(source: Source, host: Host): Promise<Exports> {
  for (let attempt = 0; ; attempt++) {
    try {
      loading ||= source.wasm();
      // In one step: where the page's policy forbids WebAssembly, WebKit compiles it and refuses only to run it.
      const { instance } = await WebAssembly.instantiate(await loading, { host } as unknown as WebAssembly.Imports);
      return instance.exports as unknown as Exports;
    } catch {
      loading = undefined;
    }
    try {
      return await (await source.script()).instantiate({ host });
    } catch (error) {
      if (attempt === RETRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * 4 ** attempt));
    }
  }
}
