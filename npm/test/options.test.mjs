// Wrong options, and pages with several trackers or copies of the package.

import assert from "node:assert/strict";
import { test } from "node:test";
import { adds, browser, pass, ready, receipt, status } from "./fake.mjs";

/** The lines in the console after the tracker has started. */
async function linesOf(start) {
  const site = browser();
  const page = site.open();
  const tracker = start(page) ?? page.tallymark;
  await pass(100);
  return { lines: site.lines, site, page, tracker };
}

const WRONG = [
  // Option, value, what the line must name, and the value that applies instead if it can be seen.
  [{ endpiont: "https://collect.example" }, /`endpiont` does not exist.*endpoint/],
  [{ pageViews: "no" }, /`pageViews` is "no"; expected true or false\. "true" is used/],
  [{ hash: 7 }, /`hash` is "7".*"false" is used/],
  [{ sampleRate: "10%" }, /`sampleRate` is "10%"; expected a number.*"1" is used/],
  [{ sampleRate: 0 }, /`sampleRate` is "0"/],
  [{ consent: "Granted" }, /`consent` is "Granted"; expected "granted", "pending" or "denied"\. "granted" is used/],
  [{ consent: true }, /`consent` is "true".*"pending" is used/],
  [{ credentials: "yes" }, /`credentials` is "yes"; expected "omit"/],
  [{ beforeSend: "hook" }, /`beforeSend` is "hook"; expected a function/],
  [{ debug: {} }, /`debug` is "\[object Object\]"/],
  [{ dnt: Symbol("no") }, /`dnt` is "Symbol\(no\)"/],
];

for (const [option, expected] of WRONG) {
  test(`a wrong option is one line, and the tracker works: ${expected}`, async () => {
    const { lines, site, tracker } = await linesOf((page) => page.track(option));
    assert.equal(lines.length, 1, lines.join("\n"));
    assert.match(lines[0], expected);
    assert.match(lines[0], /^tallymark: /);
    tracker.setConsent("granted");
    tracker.click("buy");
    await ready(tracker);
    await pass(3000);
    assert.equal(site.events().filter(({ button_id }) => button_id === "buy").length, 1);
  });
}

const FATAL = [
  [
    { endpoint: "htp://collect.example" },
    /`endpoint` is "htp:\/\/collect\.example"; expected a URL that begins with "https:/,
  ],
  [{ endpoint: "127.0.0.1:8900" }, /`endpoint` is "127\.0\.0\.1:8900"; expected/],
  [{ endpoint: "collect.example" }, /`endpoint` is "collect\.example"/],
  [{ endpoint: "https://user:pass@collect.example" }, /`endpoint` is/],
  [{ endpoint: undefined }, /`endpoint` is missing/],
  [{ username: "" }, /`username` is missing; expected the site's name/],
  [{ key: undefined }, /`key` is missing; expected the site's write key/],
  [{ key: 7 }, /`key` is not a text/],
  [{ key: "tms_0123456789" }, /`key` is the secret key.*replace/],
];

for (const [option, expected] of FATAL) {
  test(`an option without which nothing works is one line: ${expected}`, async () => {
    const { lines, site, tracker } = await linesOf((page) => page.track(option));
    assert.equal(lines.length, 1, lines.join("\n"));
    assert.match(lines[0], expected);
    assert.doesNotMatch(lines[0], /tms_0/, "a key is never shown");
    assert.match(lines[0], /Nothing is recorded/);
    tracker.click("buy");
    assert.equal(tracker.status().failed, "options");
    assert.deepEqual([site.names(), site.requests], [[], []]);
  });
}

test("a tag with five mistakes says five things, in the words of its attributes", async () => {
  const { lines, page } = await linesOf((page) =>
    page.tag({ endpiont: "/", beforeSend: "hook", consent: "Granted", pageViews: "no", sampleRate: "10%" }),
  );
  assert.deepEqual(lines.map((line) => /`(data-[a-z-]+)`/.exec(line)[1]).sort(), [
    "data-before-send",
    "data-consent",
    "data-endpiont",
    "data-page-views",
    "data-sample-rate",
  ]);
  assert.ok(page.tallymark.status().made > 0, "the page view");
});

test("attributes have the same meaning as options", async () => {
  const { lines, tracker } = await linesOf((page) =>
    page.tag({ pageViews: "false", hash: "", sampleRate: "0.5", consent: "pending", debug: "true", gpc: "false" }),
  );
  assert.deepEqual(lines, []);
  assert.equal(tracker.status().made, 0);
});

test("where the texts cannot be loaded, the option and its value are in the console all the same", async () => {
  const site = browser({ fallback: () => Promise.reject(new TypeError("blocked")) });
  site.open().track({ pageViews: "no", sampleRate: "10%" });
  await pass(100);
  assert.equal(site.lines.length, 2);
  assert.match(site.lines.join("\n"), /pageViews no[\s\S]*sampleRate 10%/);
});

test("a tag with type=module says so and works", async () => {
  const { lines, page } = await linesOf((page) => page.tagAsModule());
  assert.equal(lines.length, 1);
  assert.match(lines[0], /remove type="module"/);
  assert.equal(page.tallymark.status().made, 1);
});

test("a call without a key does not spoil later calls", async () => {
  const site = browser();
  const page = site.open();
  assert.equal(page.track({ key: undefined }).status().failed, "options");
  const tracker = page.track();
  tracker.click("buy");
  await ready(tracker);
  await pass(3000);
  assert.equal(tracker.status().delivered, 1);
});

test("two copies of the package, and an endpoint with and without a slash, are one tracker", async () => {
  const site = browser();
  const page = site.open();
  const options = { pageViews: true, endpoint: "https://collect.example" };
  const first = page.track(options);
  assert.equal(page.track({ ...options, endpoint: "https://collect.example/" }), first);
  assert.equal(page.copy().createTracker({ ...options, username: "shop", key: "k" }), first, "another bundle");
  page.tag({ pageViews: "true" });
  assert.equal(page.tallymark, first, "a tag beside the module");
  await ready(first);
  await pass(3000);
  assert.deepEqual([site.events().length, site.lines], [1, []]);
  page.track({ ...options, sampleRate: 0.5, hash: true });
  page.track({ ...options, sampleRate: 0.25 });
  await pass(100);
  assert.equal(site.lines.length, 1, "options that differ are reported once");
  assert.match(site.lines[0], /shop.*different `hash`, `sampleRate`/);
});

test("batches go only to the collector and site that they were made for", async () => {
  const site = browser({ answer: () => status(503) });
  const endpoints = ["https://staging.example", "https://collect.example", "https://collect.example/eu"];
  const page = site.open();
  const trackers = endpoints.map((endpoint) => page.track({ endpoint }));
  trackers.forEach((tracker, at) => tracker.track(endpoints[at]));
  await ready(...trackers);
  await pass(3000);
  page.close();
  await pass(11_000);
  site.requests.length = 0;
  site.answer = (batch) => receipt(batch);
  const next = site.open();
  const last = endpoints.map((endpoint) => next.track({ endpoint }));
  await ready(...last);
  await pass(30_000);
  assert.deepEqual(
    site.requests.map(({ url, batch }) => [url, ...batch.events.map(({ name }) => name)]).sort(),
    endpoints.map((endpoint) => [`${endpoint}/v1/batch`, endpoint]).sort(),
  );
  last.forEach(adds);
});

test("an opt-out applies to the site, whatever its collector", async () => {
  const site = browser();
  const page = site.open();
  page.track().optOut();
  const moved = page.track({ endpoint: "https://new.example" });
  assert.equal(moved.status().disabledReason, "opted_out");
});

test("a global or an element called tallymark does not stop the tag", async () => {
  for (const [what, set] of [
    [
      "an element, which is no own property",
      (page) => Object.setPrototypeOf(page, { __proto__: Object.getPrototypeOf(page), tallymark: { id: "tallymark" } }),
    ],
    ["the page's own value", (page) => (page.tallymark = { version: 3 })],
    ["a text", (page) => (page.tallymark = "tally")],
  ]) {
    const site = browser();
    const page = site.open();
    set(page);
    const mine = page.tallymark;
    page.tag({ pageViews: "true" });
    for (let turn = 0; turn < 50 && !site.requests.length; turn++) await pass(500);
    assert.equal(site.events().length, 1, what);
    if (Object.hasOwn(page, "tallymark") && page.tallymark === mine) {
      assert.equal(site.lines.length, 1, "reported, and left to the page");
      assert.match(site.lines[0], /window\.tallymark/);
    } else assert.equal(page.tallymark.status().delivered, 1, what);
  }
});

test("a page without a console that works is not disturbed", async () => {
  const site = browser();
  const page = site.open();
  page.console = undefined;
  const tracker = page.track({ pageViews: "no" });
  tracker.click("buy");
  await ready(tracker);
  await pass(3000);
  assert.equal(tracker.status().delivered, 2, "with the page view");
});

test("a disabled tracker does nothing", async () => {
  const { lines, site, tracker } = await linesOf((page) => page.track({ disabled: true, pageViews: true }));
  tracker.click("buy");
  tracker.flush();
  await pass(3000);
  assert.deepEqual([lines, site.names(), site.requests], [[], [], []]);
  assert.deepEqual([tracker.status().made, tracker.status().disabledReason], [0, "disabled"]);
});
