// Pages that get in the way: odd globals, clocks and arguments, and applications that clear or fill the storage.

import assert from "node:assert/strict";
import { test } from "node:test";
import { adds, browser, NOW, pass, ready, receipt, SITE, settle, status, until } from "./fake.mjs";

async function start(options, changes, page) {
  const site = browser(changes);
  const opened = site.open(page);
  const tracker = opened.track(options);
  await ready(tracker);
  return { site, page: opened, tracker };
}

test("identify converts numbers, and refuses what cannot be an id with a line, keeping the events", async () => {
  const { site, tracker } = await start();
  const ids = [
    42,
    "u".repeat(128),
    "u".repeat(129),
    "é".repeat(65),
    {},
    () => {},
    Symbol("u"),
    true,
    null,
    "anna",
    undefined,
  ];
  for (const id of ids) {
    tracker.identify(id);
    tracker.track("n");
  }
  await pass(3000);
  assert.deepEqual(
    site.events().map(({ user_id }) => user_id),
    ["42", "u".repeat(128), ...Array(7).fill(undefined), "anna", undefined],
  );
  await until(() => site.lines.length >= 6);
  assert.equal(site.lines.length, 6);
  assert.match(site.lines[0], /identify\("uuu.*at most 128 bytes.*no user_id/);
  adds(tracker);
});

test("damaged ids in the storage are replaced, and cost no event", async () => {
  const site = browser();
  site.storage.setItem(SITE + "visitor", "v".repeat(200));
  site.storage.setItem(SITE + "session", `${"s".repeat(200)} ${NOW}`);
  const tracker = site.open().track({ anonymousId: true });
  tracker.track("n");
  await ready(tracker);
  await pass(3000);
  const [{ anonymous_id, session_id }] = site.events();
  assert.deepEqual([anonymous_id.length, session_id.length, tracker.status().dropped], [36, 36, {}]);
});

test("an unknown consent is refused with a line and changes nothing", async () => {
  for (const consent of ["pending", "granted", "denied"]) {
    const site = browser();
    const tracker = site.open().track({ consent });
    const before = tracker.status();
    for (const odd of [true, "no", "Granted", undefined, null, {}]) tracker.setConsent(odd);
    tracker.track("n");
    await until(() => site.lines.length >= 6);
    assert.match(site.lines[0], /setConsent\("true"\).*"granted", "pending" or "denied"/);
    assert.equal(tracker.status().disabledReason, before.disabledReason);
    assert.equal(tracker.status().made, consent === "denied" ? 0 : 1);
    await pass(3000);
    assert.equal(site.requests.length > 0 || site.stored().length > 0, consent === "granted", consent);
  }
});

test("an application that clears the storage does not undo an opt-out", async () => {
  const site = browser();
  const page = site.open();
  const tracker = page.track();
  tracker.optOut();
  for (const name of Object.keys(site.storage)) site.storage.removeItem(name);
  page.close();
  await settle();
  const next = site.open();
  const again = next.track();
  assert.equal(again.status().disabledReason, "opted_out");
  // Another tab takes it back, which this one must not undo.
  const other = site.open().track();
  other.optIn();
  assert.equal(again.status().disabledReason, null);
  next.close();
  await settle();
  assert.equal(site.open().track().status().disabledReason, null);
});

test("five tabs without a network share one cap, leave room for the application, and count what they drop", async () => {
  const quota = 5 * 1024 * 1024;
  const site = browser({ answer: () => Promise.reject(new TypeError("offline")), quota });
  site.storage.setItem("app", "x".repeat(quota - 400 * 1024));
  const pages = Array.from({ length: 5 }, () => site.open());
  const trackers = pages.map((page) => page.track());
  await ready(...trackers);
  let made = 0;
  for (let round = 0; round < 60; round++) {
    for (const tracker of trackers) {
      for (let event = 0; event < 5; event++) tracker.track(`${made++}`, { text: "x".repeat(1000) });
      await pass(100);
      const used = Object.entries(site.storage).filter(([name]) => name.startsWith("tallymark/"));
      const size = used.reduce((sum, [name, text]) => sum + name.length + text.length, 0);
      assert.ok(size <= 256 * 1024, `${size} characters`);
    }
    site.storage.setItem("of the application", "x".repeat(10_000));
  }
  for (const page of pages) page.close();
  await pass(11_000);
  site.answer = (batch) => receipt(batch);
  site.requests.length = 0;
  let delivered = 0;
  let dropped = 0;
  const last = site.open().track();
  await ready(last);
  // The pages had found their requests blocked.
  await pass(400_000);
  adds(last);
  delivered += last.status().delivered;
  dropped += last.status().dropped.queue_full ?? 0;
  assert.ok(delivered > 100, String(delivered));
  assert.ok(dropped > 100, "counted by the page that adopts");
  assert.ok(
    site.events().some(({ name }) => Number(name) >= made - 25),
    "the newest are there",
  );
  assert.ok(!site.events().some(({ name }) => Number(name) < 100), "the oldest are not");
  assert.deepEqual(site.stored(), []);
});

test("storage that others have nearly filled is left to the application", async () => {
  const site = browser({ answer: () => status(503), quota: 100_000 });
  site.storage.setItem("app", "x".repeat(60_000));
  const tracker = site.open().track();
  await ready(tracker);
  for (let event = 0; event < 100; event++) tracker.track("n", { text: "x".repeat(1000) });
  await settle();
  site.storage.setItem("more", "x".repeat(30_000));
  assert.equal(tracker.status().queued, 100);
  adds(tracker);
});

test("a page without Web Locks that was frozen for long begins a new lane, and no event is lost", async () => {
  const site = browser({ locks: false, answer: () => status(503) });
  const page = site.open();
  const tracker = page.track();
  await ready(tracker);
  tracker.track("before");
  await pass(3000);
  const thaw = page.freeze();
  const counted = new Map();
  site.answer = (batch) => {
    const before = counted.get(batch.batch_id);
    // As the collector: other bytes under an id are refused.
    if (before && JSON.stringify(before) !== JSON.stringify(batch.events)) return status(422);
    counted.set(batch.batch_id, batch.events);
    return receipt(batch);
  };
  await pass(400_000);
  const other = site.open().track();
  await ready(other);
  await pass(2000);
  assert.equal(other.status().adopted, 1);
  thaw();
  tracker.track("after");
  await ready(tracker);
  await pass(20_000);
  assert.deepEqual(
    [...counted.values()]
      .flat()
      .map(({ name }) => name)
      .sort(),
    ["after", "before"],
  );
  adds(tracker);
  adds(other);
});

test("a clock with fractions makes valid ids and times", async () => {
  const site = browser();
  const page = site.open();
  const { now } = Date;
  Date.now = () => now() + 0.4375;
  try {
    const tracker = page.track({ pageViews: true });
    tracker.track("n");
    await ready(tracker);
    await pass(3000);
  } finally {
    Date.now = now;
  }
  assert.equal(site.events().length, 2);
  for (const { batch } of site.requests) {
    assert.match(batch.batch_id, /^[0-9a-f-]{36}$/);
    for (const { event_id, occurred_at } of batch.events) {
      assert.match(event_id, /^[0-9a-f-]{36}$/);
      assert.equal(occurred_at, Math.floor(occurred_at));
    }
  }
});

test("functions on Object.prototype and Prototype.js's toJSON do no harm", async () => {
  Object.prototype.each = function each() {};
  Array.prototype.toJSON = function toJSON() {
    return "[patched]";
  };
  let site;
  try {
    site = browser();
    const page = site.open();
    page.tag({ pageViews: "true" });
    page.tallymark.track("n", { list: [1, { deep: ["a"] }], text: "b" });
    await ready(page.tallymark);
    await pass(3000);
  } finally {
    delete Object.prototype.each;
    delete Array.prototype.toJSON;
  }
  assert.deepEqual(site.lines, []);
  const [, { properties }] = site.events();
  assert.deepEqual(properties, { list: [1, { deep: ["a"] }], text: "b" });
});

test("a read-only history and a document without a title cost nothing else", async () => {
  const site = browser();
  const page = site.open();
  page.history = Object.freeze({ pushState() {}, replaceState() {} });
  Object.defineProperty(page.document, "title", { value: { id: "an element" } });
  Object.defineProperty(page.document, "referrer", { value: { id: "an element" } });
  Object.defineProperty(page.document, "addEventListener", { value: { id: "an element" } });
  page.tag({ pageViews: "true" });
  page.press({ "data-tallymark-click": "buy" });
  await ready(page.tallymark);
  await pass(3000);
  assert.deepEqual(
    site.events().map(({ event_type, title }) => [event_type, title]),
    [
      ["page_view", "Tea"],
      ["button_click", undefined],
    ],
  );
});

test("a browser that is wrongly offline sends once a minute until the collector answers", async () => {
  const { page, site, tracker } = await start();
  page.online(false);
  tracker.track("n");
  await pass(30_000);
  const early = site.requests.length;
  assert.ok(early <= 1);
  await pass(60_000);
  assert.equal(tracker.status().delivered, 1);
  tracker.track("n");
  await pass(3000);
  assert.deepEqual([tracker.status().delivered, tracker.status().paused], [2, null], "it is believed no more");
});

test("redirects are not followed, and shown", async () => {
  const { site, tracker } = await start(
    {},
    { answer: () => Object.defineProperty(new Response(""), "type", { value: "opaqueredirect" }) },
  );
  tracker.track("n");
  await pass(3000);
  assert.equal(site.requests[0].init.redirect, "manual");
  assert.deepEqual([tracker.status().paused, tracker.status().queued], ["redirected", 1]);
  site.answer = (batch) => receipt(batch);
  await pass(60_000);
  assert.deepEqual([tracker.status().paused, tracker.status().delivered], [null, 1]);
});

test("requests carry cookies only if the site wants that", async () => {
  for (const [credentials, sent] of [
    [undefined, "omit"],
    ["same-origin", "same-origin"],
    ["include", "include"],
  ]) {
    const { site, tracker } = await start({ credentials });
    tracker.track("n");
    await pass(3000);
    assert.equal(site.requests[0].init.credentials, sent);
  }
});

test("/ is the page's origin, whatever its <base> says", async () => {
  const { site, page, tracker } = await start({ endpoint: "/" });
  page.document.baseURI = "https://cdn.example/assets/";
  tracker.track("n");
  await pass(3000);
  assert.equal(site.requests[0].url, "https://shop.example/v1/batch");
});

const REASONS = [
  ["a wrong key", () => status(401), /refuses the username "shop" with this key.*Correct `username` or `key`/],
  [
    "an unknown origin",
    () => Response.json({ code: "origin_not_allowed" }, { status: 403 }),
    /does not know the origin https:\/\/shop\.example.*site set shop --origin https:\/\/shop\.example/,
  ],
  ["another refusal", () => Response.json({ code: "key_not_allowed" }, { status: 403 }), /403 key_not_allowed/],
  ["a wrong endpoint", () => status(404), /no collector at https:\/\/collect\.example \(404\)/],
  ["a captive portal", () => new Response("<html>"), /not a receipt/],
  [
    "a collector that is down",
    () => Promise.reject(new TypeError("failed")),
    /no answer from https:\/\/collect\.example\. The collector is down/,
  ],
  [
    "CORS",
    () => Promise.reject(new TypeError("CORS")),
    /is running, but this page may not use it.*site set shop/,
    true,
  ],
];

for (const [what, answer, expected, healthy] of REASONS) {
  test(`with debug, one line says what to do: ${what}`, async () => {
    const { site, tracker } = await start({ debug: true }, { answer, healthy });
    tracker.track("n");
    await pass(10_000);
    await until(() => site.lines.length);
    assert.equal(site.lines.length, 1, site.lines.join("\n"));
    assert.match(site.lines[0], expected);
    assert.equal(tracker.status().queued, 1);
  });
}

test("without debug, nothing is said about the collector", async () => {
  const { site, tracker } = await start({}, { answer: () => status(403) });
  tracker.track("n");
  await pass(10_000);
  assert.deepEqual([site.lines, tracker.status().paused], [[], "forbidden"]);
});

test("with zone.js, timers and requests are outside of the application's zone, and an idle page has no timer", async () => {
  const site = browser();
  const page = site.open();
  let depth = 0;
  const inside = [];
  page.Zone = {
    root: {
      run(act) {
        depth++;
        try {
          return act();
        } finally {
          depth--;
        }
      },
    },
  };
  for (const name of ["setTimeout", "setInterval", "fetch"]) {
    const original = page[name];
    page[name] = (...args) => {
      if (!depth) inside.push(name);
      return original(...args);
    };
  }
  const tracker = page.track();
  await ready(tracker);
  assert.equal(page.timers(), 0, "nothing to do, no timer");
  tracker.track("n");
  tracker.flush();
  await pass(3000);
  assert.equal(tracker.status().delivered, 1);
  assert.deepEqual(inside, []);
  assert.equal(page.timers(), 0);
});

test("the package loads and works without TextEncoder", async () => {
  const { TextEncoder } = globalThis;
  delete globalThis.TextEncoder;
  try {
    const { site, tracker } = await start();
    tracker.track("thé", { text: "🍵" });
    await pass(3000);
    assert.equal(site.events()[0].name, "thé");
  } finally {
    globalThis.TextEncoder = TextEncoder;
  }
});
