// A page for Node: just enough of a browser for the built package, with a clock that tests move by hand and
// a network that answers what they say.

import { readFileSync } from "node:fs";
import { mock } from "node:test";

export const NOW = 1_763_673_600_000;

const wasm = readFileSync(new URL("../dist/tallymark.wasm", import.meta.url));
const define = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
let pages = 0;

/** The collector's receipt: it takes everything, unless told otherwise. */
export const receipt = (batch, other = {}) =>
  Response.json({
    batch_id: batch.batch_id,
    received_at: Date.now(),
    duplicate: false,
    accepted: batch.events.length,
    rejected: [],
    retry: [],
    ...other,
  });

/**
 * Opens a page. `answer(batch, number, init)` answers each request, from number 0 on; `load()` answers the
 * request for the wasm.
 */
export async function open({ answer = receipt, load, storage = new Map() } = {}) {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: NOW });
  const requests = [];
  const window = new EventTarget();
  const document = Object.assign(new EventTarget(), {
    visibilityState: "visible",
    title: "Tea",
    referrer: "https://search.example/",
    baseURI: "https://shop.example/tea/",
  });
  define("document", document);
  define("location", { href: "https://shop.example/tea/?q=1" });
  define("navigator", { onLine: true });
  define("addEventListener", window.addEventListener.bind(window));
  define("sessionStorage", {
    getItem: (name) => storage.get(name) ?? null,
    setItem: (name, value) => storage.set(name, value),
  });
  define("fetch", async (url, init) => {
    if (String(url).endsWith(".wasm")) return (await load?.()) ?? new Response(wasm);
    const text = new TextDecoder().decode(init.body);
    const batch = JSON.parse(text);
    requests.push({ url, init, text, batch, at: Date.now() });
    return answer(batch, requests.length - 1, init);
  });

  const { createTracker } = await import(`../dist/index.js?page=${pages++}`);
  return {
    requests,
    document,
    window,
    /** Every event that arrived, in order. */
    events: () => requests.flatMap(({ batch }) => batch.events),
    track: (options) =>
      createTracker({ endpoint: "https://collect.example", username: "shop", key: "k", pageViews: false, ...options }),
    hide() {
      document.visibilityState = "hidden";
      document.dispatchEvent(new Event("visibilitychange"));
      window.dispatchEvent(new Event("pagehide"));
    },
  };
}

export function close() {
  mock.timers.reset();
  for (const name of ["document", "location", "navigator", "addEventListener", "sessionStorage"]) delete globalThis[name];
}

/** Lets everything happen that needs no time to pass. */
export async function settle() {
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
}

/** Moves the clock, in steps small enough that what a timer starts can go on before the next. */
export async function pass(milliseconds, step = 100) {
  for (let passed = 0; passed < milliseconds; passed += step) {
    mock.timers.tick(step);
    await settle();
  }
}

/** Waits, for real and not for long, until it is so. */
export async function until(condition, what = String(condition)) {
  const deadline = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error("never came: " + what);
    await new Promise(setImmediate);
  }
}

export const ready = (tracker) => until(() => tracker.status().ready, "the wasm core");
