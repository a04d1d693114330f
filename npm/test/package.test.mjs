// The published package, its use on a server, and both forms of the core.

import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { promisify } from "node:util";
import { instantiate } from "../dist/fallback.js";
import { dice, source } from "./fake.mjs";

const cwd = new URL("..", import.meta.url);
const run = promisify(execFile);
const NOW = 1_763_673_600_000;
const FILES = [
  "fallback.js",
  "fallback.js.map",
  ...["index", "react", "testing", "window"].flatMap((name) =>
    ["cjs", "cjs.map", "d.cts", "d.ts", "js", "js.map"].map((type) => `${name}.${type}`),
  ),
  "tallymark.js",
  "tallymark.js.map",
  "tallymark.wasm",
  "types.d.cts",
  "types.d.ts",
].filter((file) => !/^window.*map$/.test(file));

test("the package contains the expected files only", () => {
  const [{ files }] = JSON.parse(
    execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
      cwd,
      stdio: ["ignore", "pipe", "ignore"],
    }),
  );
  const licences = ["LICENSE-APACHE", "LICENSE-MIT"].filter((file) => existsSync(new URL(file, cwd)));
  assert.deepEqual(
    files.map(({ path }) => path).sort(),
    [...licences, "README.md", ...FILES.map((file) => "dist/" + file), "package.json"].sort(),
  );
});

test("all exported files exist", () => {
  const { exports, sideEffects } = JSON.parse(readFileSync(new URL("package.json", cwd), "utf8"));
  const paths = Object.values(exports).flatMap((entry) => Object.values(entry).flatMap(Object.values));
  for (const path of [...paths, ...sideEffects]) assert.ok(existsSync(new URL(path, cwd)), path);
});

test("no published file contains a path of the build machine", () => {
  const wasm = readFileSync(new URL("dist/tallymark.wasm", cwd));
  assert.ok(
    readFileSync(new URL("dist/index.js", cwd), "utf8").includes(wasm.toString("hex")),
    "the module contains the same wasm as the file",
  );
  for (const file of FILES) {
    assert.doesNotMatch(
      readFileSync(new URL("dist/" + file, cwd), "latin1"),
      /\/(root|home|work|tmp|rustc|cargo|rustup|var)\b|\.(cargo|rustup)/,
      file,
    );
  }
});

test("source maps contain their sources", () => {
  for (const file of FILES.filter((file) => file.endsWith(".map"))) {
    const { sources, sourcesContent } = JSON.parse(readFileSync(new URL("dist/" + file, cwd), "utf8"));
    assert.ok(
      sources.length &&
        sources.every((source, at) => /^\.\.\/(src\/\w+\.ts|build\/core\.js)$/.test(source) && sourcesContent[at]),
      String(sources),
    );
  }
});

test("publint finds no problems", async () => {
  const { stdout } = await run("node_modules/.bin/publint", ["--strict"], { cwd });
  assert.match(stdout, /All good/);
});

test("its types are found in every module resolution", async () => {
  await run(
    "node_modules/.bin/attw",
    [
      "--pack",
      ".",
      "--profile",
      "strict",
      "--exclude-entrypoints",
      "./tallymark.js",
      "./tallymark.wasm",
      "./fallback.js",
    ],
    { cwd },
  );
});

test("on a server a tracker does nothing and does not keep the process alive", () => {
  const script = `
    import { createTracker } from "tallymark";
    import * as react from "tallymark/react";
    const tracker = createTracker({ endpoint: "/", username: "shop", key: "k", debug: true, consent: "pending" });
    tracker.pageView();
    tracker.click("buy");
    tracker.track("charge", { value: 1n });
    tracker.identify("u");
    tracker.setConsent("granted");
    tracker.setConsent("denied");
    tracker.optOut();
    tracker.optIn();
    tracker.flush();
    console.log(JSON.stringify([tracker.status(), Object.keys(react).length > 0]));
  `;
  // A package can import itself by name.
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", script], {
    cwd,
    encoding: "utf8",
    timeout: 20_000,
  });
  const nothing = {
    made: 0,
    adopted: 0,
    delivered: 0,
    rejected: 0,
    dropped: {},
    queued: 0,
    paused: null,
    disabledReason: null,
    ready: false,
    failed: null,
  };
  assert.deepEqual(JSON.parse(said), [nothing, true]);
});

test("in a worker the tracker does nothing, and one line says why", () => {
  const script = `
    globalThis.importScripts = () => {};
    const lines = [];
    console.warn = (line) => lines.push(line);
    const { createTracker } = await import("tallymark");
    const tracker = createTracker({ endpoint: "/", username: "shop", key: "k" });
    tracker.track("n");
    while (!lines.length) await new Promise((resolve) => setTimeout(resolve, 5));
    console.log(JSON.stringify([tracker.status().made, lines]));
  `;
  const printed = execFileSync(process.execPath, ["--input-type=module", "-e", script], {
    cwd,
    encoding: "utf8",
    timeout: 20_000,
  });
  const [made, lines] = JSON.parse(printed);
  assert.equal(made, 0);
  assert.match(lines.join("\n"), /^tallymark: .*worker: create the tracker in the page/);
});

test("CommonJS gets the same package, and its recording tracker sees what a test needs", () => {
  const script = `
    const assert = require("node:assert/strict");
    const { createTracker } = require("tallymark");
    assert.equal(createTracker({}).status().made, 0);
    assert.ok(require("tallymark/react").TallymarkProvider);
    const { createRecordingTracker } = require("tallymark/testing");
    const tracker = createRecordingTracker();
    tracker.identify("anna");
    tracker.pageView({ url: "https://shop.example/" });
    tracker.click("buy", { price: 2.4 });
    tracker.track("charge", { value: 100 });
    assert.deepEqual(
      tracker.events.map(({ event_type, user_id, button_id, name, properties }) => [event_type, user_id, button_id ?? name, properties]),
      [["page_view", "anna", undefined, undefined], ["button_click", "anna", "buy", { price: 2.4 }], ["custom", "anna", "charge", { value: 100 }]],
    );
    assert.throws(() => tracker.track("x".repeat(129)), /name_too_long/);
    tracker.optOut();
    tracker.track("unseen");
    assert.equal(tracker.status().made, 3);
    tracker.reset();
    assert.deepEqual(tracker.events, []);
    assert.throws(() => tracker.track("x", [1]), /invalid_properties/);
  `;
  execFileSync(process.execPath, ["-e", script], { cwd, stdio: "inherit", timeout: 20_000 });
});

/** A host for a core, whose batches are numbers of events. It records all calls. */
function host(seed) {
  const roll = dice(seed);
  const events = new Map();
  const asked = [];
  let last = 0;
  const add = (count) => (roll(20) ? (events.set(++last, count), last) : 0);
  const acts = {
    random: () => roll(1000) / 1000,
    begin: () => add(1),
    extend: (batch) => (roll(20) ? (events.set(batch, events.get(batch) + 1), 1) : 0),
    seal: () => (roll(10) ? 1 : 0),
    part: (_whole, _number, from, to) => add(to - from),
    remove: (batch) => void events.delete(batch),
    size: () => 100 + roll(40_000),
  };
  for (const [name, act] of Object.entries(acts)) {
    acts[name] = (...values) => {
      const given = act(...values);
      asked.push([name, ...values, given]);
      return given;
    };
  }
  return { acts, events, asked };
}

test("the core decides the same as a script and as wasm", async () => {
  const module = await WebAssembly.compile(readFileSync(new URL("dist/tallymark.wasm", cwd)));
  const statuses = [200, 200, 200, 0, 503, 429, 413, 401, 403, 400, 422, 99];
  let calls = 0;
  for (let seed = 1; seed <= 20; seed++) {
    const hosts = [host(seed), host(seed)];
    const cores = [
      (await WebAssembly.instantiate(module, { host: hosts[0].acts })).exports,
      await instantiate({ host: hosts[1].acts }),
    ];
    const both = (act, ...values) => {
      const [wasm, script] = cores.map((core) => core[act](...values));
      assert.equal(script, wasm, `${act}(${values}) of seed ${seed}`);
      calls++;
      return wasm;
    };
    const roll = dice(seed);
    let now = NOW;
    const flying = [];
    for (let step = 0; step < 2000; step++) {
      const act = roll(20);
      if (act < 10) both("push", now, roll(6000));
      else if (act < 14) {
        let then;
        for (let polls = 0; polls < 100 && (then = both("poll", now)) < 0; polls++) flying.push(-then);
      } else if (act < 18 && flying.length) {
        const [batch] = flying.splice(roll(flying.length), 1);
        const count = hosts[0].events.get(batch) ?? 1;
        const retry = roll(4) ? 0 : roll(count + 2);
        const rejected = roll(3) ? 0 : 1;
        both(
          "answer",
          now,
          batch,
          statuses[roll(statuses.length)],
          [NaN, 0, 5000, 1e12][roll(4)],
          count - retry - rejected,
          rejected,
          retry,
        );
      } else if (act === 18) now += [1, 700, 3000, 400_000, -5000, 3 * 86_400_000][roll(6)];
      else {
        const other = roll(20);
        if (other < 6) both("flush");
        else if (other < 8) both("resume");
        else if (other < 12) both("lose", roll(8), roll(5));
        else if (other === 12) for (const strange of [NaN, -1, 0, 2 ** 53]) both("poll", strange);
      }
      for (let place = 0; place < 10; place++) both("stat", place);
    }
    assert.deepEqual(hosts[1].asked, hosts[0].asked);
    assert.ok(hosts[0].asked.length > 100);
  }
  assert.ok(calls > 20_000);
});

test("drop reasons have the same order and names in the wire format, in the core and in the scripts", async () => {
  const reasons = JSON.parse(readFileSync(new URL("../sdk/tests/wire/reasons.json", cwd), "utf8"));
  const { REASONS } = await source("batches");
  assert.deepEqual(REASONS, reasons);
  const { acts, asked } = host(1);
  Object.assign(acts, { begin: () => 1, size: () => 100, seal: (...values) => (asked.push(values), 1) });
  const code = readFileSync(new URL("dist/tallymark.wasm", cwd));
  const { exports: core } = (await WebAssembly.instantiate(code, { host: acts })).instance;
  const events = reasons.map((_, place) => place + 1);
  for (const [place, count] of events.entries()) core.lose(place, count);
  // The core knows no further reason.
  core.lose(reasons.length, 1);
  const first = 3;
  assert.deepEqual(
    [...events, 0].map((_, place) => core.stat(first + place)),
    [...events, 0],
  );
  core.push(NOW, 100);
  core.flush();
  core.poll(NOW);
  assert.deepEqual(asked, [[1, ...events]], "reported with the batch");
});

test("memory does not grow while the page lives", async () => {
  const { acts, events } = host(3);
  Object.assign(acts, {
    begin: () => (events.set(1e6, 1), 1e6),
    extend: (batch) => events.set(batch, events.get(batch) + 1) && 1,
    seal: () => 1,
    size: () => 1000,
  });
  const {
    instance: { exports: core },
  } = await WebAssembly.instantiate(readFileSync(new URL("dist/tallymark.wasm", cwd)), { host: acts });
  const live = (rounds) => {
    for (let round = 0; round < rounds; round++) {
      core.push(NOW + round, 500);
      for (let then; (then = core.poll(NOW + round)) < 0; )
        core.answer(NOW + round, -then, 200, NaN, events.get(-then), 0, 0);
    }
  };
  live(2000);
  const before = core.memory.buffer.byteLength;
  live(50_000);
  assert.equal(core.memory.buffer.byteLength, before);
  assert.ok(before <= 192 * 1024, `${before} bytes`);
  assert.ok(core.stat(1) > 51_000);
});
