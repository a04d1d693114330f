// The tracker in a page: options, methods, events of the page, consent.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { adds, browser, dice, NOW, pass, ready, receipt, SITE, settle, status, until } from "./fake.mjs";

/** A page whose tracker runs. */
async function start(options, changes, page) {
  const site = browser(changes);
  const opened = site.open(page);
  const tracker = opened.track(options);
  await ready(tracker);
  return { site, page: opened, tracker };
}
const paths = (site) => site.events().map(({ url }) => url.replace("https://shop.example", ""));

test("calls before the core runs keep their order and times", async () => {
  let load;
  const site = browser({ load: () => new Promise((resolve) => (load = resolve)) });
  const tracker = site.open().tag({ pageViews: "" });
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
  await pass(2000);
  assert.deepEqual(
    site.events().map(({ event_type, occurred_at, properties }) => [event_type, occurred_at, properties?.step]),
    [
      ["page_view", NOW, undefined],
      ["button_click", NOW + 1000, undefined],
      ["custom", NOW + 1500, 1],
    ],
  );
});

test("calls to the stub are recorded with their times, also later ones", async () => {
  const site = browser();
  const page = site.open();
  const early = [
    ["track", NOW - 5000, "first", { a: 1 }],
    ["pageView", NOW - 4000],
    ["nothing", NOW],
    ["click", NOW - 3000, "buy"],
  ];
  page.tallymark = { q: early };
  page.tag();
  await ready(page.tallymark);
  early.push(["track", NOW - 1000, "last"]);
  page.tallymark.flush();
  await pass(2500);
  assert.deepEqual(
    site.events().map(({ occurred_at }) => occurred_at - NOW),
    [-5000, -4000, -3000, -1000],
  );
  const tracker = page.tallymark;
  page.tag();
  assert.equal(page.tallymark, tracker, "a second tag does not count everything twice");
});

test("the attributes of the tag are the options", async () => {
  const site = browser();
  const page = site.open();
  const tracker = page.tag({ pageViews: "true", hash: "", trackClicks: "false", sampleRate: "0.000001" });
  await ready(tracker);
  page.press({ "data-tallymark-click": "buy" });
  assert.equal(tracker.status().made, 0, "one visit in a million");
});

test("a page view has the address, the referrer and the title", async () => {
  const { site, tracker } = await start({ pageViews: true });
  tracker.pageView({ url: "/coffee", title: "Coffee", properties: { variant: "b" } });
  tracker.pageView({ url: "https://other.example/", referralUrl: "", title: "" });
  await pass(2100);
  const [first, second, third] = site.events();
  assert.equal(first.url, "https://shop.example/tea/?q=1");
  assert.equal(first.referral_url, "https://search.example/");
  assert.equal(first.title, "Tea");
  assert.equal(second.url, "https://shop.example/coffee");
  assert.equal(second.referral_url, first.url, "the view before");
  assert.deepEqual(second.properties, { variant: "b" });
  assert.deepEqual([third.url, third.referral_url, third.title], ["https://other.example/", undefined, undefined]);
});

test("long titles and addresses are cut, and the view is recorded", async () => {
  const { site, page, tracker } = await start();
  page.document.title = "🍵".repeat(10_000);
  tracker.pageView({ url: "/" + "u".repeat(10_000), referralUrl: "r".repeat(10_000) });
  await pass(2100);
  const [{ title, url, referral_url }] = site.events();
  assert.deepEqual([title, url.length, referral_url.length], ["🍵".repeat(256), 4096, 4096]);
});

test("each route change is one view, with the previous view as referrer", async () => {
  const { site, page } = await start({ pageViews: true });
  const go = async (act) => {
    act();
    await pass(100);
  };
  const { history, location } = page;
  await go(() => history.replaceState({ scroll: 1 }, ""));
  await go(() => history.replaceState({}, "", location.href));
  await go(() => (history.pushState({}, "", "/a"), history.replaceState({}, "", "/a?sort=1")));
  await go(() => history.pushState({}, "", "/a?sort=1"));
  await go(() => history.pushState({}, "", "#part"));
  await go(() => history.pushState({}, "", "/b"));
  await go(() => {
    location.href = "https://shop.example/a";
    page.emit("popstate");
    page.emit("hashchange");
  });
  await pass(3000);
  assert.deepEqual(paths(site), ["/tea/?q=1", "/a?sort=1", "/b", "/a"]);
  assert.deepEqual(
    site
      .events()
      .slice(1)
      .map(({ referral_url }) => referral_url),
    site
      .events()
      .slice(0, -1)
      .map(({ url }) => url),
  );
});

test("with `hash`, addresses that differ after # are different pages", async () => {
  const { site, page } = await start({ pageViews: true, hash: true });
  for (const hash of ["#a", "#a", "#b"]) {
    page.location.href = "https://shop.example/" + hash;
    page.emit("hashchange");
    await pass(100);
  }
  await pass(3000);
  assert.deepEqual(paths(site), ["/tea/?q=1", "/#a", "/#b"]);
});

test("a route change right before the page ends is recorded", async () => {
  const { site, page } = await start({ pageViews: true });
  page.history.pushState({}, "", "/last");
  page.close();
  await settle();
  assert.deepEqual(paths(site), ["/tea/?q=1", "/last"]);
});

test("a background page is recorded at once, or with `whenVisible` when it is first visible", async () => {
  for (const whenVisible of [false, true]) {
    const { page, tracker } = await start({ pageViews: true, whenVisible }, {}, { hidden: true });
    assert.equal(tracker.status().made, whenVisible ? 0 : 1);
    for (const visible of [true, false, true]) page.show(visible);
    assert.equal(tracker.status().made, 1);
  }
});

test("a prerendered page is recorded when it is shown, and leaves nothing otherwise", async () => {
  const site = browser();
  const page = site.open({ prerendering: true });
  const tracker = page.track({ pageViews: true });
  tracker.track("while hidden");
  await pass(60_000);
  assert.deepEqual([tracker.status().queued, site.requests.length, site.stored().length], [1, 0, 0]);
  page.document.prerendering = false;
  page.document.dispatchEvent(new Event("prerenderingchange"));
  await ready(tracker);
  await pass(3000);
  assert.deepEqual(
    site.events().map(({ event_type }) => event_type),
    ["custom", "page_view"],
  );
  adds(tracker);
});

test("a page restored from the back/forward cache is another view", async () => {
  const { site, page, tracker } = await start({ pageViews: true });
  page.hide();
  page.comeBack();
  await ready(tracker);
  await pass(12_000);
  assert.deepEqual(paths(site), ["/tea/?q=1", "/tea/?q=1"]);
});

test("clicks on marked elements are recorded, unless `trackClicks` is false", async () => {
  for (const trackClicks of [true, false]) {
    const { site, page } = await start({ trackClicks });
    page.press({ "data-tallymark-click": "buy", "data-tallymark-props": '{"price":2.4}' });
    page.press({ "data-tallymark-click": "typo", "data-tallymark-props": "{" });
    page.press({});
    await pass(2100);
    assert.deepEqual(
      site.events().map(({ button_id, properties }) => [button_id, properties]),
      trackClicks
        ? [
            ["buy", { price: 2.4 }],
            ["typo", undefined],
          ]
        : [],
    );
  }
});

test("bad arguments never throw, are counted, and are reported with `debug`", async () => {
  const circular = {};
  circular.self = circular;
  const hostile = new Proxy(
    {},
    {
      get: () => {
        throw new Error("mine");
      },
      ownKeys: () => {
        throw new Error("mine");
      },
    },
  );
  const bad = [
    (tracker) => tracker.track(),
    (tracker) => tracker.track(7),
    (tracker) => tracker.track(""),
    (tracker) => tracker.track("n".repeat(129)),
    (tracker) => tracker.track("n".repeat(1e6)),
    (tracker) => tracker.track(Symbol("n")),
    (tracker) => tracker.track(hostile),
    (tracker) => tracker.track("n", circular),
    (tracker) => tracker.track("n", hostile),
    (tracker) => tracker.track("n", { big: 1n }),
    (tracker) => tracker.track("n", [1]),
    (tracker) => tracker.track("n", "text"),
    (tracker) => tracker.track("n", () => {}),
    (tracker) => tracker.track("n", { text: "x".repeat(1e6) }),
    (tracker) =>
      tracker.track("n", {
        toJSON() {
          throw new Error("mine");
        },
      }),
    (tracker) => tracker.click(null),
    (tracker) => tracker.click("b".repeat(257)),
    (tracker) => tracker.pageView({ url: "http://[" }),
    (tracker) => tracker.pageView({ title: 7 }),
    (tracker) => tracker.pageView(null),
    (tracker) => tracker.pageView(hostile),
  ];
  const { site, tracker } = await start({ debug: true });
  for (const call of bad) {
    call(tracker);
    adds(tracker);
  }
  tracker.track("good");
  await pass(2100);
  const { made, delivered, dropped } = tracker.status();
  assert.deepEqual(
    { made, delivered, dropped },
    { made: bad.length + 1, delivered: 1, dropped: { invalid: bad.length } },
  );
  assert.equal(site.events().length, 1);
  await until(() => site.lines.length >= bad.length);
  assert.equal(site.lines.length, bad.length);
});

test("random calls with random arguments never throw, and the status adds up", async () => {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 32));
  const roll = dice(seed);
  const hostile = new Proxy(() => {}, {
    get: () => {
      throw new Error("mine");
    },
  });
  const values = [
    undefined,
    null,
    0,
    -1,
    NaN,
    1n,
    "",
    "n",
    "x".repeat(200),
    "x".repeat(40_000),
    "\ud83c",
    {},
    [],
    { a: 1 },
    { toString: 7 },
    hostile,
    () => {},
    Symbol("s"),
    new Date(NaN),
    new Map(),
    true,
    "granted",
    "pending",
    "denied",
    "granted",
    { url: "/a" },
    { url: 7, title: hostile },
  ];
  const answers = [
    (batch) => receipt(batch),
    () => status(503),
    () => status(413),
    () => status(401),
    () => status(400),
    () => Promise.reject(new TypeError("network")),
    (batch) => receipt(batch, { accepted: 0, retry: batch.events.map((_, at) => at) }),
  ];
  try {
    for (let round = 0; round < 6; round++) {
      const site = browser({ locks: roll(2) > 0, answer: (batch) => answers[roll(answers.length)](batch) });
      const page = site.open();
      const tracker = page.track({
        pageViews: true,
        anonymousId: true,
        beforeSend: (event) => [event, event, event, values[roll(values.length)]][roll(4)],
      });
      const methods = Object.keys(tracker);
      const calls = [
        ...methods,
        "track",
        "track",
        "track",
        "click",
        "optIn",
        "hide",
        "comeBack",
        "online",
        "refuse",
        "wait",
        "step",
      ];
      for (let call = 0; call < 300; call++) {
        const method = calls[roll(calls.length)];
        const some = () => values[roll(values.length)];
        if (method === "hide") page.hide();
        else if (method === "comeBack") page.comeBack();
        else if (method === "online") page.online(roll(2) > 0);
        else if (method === "refuse") site.refused = roll(2) > 0;
        else if (method === "step") page.history.pushState({}, "", "/" + roll(5));
        else if (method === "wait") await pass(roll(5000), 500);
        else tracker[method](...[some, some, some].slice(roll(4)).map((draw) => draw()));
        if (roll(5) === 0) await settle();
        adds(tracker);
        assert.equal(tracker.status().failed, null);
      }
    }
  } catch (error) {
    error.message += `\nSEED=${seed}`;
    throw error;
  }
});

test("missing options are reported once and nothing throws", async () => {
  const site = browser();
  const page = site.open();
  for (const options of [
    { key: "" },
    { endpoint: "http://[" },
    { username: undefined },
    { username: "b", key: undefined },
    { endpoint: 7 },
  ]) {
    const before = site.lines.length;
    const tracker = page.track(options);
    tracker.click("buy");
    tracker.identify("u");
    tracker.setConsent("granted");
    tracker.flush();
    page.hide();
    assert.equal(tracker.status().failed, "options");
    await until(() => site.lines.length > before);
    assert.equal(site.lines.length, before + 1, site.lines.join("\n"));
    adds(tracker);
  }
  await pass(5000);
  assert.deepEqual([site.requests.length, site.names()], [0, []]);
});

test("the same options return the same tracker", async () => {
  const page = browser().open();
  assert.equal(page.track(), page.track());
  assert.notEqual(page.track(), page.track({ username: "other" }));
});

test("pages and tabs share a session, which ends half an hour after the last event", async () => {
  const site = browser();
  const sessions = [];
  const open = async () => {
    const page = site.open();
    const tracker = page.track();
    await ready(tracker);
    return { page, tracker };
  };
  const click = async ({ tracker }) => {
    tracker.click("buy");
    await pass(3000);
    sessions.push(site.events().at(-1).session_id);
  };
  const first = await open();
  const second = await open();
  await click(first);
  await click(second);
  await pass(29 * 60_000);
  await click(second);
  await pass(29 * 60_000);
  await click(first);
  first.page.close();
  await click(await open());
  assert.equal(new Set(sessions).size, 1);
  await pass(31 * 60_000);
  await click(second);
  await click(await open());
  assert.equal(new Set(sessions).size, 2);
  assert.equal(sessions.at(-1), sessions.at(-2));
});

test("a wrong clock neither keeps a session alive nor ends every session", async () => {
  const site = browser();
  site.storage.setItem(SITE + "session", `old ${NOW + 1e12}`);
  const tracker = site.open().track();
  await ready(tracker);
  for (let click = 0; click < 3; click++) {
    tracker.click("buy");
    await pass(11_000);
  }
  const ids = new Set(site.events().map(({ session_id }) => session_id));
  assert.equal(ids.size, 1);
  assert.ok(!ids.has("old"));
});

test("a queue made by a wrong clock is sent when the clock is set right, by this page or the next", async () => {
  for (const days of [-700, 400]) {
    for (const locks of [true, false]) {
      for (const reload of [false, true]) {
        const site = browser({ wrong: days * 86_400_000, locks, navigator: { onLine: false } });
        const page = site.open();
        const tracker = page.track();
        await ready(tracker);
        for (const n of [1, 2]) tracker.track("n", { n });
        await pass(5_000);
        assert.equal(site.requests.length, 0);
        site.wrong = 0;
        site.navigator = {};
        if (reload) page.close();
        else page.online(true);
        const next = reload ? site.open().track() : tracker;
        await ready(next);
        await pass(400_000);
        const { delivered, dropped } = next.status();
        assert.deepEqual([delivered, dropped], [2, {}], `${days} days, locks ${locks}, reload ${reload}`);
      }
    }
  }
});

test("a visit is sampled completely or not at all, and has the weight", async () => {
  let counted = 0;
  for (let visit = 0; visit < 200; visit++) {
    const site = browser();
    const trackers = [site.open(), site.open()].map((page) => page.track({ sampleRate: 0.25 }));
    for (const tracker of trackers) for (let click = 0; click < 3; click++) tracker.click("buy");
    const made = trackers.map((tracker) => tracker.status().made);
    assert.ok(made[0] === made[1] && [0, 3].includes(made[0]), String(made));
    if (!made[0]) continue;
    counted++;
    await settle();
    // Sent already, or stored.
    const [text = site.requests[0].text] = site.stored();
    assert.match(text, /"weight":4}/);
  }
  // Seven standard deviations.
  assert.ok(counted > 7 && counted < 93, String(counted));
});

test("an anonymous id is made only with `anonymousId`, stored, and erased with everything else", async () => {
  const site = browser();
  const ids = [];
  const visit = async (options, act = () => {}) => {
    const page = site.open();
    const tracker = page.track(options);
    await ready(tracker);
    act(tracker);
    tracker.click("buy");
    await ready(tracker);
    await pass(3000);
    ids.push(site.events().at(-1).anonymous_id);
    page.close();
  };
  await visit({});
  assert.ok(!site.names().includes("visitor"));
  await visit({ anonymousId: true });
  await visit({ anonymousId: true });
  await visit({ anonymousId: true }, (tracker) => (tracker.click("before"), tracker.optOut(), tracker.optIn()));
  await visit({ anonymousId: true });
  const [none, first, again, after, last] = ids;
  assert.equal(none, undefined);
  assert.ok(first && first === again);
  assert.notEqual(after, first);
  assert.equal(after, last);
});

test("identify sets the user id until it is removed", async () => {
  const { site, tracker } = await start();
  for (const person of ["anna", null, "", undefined]) {
    tracker.identify(person);
    tracker.click("buy");
  }
  await pass(2100);
  assert.deepEqual(
    site.events().map(({ user_id }) => user_id),
    ["anna", undefined, undefined, undefined],
  );
});

test("beforeSend changes and drops events, and its errors do no harm", async () => {
  const given = [
    (event) => ({ ...event, url: event.url.split("?")[0], title: undefined }),
    () => null,
    () => false,
    () => {},
    () => {
      throw new Error("mine");
    },
    () => "text",
    () => 7,
    () => ({}),
    () => [],
    (event) => ({ ...event, event_type: "toString" }),
    (event) => ({ ...event, user_id: 7 }),
    (event) => ({ ...event, properties: [1] }),
    async (event) => event,
    (event) => ((event.properties = { mine: 1 }), event),
  ];
  let number = 0;
  const { site, tracker } = await start({ beforeSend: (event) => given[number++](event) });
  for (const _ of given) {
    tracker.pageView();
    adds(tracker);
  }
  await pass(2100);
  const [first, last] = site.events();
  assert.equal(site.events().length, 2);
  assert.deepEqual([first.url, first.title, last.properties], ["https://shop.example/tea/", undefined, { mine: 1 }]);
  assert.deepEqual([tracker.status().made, tracker.status().dropped], [11, { invalid: 9 }]);
});

test("pending consent stores and sends nothing; granted consent records everything held", async () => {
  const site = browser();
  const page = site.open();
  const tracker = page.track({ consent: "pending", pageViews: true, anonymousId: true });
  tracker.click("buy");
  page.hide();
  page.comeBack();
  await pass(60_000);
  assert.deepEqual([site.names(), site.held(), site.requests], [[], [], []]);
  assert.deepEqual([tracker.status().made, tracker.status().queued, tracker.status().disabledReason], [3, 3, null]);
  tracker.setConsent("granted");
  await null;
  assert.equal(site.stored().length, 1, "safe at once");
  await ready(tracker);
  await pass(3000);
  assert.equal(tracker.status().delivered, 3);
  assert.deepEqual(
    site.events().map(({ occurred_at }) => occurred_at),
    [NOW, NOW, NOW],
    "when they happened",
  );
  adds(tracker);
  page.close();

  const [{ session_id, anonymous_id }] = site.events();
  const next = site.open().track({ consent: "pending", anonymousId: true });
  next.click("buy");
  next.setConsent("granted");
  await ready(next);
  await pass(3000);
  const last = site.events().at(-1);
  assert.deepEqual([last.session_id, last.anonymous_id], [session_id, anonymous_id], "the same visit and browser");
});

test("consent set back to pending stops storing and sending", async () => {
  const { site, tracker } = await start();
  tracker.click("before");
  tracker.setConsent("pending");
  const kept = { ...site.storage };
  tracker.click("during");
  await pass(60_000);
  assert.deepEqual([site.requests.length, { ...site.storage }], [0, kept]);
  adds(tracker);
  tracker.setConsent("granted");
  await ready(tracker);
  await pass(15_000);
  assert.deepEqual(
    site
      .events()
      .map(({ button_id }) => button_id)
      .sort(),
    ["before", "during"],
  );
  adds(tracker);
});

test("at most a thousand events wait for consent; the oldest are dropped and counted", async () => {
  const site = browser();
  const tracker = site.open().track({ consent: "pending" });
  for (let event = 0; event < 1200; event++) tracker.track(`${event}`);
  assert.deepEqual([tracker.status().queued, tracker.status().dropped], [1000, { queue_full: 200 }]);
  adds(tracker);
  tracker.setConsent("granted");
  adds(tracker);
  await ready(tracker);
  await pass(60_000);
  adds(tracker);
  assert.ok(site.events().some(({ name }) => name === "1199"));
});

for (const [how, act, undo, off] of [
  ["denied consent", (tracker) => tracker.setConsent("denied"), (tracker) => tracker.setConsent("granted"), "denied"],
  ["an opt-out", (tracker) => tracker.optOut(), (tracker) => tracker.optIn(), "opted_out"],
]) {
  test(`${how} erases everything and stops events until it is revoked`, async () => {
    const { site, page, tracker } = await start({ anonymousId: true }, { answer: () => status(503) });
    tracker.click("buy");
    site.refused = true;
    tracker.click("in memory");
    site.refused = false;
    await pass(3000);
    const tried = site.requests.length;
    act(tracker);
    tracker.click("buy");
    page.hide();
    page.comeBack();
    await pass(60_000);
    assert.deepEqual(site.names(), off === "opted_out" ? ["out"] : []);
    assert.deepEqual(site.held(), []);
    assert.equal(site.requests.length, tried);
    assert.deepEqual([tracker.status().disabledReason, tracker.status().made, tracker.status().queued], [off, 0, 0]);
    adds(tracker);
    site.answer = (batch) => receipt(batch);
    undo(tracker);
    tracker.click("again");
    await ready(tracker);
    await pass(12_000);
    const { session_id } = site.events()[0];
    assert.deepEqual(
      site
        .events()
        .slice(tried > 0 ? -1 : 0)
        .map(({ button_id }) => button_id),
      ["again"],
    );
    assert.notEqual(site.events().at(-1).session_id, session_id, "nothing ties it to what was before");
    adds(tracker);
  });
}

test("an opt-out applies to later pages and other tabs", async () => {
  const { site, tracker } = await start();
  const other = site.open().track();
  await ready(other);
  tracker.optOut();
  // Denied consent removes everything stored except the opt-out.
  tracker.setConsent("denied");
  const next = site.open().track();
  for (const one of [tracker, other, next]) {
    one.click("buy");
    assert.deepEqual([one.status().disabledReason, one.status().made], ["opted_out", 0]);
  }
  await pass(5000);
  assert.deepEqual([site.names(), site.requests.length], [["out"], 0]);
  next.optIn();
  other.click("buy");
  await pass(5000);
  assert.equal(site.requests.length, 1);
});

test("an opt-out without storage applies to the page", async () => {
  const { site, tracker } = await start({}, { refused: true });
  tracker.optOut();
  tracker.click("buy");
  await pass(5000);
  assert.deepEqual([tracker.status().disabledReason, site.requests.length], ["opted_out", 0]);
});

test("Global Privacy Control is respected unless `gpc` is false, Do Not Track with `dnt`", async () => {
  for (const [navigator, options, off] of [
    [{ globalPrivacyControl: true }, {}, "gpc"],
    [{ globalPrivacyControl: true }, { gpc: false }, null],
    [{ globalPrivacyControl: false }, {}, null],
    [{ doNotTrack: "1" }, {}, null],
    [{ doNotTrack: "1" }, { dnt: true }, "dnt"],
    [{ doNotTrack: "0" }, { dnt: true }, null],
  ]) {
    const site = browser({ navigator });
    const tracker = site.open().track({ ...options, pageViews: true });
    await pass(100);
    if (!off) await ready(tracker);
    await pass(3000);
    assert.equal(tracker.status().disabledReason, off);
    assert.equal(site.requests.length, off ? 0 : 1);
    if (off) assert.deepEqual(site.names(), []);
  }
});

test("a missing wasm is reported, and the events wait for the next page", async () => {
  const fails = () => Promise.reject(new TypeError("failed"));
  const site = browser({ load: () => status(404), fallback: fails });
  const page = site.open();
  const tracker = page.tag();
  tracker.click("before");
  await pass(22_000);
  assert.match(site.lines.join("\n"), /load/);
  tracker.click("after");
  tracker.flush();
  const { made, queued, dropped, failed } = tracker.status();
  assert.deepEqual({ made, queued, dropped, failed }, { made: 2, queued: 2, dropped: {}, failed: "load" });
  for (let event = 0; event < 5000; event++) tracker.track("n", { text: "x".repeat(1000) });
  adds(tracker);
  assert.ok(site.stored().join("").length < 256 * 1024, "and not without end");
  page.close();
  site.load = site.fallback = undefined;
  await pass(11_000);
  const heir = site.open().tag();
  await ready(heir);
  await pass(60_000);
  assert.equal(heir.status().adopted, heir.status().delivered);
  assert.ok(site.events().some(({ button_id }) => button_id === "before"));
  adds(heir);
});

test("loading the wasm is retried after a network failure", async () => {
  let tries = 0;
  const site = browser({
    load() {
      if (++tries === 1) throw new TypeError("network error");
      if (tries === 2) return status(503);
    },
    fallback: () => Promise.reject(new TypeError("network error")),
  });
  const tracker = site.open().tag();
  tracker.click("buy");
  await pass(6000);
  await ready(tracker);
  await pass(2100);
  assert.equal(tries, 3);
  assert.equal(tracker.status().delivered, 1);
});

test("where wasm is forbidden, the fallback script is used", async () => {
  for (const way of ["track", "tag"]) {
    const site = browser({ wasm: false });
    const page = site.open();
    const tracker = page[way]();
    for (let event = 0; event < 50; event++) tracker.track("n");
    await ready(tracker);
    await pass(10_000);
    assert.equal(tracker.status().delivered, 50);
    adds(tracker);
  }
});

test("a crash of the core does not reach the page, and the events wait for the next page", async () => {
  const { site, page, tracker } = await start({}, { answer: () => status(503) });
  tracker.click("before");
  const broken = mock.method(crypto, "getRandomValues", () => {
    throw new Error("no randomness");
  });
  for (let event = 0; event < 30; event++) tracker.click("during");
  broken.mock.restore();
  tracker.click("after");
  adds(tracker);
  const { failed } = tracker.status();
  page.close();
  site.answer = (batch) => receipt(batch);
  await pass(11_000);
  const heir = site.open().track();
  await ready(heir);
  await pass(10_000);
  assert.ok(
    ["before", "after"].every((name) => site.events().some(({ button_id }) => button_id === name)),
    failed,
  );
  adds(heir);
});
