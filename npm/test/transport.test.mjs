// What the collector gets and when, with a scripted network and a clock moved by hand.

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { NOW, close, open, pass, ready, receipt, settle } from "./fake.mjs";

afterEach(close);

const sum = ({ delivered, rejected, queued, dropped }) =>
  delivered + rejected + queued + Object.values(dropped).reduce((sum, events) => sum + events, 0);

test("a batch leaves within two seconds, with everything that the collector asks for", async () => {
  const page = await open();
  const tracker = page.track({ endpoint: "https://collect.example/in/", username: "café", key: "clé" });
  await ready(tracker);
  tracker.track("charge", { value: 100 });
  await pass(1900);
  assert.equal(page.requests.length, 0);
  await pass(200);
  const [{ url, init, batch, at }] = page.requests;
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
  assert.deepEqual(tracker.status(), {
    made: 1,
    delivered: 1,
    rejected: 0,
    dropped: {},
    queued: 0,
    paused: null,
    ready: true,
    failed: null,
  });
});

test("the endpoint is resolved against the page", async () => {
  for (const [endpoint, url] of [
    ["/", "https://shop.example/v1/batch"],
    ["/in", "https://shop.example/in/v1/batch"],
    ["https://collect.example", "https://collect.example/v1/batch"],
  ]) {
    const page = await open();
    const tracker = page.track({ endpoint });
    await ready(tracker);
    tracker.click("buy");
    tracker.flush();
    await settle();
    assert.equal(page.requests[0].url, url);
    close();
  }
});

test("a retry sends the same bytes under the same id, and the event counts once", async () => {
  const page = await open({ answer: (batch, number) => (number < 3 ? new Response("", { status: 503 }) : receipt(batch)) });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("buy");
  await pass(20_000);
  assert.equal(page.requests.length, 4);
  assert.equal(new Set(page.requests.map(({ text }) => text)).size, 1);
  assert.equal(tracker.status().delivered, 1);
});

test("Retry-After is honoured, in seconds and as a date", async () => {
  for (const after of ["7", new Date(NOW + 7000).toUTCString()]) {
    const page = await open({
      answer: (batch, number) =>
        number ? receipt(batch) : new Response("", { status: 429, headers: { "Retry-After": after } }),
    });
    const tracker = page.track();
    await ready(tracker);
    tracker.click("buy");
    tracker.flush();
    await pass(6900);
    assert.equal(page.requests.length, 1, after);
    await pass(2000);
    assert.equal(page.requests.length, 2, after);
    close();
  }
});

test("a wrong key pauses, says so and keeps everything", async () => {
  let status = 401;
  const page = await open({ answer: (batch) => (status === 200 ? receipt(batch) : new Response("", { status })) });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("buy");
  tracker.flush();
  await settle();
  assert.equal(tracker.status().paused, "unauthorized");
  status = 403;
  await pass(301_000, 1000);
  assert.equal(tracker.status().paused, "forbidden");
  assert.equal(page.requests.length, 2);
  assert.equal(tracker.status().queued, 1);
  status = 200;
  await pass(301_000, 1000);
  assert.equal(tracker.status().paused, null);
  assert.equal(tracker.status().delivered, 1);
});

test("what a captive portal answers is not delivery", async () => {
  const junk = [
    () => new Response("<html>Welcome! Log in to our network</html>"),
    () => Response.json({ ok: true }),
    () => Response.json(null),
    (batch) => receipt(batch, { batch_id: "019aa2e6-b9c0-7abc-8def-0123456789ab" }),
    (batch) => receipt(batch, { accepted: 7 }),
    (batch) => receipt(batch, { rejected: null }),
    (batch) => receipt(batch, { retry: "all" }),
    () => new Response(null, { status: 204 }),
  ];
  const page = await open({ answer: (batch, number) => (junk[number] ?? receipt)(batch) });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("buy");
  tracker.flush();
  for (let number = 0; number < junk.length; number++) {
    while (page.requests.length === number) await pass(1000, 500);
    await settle();
    if (page.requests.length === number + 1) assert.equal(tracker.status().delivered, 0, `answer ${number}`);
  }
  await pass(120_000, 1000);
  assert.equal(tracker.status().delivered, 1);
  assert.equal(page.requests.length, junk.length + 1);
});

test("a receipt's retries go again in a new batch, under their own ids; what it rejects is final", async () => {
  const page = await open({
    answer: (batch, number) =>
      number ? receipt(batch) : receipt(batch, { accepted: 1, rejected: [{ index: 1, code: "c", message: "m" }], retry: [2] }),
  });
  const tracker = page.track();
  await ready(tracker);
  for (const name of ["taken", "rejected", "again"]) tracker.track(name);
  await pass(10_000);
  const [first, second] = page.requests;
  assert.equal(page.requests.length, 2);
  assert.notEqual(second.batch.batch_id, first.batch.batch_id);
  assert.deepEqual(second.batch.events, [first.batch.events[2]]);
  const { made, delivered, rejected, queued } = tracker.status();
  assert.deepEqual({ made, delivered, rejected, queued }, { made: 3, delivered: 2, rejected: 1, queued: 0 });
});

test("hiding the page sends everything at once, within what browsers let a leaving page send", async () => {
  let most = 0;
  let flying = 0;
  const page = await open({
    async answer(batch, _, { keepalive, body }) {
      if (keepalive) most = Math.max(most, (flying += body.length));
      await new Promise(setImmediate);
      if (keepalive) flying -= body.length;
      return receipt(batch);
    },
  });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("leave");
  page.hide();
  assert.equal(page.requests.length, 1, "before anything else happens");
  assert.equal(page.requests[0].init.keepalive, true);

  // Three bytes a character: lengths in UTF-16 would allow three times too much.
  await settle();
  for (let event = 0; event < 40; event++) tracker.track("large", { text: "茶".repeat(3000) });
  page.hide();
  await settle();
  await settle();
  assert.equal(tracker.status().delivered, 41);
  assert.ok(most > 30_000 && most <= 60_000, String(most));
});

test("where keepalive is refused, the batch goes without", async () => {
  const page = await open({
    answer(batch, _, { keepalive }) {
      if (keepalive) throw new TypeError("preflight with keepalive is not supported");
      return receipt(batch);
    },
  });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("buy");
  tracker.flush();
  await settle();
  assert.deepEqual(page.requests.map(({ init }) => init.keepalive), [true, false]);
  assert.equal(page.requests[0].text, page.requests[1].text);
  assert.equal(tracker.status().delivered, 1);
});

test("an engine known to do keepalive is not asked twice when the network is down", async () => {
  const page = await open({
    answer(batch, number) {
      if (number) throw new TypeError("network error");
      return receipt(batch);
    },
  });
  const tracker = page.track();
  await ready(tracker);
  for (let press = 0; press < 2; press++) {
    tracker.click("buy");
    tracker.flush();
    await settle();
  }
  assert.equal(page.requests.length, 2);
});

test("a request that hangs is given up after 30 seconds and tried again", async () => {
  const page = await open({
    answer: (batch, number, { signal }) =>
      number ? receipt(batch) : new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
  });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("buy");
  tracker.flush();
  await pass(29_000, 1000);
  assert.equal(page.requests.length, 1);
  await pass(3000);
  assert.equal(page.requests.length, 2);
  assert.equal(page.requests[0].text, page.requests[1].text);
  assert.equal(tracker.status().delivered, 1);
});

test("nothing is tried while offline, and everything as soon as the network is back", async () => {
  let online = false;
  const page = await open({
    answer(batch) {
      if (!online) throw new TypeError("offline");
      return receipt(batch);
    },
  });
  const tracker = page.track();
  await ready(tracker);
  tracker.click("before");
  tracker.flush();
  await settle();
  navigator.onLine = false;
  const tried = page.requests.length;
  tracker.click("during");
  await pass(60_000, 1000);
  assert.equal(page.requests.length, tried);
  navigator.onLine = online = true;
  page.window.dispatchEvent(new Event("online"));
  await pass(2500);
  assert.equal(tracker.status().delivered, 2);
});

test("a full queue drops the oldest and says how many", async () => {
  let up = false;
  const page = await open({ answer: (batch) => (up ? receipt(batch) : new Response("", { status: 500 })) });
  const tracker = page.track();
  await ready(tracker);
  for (let event = 0; event < 200; event++) tracker.track("large", { event, text: "x".repeat(10_000) });
  await settle();
  up = true;
  for (let waited = 0; waited < 600 && tracker.status().queued; waited++) await pass(1000, 1000);
  const status = tracker.status();
  assert.equal(status.made, 200);
  assert.equal(sum(status), 200);
  assert.ok(status.dropped.queue_full > 80, JSON.stringify(status));
  assert.ok(page.events().some(({ properties }) => properties.event === 199), "the newest arrives");
  const reported = page.requests.map(({ batch }) => batch.lost?.queue_full ?? 0);
  assert.ok(Math.max(...reported) > 0, "the collector is told");
});
