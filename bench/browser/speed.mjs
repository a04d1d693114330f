// What each tracker costs the page, in one Chromium: how long a call takes, what comes later for it, and what loading
// takes. Prints the tables of npm/SPEED.md. ROUNDS and TIMED (groups of calls) make it shorter or longer.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { gunzipSync } from "node:zlib";
import { openBrowser, until } from "../../npm/test/support.mjs";
import { PEERS, scripts, unpacked } from "./peers.mjs";

const ROUNDS = Number(process.env.ROUNDS ?? 5);
const GROUPS = Number(process.env.TIMED ?? 100);
/** Calls timed together, since the clock of a page goes in steps of 5 µs, and the pause between, in milliseconds. */
const CALLS = 10;
const PAUSE = 20;
/** How many events wait for an answer before the calls are timed. */
const QUEUED = [0, 50, 500];

const NAME = "charge_made";
const PROPERTIES = `{ plan: "pro", value: 42, trial: false }`;
const dist = (name) => readFileSync(new URL(`../../npm/dist/${name}`, import.meta.url));
const peer = (name) => PEERS.find((peer) => peer.name.startsWith(name));
const [posthog, snowplow, mixpanel, openpanel] = ["posthog", "snowplow", "mixpanel", "openpanel"].map(peer);
const form = (body) => new URLSearchParams(body.toString()).get("data");

/**
 * Each as its documentation has it: `head` starts it, `began` is marked by its script's first line, and the page calls
 * `can()` when it takes events and `ready()` when all of it is there. Recording, flags, and what it counts by itself
 * are off; where it keeps things is left as it is. `count` says how many events a request has brought, and `answer`
 * what the collector says to that.
 */
const TRACKERS = [
  {
    name: "nothing at all",
    script: "",
    head: () => `<script src="/lib.js"></script><script>window.send = () => {}; can(); ready()</script>`,
  },
  {
    name: "**tallymark**",
    script: dist("tallymark.js"),
    head: (
      sink,
    ) => `<script src="/lib.js" data-endpoint="${sink}" data-username="shop" data-key="k" data-page-views="false" data-bots="keep"></script>
      <script>can(); send = (name, properties) => tallymark.track(name, properties); whenever(() => tallymark.status().ready)</script>`,
    count: (body) => JSON.parse(body).events.length,
    answer: (body, events) => ({
      batch_id: JSON.parse(body).batch_id,
      received_at: Date.now(),
      duplicate: false,
      accepted: events,
      rejected: [],
      retry: [],
    }),
    queue: true,
  },
  {
    name: snowplow.name.split(" +")[0],
    script: scripts(snowplow)[0],
    head: (sink) => `<script src="/lib.js"></script><script>
      snowplowBrowserTracking.newTracker("sp", "${sink}", { appId: "shop" }); can(); ready();
      send = (name, data) => snowplowBrowserTracking.trackSelfDescribingEvent({ event: { schema: "iglu:shop.example/" + name + "/jsonschema/1-0-0", data } });
    </script>`,
    count: (body) => JSON.parse(body).data.length,
    answer: () => ({}),
    queue: true,
  },
  {
    name: mixpanel.name,
    script: scripts(mixpanel)[0],
    head: (
      sink,
    ) => `<script>MIXPANEL_CUSTOM_LIB_URL = "/lib.js"; ${unpacked("mixpanel-browser@2.83.0", "dist/mixpanel-jslib-snippet.min.js")};
      mixpanel.init("token", { api_host: "${sink}", autocapture: false, track_pageview: false, record_sessions_percent: 0, loaded() { can(); ready() } });
      send = (name, properties) => mixpanel.track(name, properties);
    </script>`,
    count(body) {
      const data = form(body);
      return JSON.parse(data[0] === "[" ? data : Buffer.from(data, "base64").toString()).length;
    },
    answer: () => ({ status: 1, error: null }),
  },
  {
    name: posthog.name,
    script: scripts(posthog)[0],
    // It would drop all but ten events a second.
    head: (sink) => `<script>
      posthog = Object.assign([], { __SV: 1, _i: [["token", {
        api_host: "${sink}", autocapture: false, capture_pageview: false, capture_pageleave: false, disable_session_recording: true,
        advanced_disable_flags: true, disable_surveys: true, disable_external_dependency_loading: true, opt_out_useragent_filter: true,
        rate_limiting: { events_per_second: 1e6, events_burst_limit: 1e6 }, loaded() { can(); ready() },
      }, "posthog"]] });
      send = (name, properties) => posthog.capture(name, properties);
    </script><script async src="/lib.js"></script>`,
    count: (body) => gunzipSync(body).toString().split(`"event":"${NAME}"`).length - 1,
    answer: () => ({ status: 1 }),
  },
  {
    name: openpanel.name,
    script: scripts(openpanel)[0],
    head: (sink) => `<script>
      op = function () { op.q.push([].slice.call(arguments)) }; op.q = [];
      op("init", { clientId: "shop", apiUrl: "${sink}" });
      send = (name, properties) => op("track", name, properties);
    </script><script src="/lib.js"></script><script>can(); ready()</script>`,
    count: () => 1,
    answer: () => ({ deviceId: "d", sessionId: "s" }),
  },
];

/** In every page, before the tracker. */
const HARNESS = `<script>
  const longTasks = [], times = {};
  new PerformanceObserver((list) => longTasks.push(...list.getEntries().map(({ duration }) => duration))).observe({ type: "longtask", buffered: true });
  const can = () => (times.can ??= performance.now());
  const ready = () => (times.ready ??= performance.now());
  const { port1, port2 } = new MessageChannel();
  function whenever(condition) {
    port1.onmessage = () => (condition() ? ready() : port2.postMessage(0));
    port2.postMessage(0);
  }
  const rest = (pause) => new Promise((resolve) => setTimeout(resolve, pause));
  /** Microseconds a call, of each group. */
  async function measure(groups, pause) {
    const found = [];
    for (let group = 0; group < groups; group++) {
      await rest(pause);
      const start = performance.now();
      for (let call = 0; call < ${CALLS}; call++) send("${NAME}", ${PROPERTIES});
      found.push(((performance.now() - start) * 1000) / ${CALLS});
    }
    return found;
  }
  /** Whether an event is in storage, as it is or in one of the three ways that base64 has for it. */
  function stored(marker) {
    const all = [...Object.values(localStorage), ...Object.values(sessionStorage)].join();
    const coded = [0, 1, 2].map((shift) => btoa(" ".repeat(shift) + marker).slice(4, -4));
    return [marker, ...coded].some((text) => all.includes(text));
  }
  async function keeps(marker) {
    send(marker, ${PROPERTIES});
    if (stored(marker)) return "when the call returns";
    // What was put off to the end of this task has been done, and nothing else has.
    await null;
    if (stored(marker)) return "when the task ends";
    for (let wait = 0; wait < 100; wait++) {
      await rest(20);
      if (stored(marker)) return "a moment later";
    }
    return "never";
  }
</script>`;

let tracker;
let arrived = 0;
let held;
let release;
/** Until it is let go, no request is answered. */
const hold = () => (held = new Promise((resolve) => (release = resolve)));

async function listen(handler) {
  const server = createServer((request, response) =>
    Promise.resolve(handler(request, response)).catch((error) => {
      failures.add(`${tracker?.name}: ${request.method} ${request.url.slice(0, 80)}: ${error.message}`);
      response.destroy();
    }),
  ).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    close: () => (server.close(), server.closeAllConnections()),
  };
}
const failures = new Set();

const sink = await listen(async (request, response) => {
  const headers = {
    "Access-Control-Allow-Origin": request.headers.origin ?? "*",
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Allow-Headers": request.headers["access-control-request-headers"] ?? "",
    "Access-Control-Max-Age": "600",
    "Cross-Origin-Resource-Policy": "cross-origin",
  };
  if (request.method !== "POST")
    return response
      .writeHead(request.method === "OPTIONS" ? 204 : 200, headers)
      .end(request.method === "GET" ? "{}" : "");
  const { count, answer } = tracker;
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  const events = count(body);
  await held;
  arrived += events;
  response.writeHead(200, { ...headers, "Content-Type": "application/json" }).end(JSON.stringify(answer(body, events)));
});

const site = await listen((request, response) => {
  // Isolated pages have the better clock. Nothing is cached, so every load is a first one, compiled anew.
  const headers = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-store",
  };
  const send = (type, body) => response.writeHead(200, { ...headers, "Content-Type": type }).end(body);
  if (request.url === "/tallymark.wasm") send("application/wasm", dist("tallymark.wasm"));
  else if (request.url === "/lib.js") send("text/javascript", `performance.mark("began");\n${tracker.script}`);
  else if (request.url === "/page")
    send("text/html", `<!doctype html><title>Tea</title>${HARNESS}${tracker.head(sink.origin)}`);
  else send("text/html", "<!doctype html><title>Blank</title>");
});

let driver;
const metrics = async () => {
  const { metrics } = await driver.sendAndGetDevToolsCommand("Performance.getMetrics");
  return Object.fromEntries(metrics.map(({ name, value }) => [name, value * 1000]));
};
const run = (script) =>
  driver.executeAsyncScript(
    `const done = arguments[0]; (async () => ${script})().then(done, (error) => done("failed: " + error))`,
  );

/** A visitor who was never here. Gives what loading took, in milliseconds. */
async function open(next) {
  release?.();
  held = undefined;
  await driver.get(site.origin + "/blank");
  await driver.executeScript("localStorage.clear(); sessionStorage.clear()");
  await driver.manage().deleteAllCookies();
  tracker = next;
  arrived = 0;
  const before = await metrics();
  await driver.get(site.origin + "/page");
  await until(() => driver.executeScript("return !!times.ready"), `${next.name}: ready`);
  const after = await metrics();
  const times = await driver.executeScript(`
    if (!crossOriginIsolated) throw Error("the clock is coarse");
    const began = performance.getEntriesByName("began")[0].startTime;
    return { can: times.can - began, ready: times.ready - began, longTasks: longTasks.length }`);
  return {
    ...times,
    script: after.ScriptDuration - before.ScriptDuration,
    task: after.TaskDuration - before.TaskDuration,
  };
}

const allArrived = async (events) => {
  // Each waits for as long as its batches do.
  for (let wait = 0; wait < 600 && arrived < events; wait++) await new Promise((resolve) => setTimeout(resolve, 50));
  if (arrived < events) failures.add(`${tracker.name}: of ${events} events ${arrived} arrived`);
};

const results = new Map(
  TRACKERS.map((tracker) => [tracker, { loads: [], p50: [], p99: [], total: [], queued: QUEUED.map(() => []) }]),
);
const part = (numbers, share) =>
  [...numbers].sort((one, other) => one - other)[Math.min(numbers.length - 1, Math.floor(numbers.length * share))];
const median = (numbers) => part(numbers, 0.5);

try {
  driver = await openBrowser("chromium");
  await driver.manage().setTimeouts({ script: 120_000 });
  await driver.sendDevToolsCommand("Performance.enable");

  for (let round = 0; round < ROUNDS; round++) {
    // Not always after the same one.
    for (let turn = 0; turn < TRACKERS.length; turn++) {
      const tracker = TRACKERS[(turn + round) % TRACKERS.length];
      const result = results.get(tracker);
      for (let load = 0; load < 3; load++) result.loads.push(await open(tracker));

      const before = await metrics();
      const found = await run(`measure(${GROUPS}, ${PAUSE})`);
      if (typeof found === "string") throw new Error(found);
      if (tracker.count) await allArrived(GROUPS * CALLS);
      const after = await metrics();
      result.p50.push(median(found));
      result.p99.push(part(found, 0.99));
      result.total.push(((after.TaskDuration - before.TaskDuration) * 1000) / (GROUPS * CALLS));

      if (tracker.count && !result.keeps) {
        await open(tracker);
        hold();
        result.keeps = await run(`keeps("marker_that_is_long_enough")`);
      }
      if (!tracker.queue) continue;
      for (const [place, queued] of QUEUED.entries()) {
        await open(tracker);
        // As warm as in the end, with an empty queue.
        await run(`measure(50, 5)`);
        await allArrived(50 * CALLS);
        hold();
        await run(`measure(${queued / CALLS}, 5)`);
        result.queued[place].push(median(await run(`measure(10, ${PAUSE})`)));
      }
    }
    console.error(`round ${round + 1} of ${ROUNDS}`);
  }
  await driver.get(site.origin + "/blank");
  release?.();

  const nothing = results.get(TRACKERS[0]);
  const table = (head, rows) => {
    console.log(`| ${head.join(" | ")} |\n|${head.map((_, place) => (place ? "--:" : "---")).join("|")}|`);
    for (const row of rows) console.log(`| ${row.join(" | ")} |`);
    console.log();
  };
  const measured = TRACKERS.slice(1).map((tracker) => [tracker, results.get(tracker)]);
  table(
    ["one call, µs", "p50", "p99", "total", "in `localStorage`"],
    measured.map(([{ name }, { p50, p99, total, keeps }]) => [
      name,
      median(p50).toFixed(1),
      median(p99).toFixed(1),
      (median(total) - median(nothing.total)).toFixed(0),
      keeps,
    ]),
  );
  const load = (name, loads, digits = 1) => median(loads.map((load) => load[name])).toFixed(digits);
  const less = (name, loads) => (load(name, loads, 3) - load(name, nothing.loads, 3)).toFixed(1);
  table(
    ["loading, ms", "takes events after", "ready after", "script", "main thread", "long tasks"],
    measured.map(([{ name }, { loads }]) => [
      name,
      load("can", loads),
      load("ready", loads),
      less("script", loads),
      less("task", loads),
      loads.filter(({ longTasks }) => longTasks).length + " of " + loads.length + " loads",
    ]),
  );
  table(
    ["one call, µs p50, with so many events unanswered", ...QUEUED.map(String)],
    measured
      .filter(([{ queue }]) => queue)
      .map(([{ name }, { queued }]) => [name, ...queued.map((found) => median(found).toFixed(1))]),
  );
  for (const failure of failures) console.log(`- ${failure}`);
} finally {
  await driver?.quit();
  sink.close();
  site.close();
}
