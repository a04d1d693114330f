// What the collector gets and when, with a scripted network and clock.

import assert from "node:assert/strict";
import { test } from "node:test";
import { adds, browser, NOW, pass, ready, receipt, SITE, settle, status, until } from "./fake.mjs";

/** A page whose tracker runs. */
async function start(changes, options) {
  const site = browser(changes);
  const page = site.open();
  const tracker = page.track(options);
  await ready(tracker);
  return { site, page, tracker };
}
const broken = () => Promise.reject(new TypeError("network error"));
const names = (text) => JSON.parse(text).events.map(({ name }) => name);

test("a batch is sent within two seconds, with all headers", async () => {
  const { site, tracker } = await start({}, { endpoint: "https://collect.example/in/", username: "café", key: "clé" });
  tracker.track("charge", { value: 100 });
  await pass(1900);
  assert.equal(site.requests.length, 0);
  await pass(200);
  const [{ url, init, batch, at }] = site.requests;
  assert.equal(url, "https://collect.example/in/v1/batch");
  assert.equal(init.method, "POST");
  assert.equal(init.headers.Authorization, "Basic " + Buffer.from("café:clé").toString("base64"));
  assert.equal(init.headers["Content-Type"], "application/json");
  assert.equal(init.headers["tallymark-sent-at"], String(at));
  assert.equal(init.credentials, "omit");
  assert.equal(init.cache, "no-store");
  assert.equal(batch.sdk, "tallymark-js/0.1.0");
  const [{ event_type, occurred_at, name, properties }] = batch.events;
  assert.deepEqual(
    { event_type, occurred_at, name, properties },
    { event_type: "custom", occurred_at: NOW, name: "charge", properties: { value: 100 } },
  );
  const rest = {
    made: 1,
    adopted: 0,
    rejected: 0,
    dropped: {},
    queued: 0,
    paused: null,
    disabledReason: null,
    ready: true,
    failed: null,
  };
  assert.deepEqual(tracker.status(), { ...rest, delivered: 1 });
});

test("a relative endpoint is resolved against the page", async () => {
  for (const [endpoint, url] of [
    ["/", "https://shop.example/v1/batch"],
    ["/in", "https://shop.example/in/v1/batch"],
    ["https://collect.example", "https://collect.example/v1/batch"],
    ["https://collect.example/a///", "https://collect.example/a/v1/batch"],
  ]) {
    const { site, tracker } = await start({}, { endpoint });
    tracker.click("buy");
    tracker.flush();
    await settle();
    assert.equal(site.requests[0].url, url);
  }
});

test("a retry sends the same bytes under the same id, and the event is delivered once", async () => {
  const { site, tracker } = await start({ answer: (batch, number) => (number < 3 ? status(503) : receipt(batch)) });
  tracker.click("buy");
  await pass(20_000);
  assert.equal(site.requests.length, 4);
  assert.equal(new Set(site.requests.map(({ text }) => text)).size, 1);
  assert.equal(tracker.status().delivered, 1);
});

test("Retry-After is respected in seconds and as a date, with 429 and 503", async () => {
  for (const code of [429, 503]) {
    for (const after of ["7", new Date(NOW + 7000).toUTCString()]) {
      const { site, tracker } = await start({
        answer: (batch, number) => (number ? receipt(batch) : status(code, { "Retry-After": after })),
      });
      tracker.click("buy");
      tracker.flush();
      await pass(6900);
      assert.equal(site.requests.length, 1, after);
      await pass(3000);
      assert.equal(site.requests.length, 2, after);
    }
  }
});

test("an invalid or extreme Retry-After does not stop the tracker", async () => {
  for (const after of ["", "soon", "-1", "0", "NaN", "Infinity", "1e99", new Date(NOW - 1e6).toUTCString()]) {
    const { site, tracker } = await start({
      answer: (batch, number) => (number ? receipt(batch) : status(503, { "Retry-After": after })),
    });
    tracker.click("buy");
    tracker.flush();
    await pass(3_700_000 * 24);
    assert.equal(site.requests.length, 2, after);
    assert.equal(tracker.status().delivered, 1, after);
  }
});

test("a wrong key pauses sending and keeps everything", async () => {
  let code = 401;
  const { site, tracker } = await start({ answer: (batch) => (code === 200 ? receipt(batch) : status(code)) });
  tracker.click("buy");
  tracker.flush();
  await settle();
  assert.equal(tracker.status().paused, "unauthorized");
  code = 403;
  await pass(299_000);
  assert.equal(site.requests.length, 1);
  await pass(3000);
  assert.equal(tracker.status().paused, "forbidden");
  assert.equal(site.requests.length, 2);
  assert.equal(tracker.status().queued, 1);
  assert.equal(site.stored().length, 1);
  code = 200;
  await pass(302_000);
  assert.equal(tracker.status().paused, null);
  assert.equal(tracker.status().delivered, 1);
});

test("the answer of a captive portal is not a receipt", async () => {
  const junk = [
    () => new Response("<html>Welcome! Log in to our network</html>"),
    () => Response.json({ ok: true }),
    () => Response.json(null),
    () => Response.json([]),
    (batch) => receipt(batch, { batch_id: "019aa2e6-b9c0-7abc-8def-0123456789ab" }),
    (batch) => receipt(batch, { batch_id: undefined }),
    (batch) => receipt(batch, { accepted: 7 }),
    (batch) => receipt(batch, { accepted: -1 }),
    (batch) => receipt(batch, { accepted: undefined }),
    (batch) => receipt(batch, { rejected: null }),
    (batch) => receipt(batch, { rejected: undefined }),
    (batch) => receipt(batch, { retry: "all" }),
    (batch) => receipt(batch, { retry: null }),
    (batch) => receipt(batch, { accepted: 0, retry: 7 }),
    (batch) => new Response((JSON.stringify({ batch_id: batch.batch_id, accepted: 1 }) + " ").repeat(2)),
    () => status(204),
    () => status(202),
    () => status(302),
    () => status(404),
    () => status(500),
  ];
  for (const answer of junk) {
    const { site, tracker } = await start({ answer: (batch, number) => (number ? receipt(batch) : answer(batch)) });
    tracker.click("buy");
    tracker.flush();
    await settle();
    assert.equal(site.requests.length, 1);
    assert.deepEqual(
      [tracker.status().delivered, tracker.status().queued, site.stored().length],
      [0, 1, 1],
      String(answer),
    );
    await pass(2000);
    assert.deepEqual(
      [tracker.status().delivered, tracker.status().failed, site.stored().length],
      [1, null, 0],
      String(answer),
    );
    assert.equal(site.requests[0].text, site.requests[1].text);
    adds(tracker);
  }
});

test("events to retry are sent in a new batch under the same event ids; rejections are final", async () => {
  const { site, tracker } = await start({
    answer(batch, number) {
      if (!number)
        return receipt(batch, { accepted: 1, rejected: [{ index: 1, code: "c", message: "m" }], retry: [2] });
      assert.deepEqual(site.stored().map(names), [["again"]]);
      return receipt(batch);
    },
  });
  for (const name of ["taken", "rejected", "again"]) tracker.track(name);
  await pass(10_000);
  const [first, second] = site.requests;
  assert.equal(site.requests.length, 2);
  assert.notEqual(second.batch.batch_id, first.batch.batch_id);
  assert.deepEqual(second.batch.events, [first.batch.events[2]]);
  const { made, delivered, rejected, queued } = tracker.status();
  assert.deepEqual({ made, delivered, rejected, queued }, { made: 3, delivered: 2, rejected: 1, queued: 0 });
});

test("an inconsistent receipt is not a receipt", async () => {
  const lies = [
    { accepted: 1, retry: [0, 0] },
    { accepted: 2, retry: [3] },
    { accepted: 2, retry: [-1] },
    { accepted: 2, retry: ["0"] },
    { accepted: 2, retry: [null] },
    { accepted: 2, retry: [0.5] },
    { accepted: 3, retry: [0] },
    { accepted: 0, retry: [0] },
    { accepted: 0, retry: [0, 1, 2, 2] },
    { accepted: 0, retry: "012" },
    { accepted: 4294967295, retry: [0, 1, 2, 0] },
  ];
  for (const lie of lies) {
    const { site, tracker } = await start({
      answer: (batch, number) => (number ? receipt(batch) : receipt(batch, lie)),
    });
    for (const name of ["a", "b", "c"]) tracker.track(name);
    tracker.flush();
    await settle();
    const { delivered, queued } = tracker.status();
    assert.deepEqual({ delivered, queued }, { delivered: 0, queued: 3 }, JSON.stringify(lie));
    await pass(3000);
    assert.deepEqual(
      site.requests.map(({ text }) => text),
      [site.requests[0].text, site.requests[0].text],
    );
    assert.equal(tracker.status().delivered, 3);
    adds(tracker);
  }
});

test("a batch that is too large is halved until it fits; a single event that does not fit is dropped", async () => {
  const { site, tracker } = await start({
    answer: (batch) =>
      batch.events.length > 2 || batch.events.some(({ name }) => name === "4") ? status(413) : receipt(batch),
  });
  for (let name = 0; name < 7; name++) tracker.track(`${name}`);
  await pass(10_000);
  const { delivered, dropped, queued } = tracker.status();
  assert.deepEqual({ delivered, dropped, queued }, { delivered: 6, dropped: { too_large: 1 }, queued: 0 });
  assert.deepEqual(site.stored(), []);
  const ids = site.requests.map(({ batch }) => batch.batch_id);
  assert.equal(new Set(ids).size, ids.length, "another body is another batch");
});

test("a batch refused permanently is dropped, and the next batch reports it", async () => {
  for (const code of [400, 415, 422]) {
    const { site, tracker } = await start({ answer: (batch, number) => (number ? receipt(batch) : status(code)) });
    tracker.click("buy");
    tracker.click("buy");
    await pass(10_000);
    assert.equal(site.requests.length, 1);
    assert.deepEqual(tracker.status().dropped, { refused: 2 });
    assert.deepEqual(site.stored(), []);
    tracker.click("buy");
    await pass(3000);
    assert.deepEqual(site.requests[1].batch.lost, { refused: 2 });
    adds(tracker);
  }
});

test("hiding the page sends everything at once, within the keepalive limit of browsers", async () => {
  let most = 0;
  let flying = 0;
  const { page, site, tracker } = await start({
    async answer(batch, _, { keepalive, body }) {
      if (keepalive) most = Math.max(most, (flying += Buffer.byteLength(body)));
      await new Promise(setImmediate);
      if (keepalive) flying -= Buffer.byteLength(body);
      return receipt(batch);
    },
  });
  tracker.click("leave");
  page.show(false);
  assert.equal(site.requests.length, 1, "before anything else happens");
  assert.equal(site.requests[0].init.keepalive, true);

  // Three bytes per character: lengths in UTF-16 would allow three times too much.
  await settle();
  for (let event = 0; event < 20; event++) tracker.track("large", { text: "茶".repeat(3000) });
  page.show(false);
  await until(() => tracker.status().delivered === 21);
  assert.ok(most > 30_000 && most <= 60_000, String(most));
});

test("a request above the keepalive limit has no keepalive", async () => {
  let free;
  const { site, tracker } = await start({
    answer: (batch) => new Promise((resolve) => (free = () => resolve(receipt(batch)))),
  });
  // Before the core runs, a batch can become larger than the core would make it.
  for (let event = 0; event < 2; event++) tracker.track("large", { text: "x".repeat(29_000) });
  tracker.flush();
  await settle();
  assert.deepEqual(
    site.requests.map(({ init }) => init.keepalive),
    [true, true],
  );
  free();
  await settle();
  tracker.track("large", { text: "x".repeat(32_000) });
  tracker.flush();
  await settle();
  assert.equal(site.requests.length, 3);
  assert.equal(site.requests[2].init.keepalive, false, "29 KB and 32 KB are too much");
});

test("where keepalive is refused, the request is repeated without it", async () => {
  const { site, tracker } = await start({
    answer: (batch, _, { keepalive }) => (keepalive ? broken() : receipt(batch)),
  });
  tracker.click("buy");
  tracker.flush();
  await settle();
  assert.deepEqual(
    site.requests.map(({ init }) => init.keepalive),
    [true, false],
  );
  assert.equal(site.requests[0].text, site.requests[1].text);
  assert.equal(tracker.status().delivered, 1);
});

test("where keepalive has worked, a failed request is not repeated without it", async () => {
  const { site, tracker } = await start({ answer: (batch, number) => (number ? broken() : receipt(batch)) });
  for (let press = 0; press < 2; press++) {
    tracker.click("buy");
    tracker.flush();
    await settle();
  }
  assert.equal(site.requests.length, 2);
});

test("a request times out after 30 seconds and is retried", async () => {
  const { site, tracker } = await start({
    answer: (batch, number, { signal }) =>
      number
        ? receipt(batch)
        : new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
  });
  tracker.click("buy");
  tracker.flush();
  await pass(29_000);
  assert.equal(site.requests.length, 1);
  await pass(3000);
  assert.equal(site.requests.length, 2);
  assert.equal(site.requests[0].text, site.requests[1].text);
  assert.equal(tracker.status().delivered, 1);
});

test("a lost answer is not a receipt, and the retry sends the same bytes", async () => {
  const { site, tracker } = await start({
    answer: (batch, number) => (number < 2 ? broken() : receipt(batch, { duplicate: true })),
  });
  tracker.click("buy");
  await pass(10_000);
  assert.equal(new Set(site.requests.map(({ text }) => text)).size, 1);
  assert.equal(tracker.status().delivered, 1);
});

test("nothing is sent while offline, and everything when the network is back", async () => {
  let up = false;
  const { page, site, tracker } = await start({ answer: (batch) => (up ? receipt(batch) : broken()) });
  tracker.click("before");
  tracker.flush();
  await settle();
  page.online(false);
  const tried = site.requests.length;
  tracker.click("during");
  assert.equal(tracker.status().paused, "offline");
  await pass(600_000);
  assert.ok(site.requests.length - tried <= 20, "once a minute, with and without keepalive");
  up = true;
  page.online(true);
  await pass(2500);
  assert.equal(tracker.status().delivered, 2);
  assert.equal(tracker.status().paused, null);
});

test("blocked requests pause sending for 5 minutes, also on the next page", async () => {
  const { page, site, tracker } = await start({ answer: broken });
  for (let second = 0; second < 120 && tracker.status().paused !== "blocked"; second++) {
    tracker.track("n");
    await pass(1000);
  }
  assert.equal(tracker.status().paused, "blocked");
  const tried = site.requests.length;
  // Each of the eight was retried once without keepalive.
  assert.ok(tried <= 16, String(tried));
  tracker.track("n");
  tracker.flush();
  await pass(2 * 60_000);
  const { queued } = tracker.status();
  page.close();
  const next = site.open();
  const heir = next.track();
  await ready(heir);
  heir.track("n");
  await pass(60_000);
  assert.equal(heir.status().paused, "blocked");
  assert.equal(site.requests.length, tried, "not one request");
  assert.equal(heir.status().queued, queued + 1);
  await pass(3 * 60_000);
  assert.ok(site.requests.length > tried && site.requests.length - tried <= 16, "it looks whether it is so still");
  site.answer = receipt;
  next.online(true);
  await pass(3000);
  assert.deepEqual([heir.status().paused, heir.status().queued], [null, 0]);
  adds(heir);
});

test("errors and invalid answers do not count as blocked", async () => {
  for (const answer of [() => status(503), () => new Response("junk")]) {
    const { tracker } = await start({ answer });
    tracker.track("n");
    await pass(20 * 60_000);
    assert.equal(tracker.status().paused, null);
  }
});

test("a pause set by a wrong clock far ahead is ignored", async () => {
  const site = browser();
  site.storage.setItem(SITE + "blocked", String(NOW + 1e12));
  const tracker = site.open().track();
  await ready(tracker);
  tracker.track("n");
  await pass(3000);
  assert.equal(tracker.status().delivered, 1);
});

test("a full queue drops the oldest events and reports the number to the collector", async () => {
  let up = false;
  const { site, tracker } = await start({ answer: (batch) => (up ? receipt(batch) : status(500)) });
  for (let event = 0; event < 200; event++) tracker.track("large", { event, text: "x".repeat(10_000) });
  await settle();
  assert.ok(site.stored().join("").length <= 256 * 1024);
  adds(tracker);
  up = true;
  await pass(600_000);
  const { made, queued, dropped } = tracker.status();
  assert.deepEqual([made, queued], [200, 0]);
  adds(tracker);
  assert.ok(dropped.queue_full > 80, JSON.stringify(dropped));
  assert.ok(
    site.events().some(({ properties }) => properties.event === 199),
    "the newest arrives",
  );
  const reported = new Map(site.requests.map(({ batch }) => [batch.batch_id, batch.lost?.queue_full ?? 0]));
  assert.equal(
    [...reported.values()].reduce((sum, events) => sum + events),
    dropped.queue_full,
  );
});

test("events expire after a week, in this page and the next", async () => {
  const { page, site, tracker } = await start({ answer: () => status(503) });
  tracker.track("old");
  await pass(7 * 86_400_000 + 600_000);
  const { dropped, queued } = tracker.status();
  assert.deepEqual({ dropped, queued }, { dropped: { expired: 1 }, queued: 0 });
  tracker.track("left");
  page.close();
  await pass(8 * 86_400_000);
  site.answer = (batch) => receipt(batch);
  const heir = site.open().track();
  await ready(heir);
  assert.deepEqual([heir.status().adopted, heir.status().dropped, site.stored().length], [1, { expired: 1 }, 0]);
  adds(heir);
});
