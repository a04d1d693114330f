// What a page may do to a tracker, and what comes of it.

import assert from "node:assert/strict";
import { afterEach, mock, test } from "node:test";
import { NOW, close, open, pass, ready, settle, until } from "./fake.mjs";

afterEach(close);

test("calls before the core is there keep their order and their times", async () => {
  let load;
  const page = await open({ load: () => new Promise((resolve) => (load = resolve)) });
  const tracker = page.track({ pageViews: true });
  mock.timers.tick(1000);
  tracker.click("early");
  mock.timers.tick(500);
  const properties = { step: 1 };
  tracker.track("checkout", properties);
  properties.step = 2;
  assert.deepEqual([tracker.status().made, tracker.status().queued, tracker.status().ready], [3, 3, false]);
  mock.timers.tick(500);
  load();
  await ready(tracker);
  await settle();
  assert.deepEqual(
    page.events().map(({ event_type, occurred_at, properties }) => [event_type, occurred_at, properties?.step]),
    [
      ["page_view", NOW, undefined],
      ["button_click", NOW + 1000, undefined],
      ["custom", NOW + 1500, 1],
    ],
  );
});

test("a page view says where the visitor is and came from", async () => {
  const page = await open();
  const tracker = page.track({ pageViews: true });
  await ready(tracker);
  tracker.pageView({ url: "/coffee", title: "Coffee", properties: { variant: "b" } });
  tracker.flush();
  await settle();
  const [first, second] = page.events();
  assert.equal(first.url, "https://shop.example/tea/?q=1");
  assert.equal(first.referral_url, "https://search.example/");
  assert.equal(first.title, "Tea");
  assert.equal(second.url, "https://shop.example/coffee");
  assert.equal(second.referral_url, first.url, "the view before");
  assert.deepEqual(second.properties, { variant: "b" });
});

test("a long title is cut, and the view counts", async () => {
  const page = await open();
  page.document.title = "🍵".repeat(10_000);
  const tracker = page.track({ pageViews: true });
  await ready(tracker);
  tracker.flush();
  await settle();
  assert.equal(page.events()[0].title, "🍵".repeat(256));
});

test("bad arguments never throw, are counted, and are told about on request", async () => {
  const circular = {};
  circular.self = circular;
  const deep = JSON.parse('{"a":'.repeat(200) + "1" + "}".repeat(200));
  const bad = [
    (tracker) => tracker.track(),
    (tracker) => tracker.track(7),
    (tracker) => tracker.track(""),
    (tracker) => tracker.track("n".repeat(129)),
    (tracker) => tracker.track("n".repeat(1e6)),
    (tracker) => tracker.track(Symbol("n")),
    (tracker) => tracker.track("n", circular),
    (tracker) => tracker.track("n", { big: 1n }),
    (tracker) => tracker.track("n", [1]),
    (tracker) => tracker.track("n", "text"),
    (tracker) => tracker.track("n", () => {}),
    (tracker) => tracker.track("n", deep),
    (tracker) => tracker.track("n", { text: "x".repeat(1e6) }),
    (tracker) => tracker.track("n", { toJSON() { throw new Error("mine"); } }),
    (tracker) => tracker.click(null),
    (tracker) => tracker.click("b".repeat(257)),
    (tracker) => tracker.pageView({ url: "http://[" }),
    (tracker) => tracker.pageView({ url: "/" + "u".repeat(5000) }),
    (tracker) => tracker.pageView(null),
    (tracker) => tracker.pageView({ get url() { throw new Error("mine"); } }),
  ];
  const said = mock.method(console, "warn", () => {});
  try {
    const page = await open();
    const tracker = page.track({ debug: true });
    for (const call of bad.slice(0, 10)) call(tracker);
    await ready(tracker);
    for (const call of bad.slice(10)) call(tracker);
    tracker.track("good");
    tracker.flush();
    await settle();
    const { made, delivered, dropped } = tracker.status();
    assert.deepEqual({ made, delivered, dropped }, { made: bad.length + 1, delivered: 1, dropped: { invalid: bad.length } });
    assert.equal(page.events().length, 1);
    assert.equal(said.mock.callCount(), bad.length);
  } finally {
    said.mock.restore();
  }
});

test("half a surrogate pair does not cost the batch", async () => {
  const page = await open();
  const tracker = page.track();
  await ready(tracker);
  tracker.track("half \ud83c", { cut: "tea \ud83c", ["key_\ud83c"]: 1, whole: "🍵", literal: "\\ud83c" });
  tracker.flush();
  await settle();
  const [{ text, batch }] = page.requests;
  assert.equal(batch.events[0].name, "half \ufffd");
  assert.deepEqual(batch.events[0].properties, { cut: "tea \ufffd", "key_\ufffd": 1, whole: "🍵", literal: "\\ud83c" });
  assert.ok(!/[^\\]\\ud83c/.test(text), "no escape that is not Unicode");
});

test("missing options are told about once, and nothing throws", async () => {
  const said = mock.method(console, "warn", () => {});
  try {
    const page = await open();
    for (const options of [{ key: "" }, { endpoint: "http://[" }, { username: undefined }]) {
      const before = said.mock.callCount();
      const tracker = page.track(options);
      tracker.click("buy");
      tracker.flush();
      const { made, dropped, failed } = tracker.status();
      assert.deepEqual({ made, dropped, failed }, { made: 1, dropped: { failed: 1 }, failed: "options" });
      assert.equal(said.mock.callCount(), before + 1);
    }
  } finally {
    said.mock.restore();
  }
});

test("a missing wasm turns the tracker off, and it says so", async () => {
  const page = await open({ load: () => new Response("", { status: 404 }) });
  const tracker = page.track();
  tracker.click("before");
  await until(() => tracker.status().failed);
  tracker.click("after");
  const { made, queued, dropped, ready, failed } = tracker.status();
  assert.deepEqual({ made, queued, dropped, ready, failed }, { made: 2, queued: 0, dropped: { failed: 2 }, ready: false, failed: "load" });
});

test("a network that fails while the wasm loads is given another chance", async () => {
  let tries = 0;
  const page = await open({
    load() {
      if (++tries < 3) throw new TypeError("network error");
    },
  });
  const tracker = page.track();
  tracker.click("buy");
  await pass(6000);
  await ready(tracker);
  await pass(2100);
  assert.equal(tries, 3);
  assert.equal(tracker.status().delivered, 1);
});

test("a crash turns the tracker off, and never reaches the page", async () => {
  const page = await open();
  const tracker = page.track();
  await ready(tracker);
  tracker.click("counted");
  tracker.flush();
  await settle();
  const broken = mock.method(crypto, "getRandomValues", () => {
    throw new Error("no randomness");
  });
  try {
    tracker.click("crashes");
  } finally {
    broken.mock.restore();
  }
  tracker.click("after");
  tracker.flush();
  page.hide();
  await pass(5000);
  const { made, delivered, dropped, ready: isReady, failed } = tracker.status();
  assert.deepEqual(
    { made, delivered, dropped, isReady, failed },
    { made: 3, delivered: 1, dropped: { failed: 2 }, isReady: false, failed: "crash" },
  );
});

test("a session goes on across pages, and ends after half an hour of silence", async () => {
  const storage = new Map();
  const sessions = [];
  for (const silence of [0, 0, 31 * 60_000]) {
    const page = await open({ storage });
    const tracker = page.track();
    await ready(tracker);
    mock.timers.tick(silence);
    tracker.click("buy");
    tracker.click("buy");
    tracker.flush();
    await settle();
    const [first, second] = page.events();
    assert.equal(first.session_id, second.session_id);
    sessions.push(first.session_id);
    close();
  }
  assert.equal(sessions[0], sessions[1]);
  assert.notEqual(sessions[1], sessions[2]);
});

test("forbidden storage costs nothing but the session", async () => {
  const forbidden = () => {
    throw new Error("SecurityError");
  };
  const page = await open({ storage: { get: forbidden, set: forbidden } });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("buy");
  tracker.click("buy");
  tracker.flush();
  await settle();
  const [first, second] = page.events();
  assert.ok(first.session_id);
  assert.equal(first.session_id, second.session_id);
});
