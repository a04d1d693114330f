// A fake browser for Node: enough for the built package, with a clock and a network that tests control, and any number of
// pages. The pages of a browser share storage and Web Locks.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mock } from "node:test";
import { buildSync, transformSync } from "esbuild";

export const NOW = 1_763_673_600_000;
export const SITE = "tallymark/shop@https://collect.example#";

const dist = (file) => new URL(`../dist/${file}`, import.meta.url);
const wasm = readFileSync(dist("tallymark.wasm"));
const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
// Each page runs the package again, with the page's globals in place of Node's.
const program = (file, options) => {
  const { code } = transformSync(readFileSync(dist(file), "utf8"), options);
  return new Function(
    "page",
    `with (page) { ${code.replaceAll("import(", "importScript(")}; return ${options.globalName ?? "tallymark"}; }`,
  );
};
/** Pages of earlier browsers are dead: what they have begun must not disturb the next test. */
let latest;
const fallback = await import(dist("fallback.js"));
const runModule = program("index.js", { format: "iife", globalName: "exported" });
const runFallback = program("fallback.js", { format: "iife", globalName: "exported" });
const runTag = program("tallymark.js", {});

/** Loads a source module with its imports. */
export function source(name) {
  const entry = new URL(`../src/${name}.ts`, import.meta.url).pathname;
  const [{ text }] = buildSync({
    entryPoints: [entry],
    bundle: true,
    format: "esm",
    write: false,
    define: { VERSION: JSON.stringify(version) },
  }).outputFiles;
  return import("data:text/javascript," + encodeURIComponent(text));
}

/** `localStorage`: its items are its own properties. */
class Storage {
  #quota;
  constructor(quota) {
    this.#quota = quota;
  }
  getItem(name) {
    return Object.hasOwn(this, name) ? this[name] : null;
  }
  setItem(name, value) {
    const used = Object.entries(this).reduce(
      (sum, [key, text]) => sum + (key === name ? 0 : key.length + text.length),
      0,
    );
    if (used + name.length + value.length > this.#quota()) throw new DOMException("full", "QuotaExceededError");
    this[name] = String(value);
  }
  removeItem(name) {
    delete this[name];
  }
}

const never = new Promise(() => {});

/** `navigator.locks` of one page. Pages share `all`: the queue of each name, whose first entry holds the lock. */
function locksOf(page, all) {
  return {
    async request(name, options, callback = options) {
      if (page.gone) return never;
      const queue = all.get(name) ?? [];
      all.set(name, queue);
      if (options.ifAvailable && queue.length) return callback(null);
      const request = { page };
      const granted = new Promise((resolve) => (request.grant = resolve));
      queue.push(request);
      if (queue.length === 1) request.grant();
      await granted;
      if (page.gone) return never;
      try {
        return await callback({ name });
      } finally {
        release(all, (other) => other === request);
      }
    },
  };
}

function release(all, which) {
  for (const [name, queue] of all) {
    const first = queue[0];
    const left = queue.filter((request) => !which(request));
    all.set(name, left);
    if (left[0] !== first) left[0]?.grant();
  }
}

/** A document, whose properties are on the prototype as in a browser. */
class Document extends EventTarget {
  #state;
  constructor(state) {
    super();
    this.#state = state;
  }
  createElement() {
    return { remove() {} };
  }
  static {
    for (const name of ["title", "referrer", "hidden", "prerendering", "currentScript", "scripts", "documentElement"]) {
      Object.defineProperty(Document.prototype, name, {
        get() {
          return this.#state[name];
        },
        set(value) {
          this.#state[name] = value;
        },
      });
    }
  }
}

class Element {
  constructor(attributes) {
    this.attributes = attributes;
  }
  getAttribute(name) {
    return this.attributes[name] ?? null;
  }
  closest() {
    return null;
  }
  contains() {
    return false;
  }
  /** The tests need only selectors of attributes. */
  matches(selector) {
    if (!(this instanceof Element)) throw new TypeError("Illegal invocation");
    return selector === "*" || selector.slice(1, -1) in this.attributes;
  }
}

/** A receipt of the collector, which accepts everything unless `other` says something else. */
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

/** An answer that is not a receipt. */
export const status = (status, headers) => new Response(status === 204 ? null : "", { status, headers });

/**
 * A browser. `answer(batch, number, init)` answers each request, numbered from 0; `load()` answers the request for the wasm;
 * `fallback()` may reject that for fallback.js.
 * All options may be changed at any time.
 */
export function browser(changes = {}) {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: NOW });
  const locks = new Map();
  const self = (latest = {
    answer: (batch) => receipt(batch),
    load: undefined,
    fallback: undefined,
    /** Whether the collector answers requests without CORS. */
    healthy: false,
    locks: true,
    wasm: true,
    quota: Infinity,
    /** By how much the wall clock is wrong. */
    wrong: 0,
    refused: false,
    navigator: {},
    /** Every request to the collector, in order. */
    requests: [],
    /** The lines in the console. */
    lines: [],
    storage: new Storage(() => self.quota),
    ...changes,
    /** Every event of every request, in order, with repetitions. */
    events: () => self.requests.flatMap(({ batch }) => batch.events),
    /** The names in storage, without the prefix. */
    names: () => Object.keys(self.storage).map((name) => name.split("#")[1]),
    /** The stored batches. */
    stored: () =>
      Object.entries(self.storage)
        .filter(([name]) => name.slice(SITE.length)[36] === "/")
        .map(([, text]) => text),
    /** The names of held locks. */
    held: () => [...locks].filter(([, queue]) => queue.length).map(([name]) => name),
    open,
  });

  function open({
    url = "https://shop.example/tea/?q=1",
    referrer = "https://search.example/",
    hidden = false,
    prerendering = false,
  } = {}) {
    const timers = new Set();
    let frozen;
    const page = Object.assign(new EventTarget(), { gone: false });
    const ifAlive =
      (act) =>
      (...values) =>
        void (!page.gone && latest === self && act(...values));
    // Loads the script.
    const documentElement = {
      append: ({ onload, onerror }) => void Promise.resolve(self.fallback?.()).then(onload, onerror),
    };
    const document = new Document({
      title: "Tea",
      referrer,
      hidden,
      prerendering,
      currentScript: null,
      scripts: [],
      documentElement,
    });
    const location = new URL(url);
    const go = (_, __, to) => {
      if (to !== undefined) location.href = new URL(to, location.href).href;
    };
    Object.assign(page, {
      document,
      Document,
      location,
      history: { pushState: go, replaceState: go },
      navigator: { onLine: true, ...self.navigator, ...(self.locks && { locks: locksOf(page, locks) }) },
      Element,
      console: Object.fromEntries(
        ["warn", "error"].map((level) => [level, (...words) => self.lines.push(words.map(String).join(" "))]),
      ),
      WebAssembly: {
        instantiate: (...of) =>
          self.wasm ? WebAssembly.instantiate(...of) : Promise.reject(new WebAssembly.CompileError("policy")),
      },
      Date: class extends Date {
        static now = () => Date.now() + self.wrong;
      },
      performance: { now: () => Date.now() },
      async importScript() {
        await self.fallback?.();
        // What uses the page must run in it.
        const { explain, createLeases } = runFallback(page);
        return { ...fallback, explain, createLeases };
      },
      setTimeout: (act, wait = 0) => {
        const run = () => void (timers.delete(timer) && ifAlive(act)());
        const timer = setTimeout(() => (frozen ? frozen.push(run) : run()), wait);
        timers.add(timer);
        return timer;
      },
      setInterval: (act, wait) => setInterval(() => frozen || ifAlive(act)(), wait),
      // Node's mock can clear another timer when this one is over.
      clearTimeout: (timer) => void (latest === self && timers.delete(timer) && clearTimeout(timer)),
      clearInterval: (timer) => void (latest === self && clearInterval(timer)),
      // A page that has ended gets no answer.
      fetch: (url, init) => new Promise((resolve, reject) => fetch(url, init).then(ifAlive(resolve), ifAlive(reject))),
    });
    Object.defineProperty(page, "localStorage", {
      get() {
        if (self.refused || page.gone) throw new DOMException("refused", "SecurityError");
        return self.storage;
      },
    });
    page.globalThis = page.window = page;
    async function fetch(url, init) {
      if (page.gone) return never;
      if (String(url).endsWith("/health")) return self.healthy ? status(200) : Promise.reject(new TypeError("failed"));
      if (String(url).endsWith(".wasm")) return (await self.load?.()) ?? new Response(wasm);
      const text = init.body;
      const batch = JSON.parse(text);
      self.requests.push({ url, init, text, batch, at: Date.now() });
      return self.answer(batch, self.requests.length - 1, init);
    }
    const { createTracker } = runModule(page);
    const element = (dataset) => ({
      src: "https://shop.example/lib/tallymark.js",
      integrity: "",
      dataset: { endpoint: "https://collect.example", username: "shop", key: "k", ...dataset },
    });
    const show = (visible) => {
      document.hidden = !visible;
      document.dispatchEvent(new Event("visibilitychange"));
    };
    return Object.assign(page, {
      createTracker,
      track: (options) =>
        createTracker({
          endpoint: "https://collect.example",
          username: "shop",
          key: "k",
          pageViews: false,
          ...options,
        }),
      /** Runs another copy of the module. */
      copy: () => runModule(page),
      /** Runs the script tag, which loads the wasm. */
      tag(dataset) {
        document.currentScript = element({ pageViews: "false", ...dataset });
        return runTag(page);
      },
      /** The same with `type="module"`, where no script is the current one. */
      tagAsModule() {
        document.currentScript = null;
        document.scripts = [element({ src: "other.js" }), { ...element(), type: "module" }];
        return runTag(page);
      },
      /** Another tab becomes visible, or this one again. */
      show,
      /** The page is left, and may be restored. */
      hide() {
        show(false);
        page.dispatchEvent(new Event("pagehide"));
      },
      comeBack() {
        document.hidden = false;
        page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
        document.dispatchEvent(new Event("visibilitychange"));
      },
      /** The number of timeouts that are pending. */
      timers: () => timers.size,
      /** The page is frozen without any event: its timers do not run until the returned function is called. */
      freeze() {
        frozen = [];
        return () => {
          const late = frozen;
          frozen = undefined;
          for (const act of late) act();
        };
      },
      /** The page ends without any event. */
      crash() {
        page.gone = true;
        release(locks, (request) => request.page === page);
      },
      close() {
        page.hide();
        // After the microtasks of the listeners.
        setImmediate(page.crash);
      },
      emit: (name) => page.dispatchEvent(new Event(name)),
      press(attributes) {
        const path = [new Element(attributes), document, page];
        page.dispatchEvent(Object.assign(new Event("click"), { composedPath: () => path }));
      },
      online(onLine) {
        page.navigator.onLine = onLine;
        page.dispatchEvent(new Event(onLine ? "online" : "offline"));
      },
    });
  }
  return self;
}

/** Waits for everything that needs no time to pass. */
export async function settle() {
  for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate);
}

/** Moves the clock, in steps small enough for the effects of one timer to happen before the next. */
export async function pass(milliseconds, step = Math.max(100, milliseconds / 200)) {
  for (let passed = 0; passed < milliseconds; passed += step) {
    mock.timers.tick(step);
    await settle();
  }
}

/** Waits in real time for a condition. */
export async function until(condition, what = String(condition)) {
  const deadline = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error("timed out waiting for " + what);
    await new Promise(setImmediate);
  }
}

/** Waits until the core runs. */
export async function ready(...trackers) {
  for (const tracker of trackers) await until(() => tracker.status().ready, "the core");
  await settle();
}

/** Asserts that `status()` adds up. */
export function adds(tracker) {
  const { made, adopted, delivered, rejected, queued, dropped } = tracker.status();
  const all = delivered + rejected + queued + Object.values(dropped).reduce((sum, events) => sum + events, 0);
  assert.equal(made + adopted, all, JSON.stringify(tracker.status()));
}

/** A seeded random number generator: integers from 0 to below `end`. */
export function dice(seed) {
  return (end) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * end);
  };
}
