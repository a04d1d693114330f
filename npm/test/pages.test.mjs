// Which pages count, under which address, and for whom.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { adds, browser, NOW, pass, ready, source } from "./fake.mjs";

const fixtures = (name) =>
  JSON.parse(readFileSync(new URL(`../../sdk/tests/wire/${name}.json`, import.meta.url), "utf8"));
const { createClean } = await source("address");
const { isBotAgent } = await source("bots");

/** A page whose tracker runs and records views. */
async function start(options, changes, page) {
  const site = browser(changes);
  const opened = site.open(page);
  const tracker = opened.track({ pageViews: true, ...options });
  await ready(tracker);
  return { site, page: opened, tracker };
}
const paths = (site) => site.events().map(({ url }) => url.replace("https://shop.example", ""));
const referrals = (site) => site.events().map(({ referral_url }) => referral_url?.replace("https://shop.example", ""));

test("addresses are stored as in the fixtures", () => {
  for (const { case: name, options = {}, page = "https://shop.example/", address, url, campaign = {} } of fixtures(
    "addresses",
  )) {
    globalThis.location = new URL(page);
    const found = {};
    assert.equal(createClean({ hash: false, query: "keep", exclude: [], ...options })(address, found), url, name);
    if (url) assert.deepEqual(found, campaign, name);
    // Addresses that were cleaned before stay as they are.
    if (url) assert.equal(createClean({ hash: false, query: "keep", exclude: [], ...options })(url), url, name);
  }
});

test("user agents are those of programs as in the fixtures", () => {
  for (const { case: name, useragent, bot } of fixtures("bots")) assert.equal(isBotAgent(useragent), bot, name);
});

test("views have clean addresses, and their campaign as properties", async () => {
  const { site, tracker } = await start(
    {},
    {},
    {
      url: "https://shop.example/post?utm_source=news&utm_campaign=spring&fbclid=a1&id=7#part-2",
      referrer: "https://search.example/?q=tea&gclid=1#x",
    },
  );
  tracker.pageView();
  tracker.pageView({ url: "/b?fbclid=b2&utm_term=tea#access_token=t", properties: { variant: "b", utm_term: "mine" } });
  tracker.pageView({ url: "/c", referralUrl: "/d?fbclid=b2#x" });
  tracker.pageView({ url: "/e?utm_term=tea", properties: ["no object"] });
  await pass(2100);
  assert.deepEqual(paths(site), ["/post?id=7", "/post?id=7", "/b", "/c"]);
  assert.deepEqual(referrals(site), ["https://search.example/?q=tea", "/post?id=7", "/post?id=7", "/d"]);
  const campaign = { utm_source: "news", utm_campaign: "spring" };
  assert.deepEqual(
    site.events().map(({ properties }) => properties),
    [campaign, campaign, { utm_term: "mine", variant: "b" }, undefined],
  );
  assert.equal(tracker.status().dropped.invalid, 1, "properties must be an object");
  adds(tracker);
});

test("addresses that differ only in what is not stored are one page", async () => {
  const { site, page } = await start({}, {}, { url: "https://shop.example/post?fbclid=a1" });
  for (const to of [
    "/post",
    "/post?fbclid=b2",
    "/post#part-2",
    "/post?utm_source=x",
    "/other",
    "/post#access_token=t",
  ]) {
    page.history.pushState({}, "", to);
    await pass(3000);
  }
  assert.deepEqual(paths(site), ["/post", "/other", "/post"]);
});

test("`query` and `exclude` apply to views, clicks, custom events and referrers", async () => {
  const { site, page, tracker } = await start(
    { query: ["id"], exclude: ["/admin/*"] },
    {},
    { url: "https://shop.example/post?id=7&sort=up", referrer: "https://shop.example/admin/secret" },
  );
  tracker.click("seen");
  page.history.pushState({}, "", "/admin/users");
  await pass(3000);
  tracker.click("hidden");
  tracker.track("hidden");
  tracker.pageView();
  const { made } = tracker.status();
  page.history.pushState({}, "", "/post?id=8&sort=up");
  await pass(3000);
  tracker.pageView({ url: "/x", referralUrl: "/admin/y" });
  tracker.track("seen");
  await pass(3000);
  assert.equal(made, 2);
  assert.deepEqual(
    site.events().map(({ url, button_id, name }) => url?.replace("https://shop.example", "") ?? button_id ?? name),
    ["/post?id=7", "seen", "/post?id=8", "/x", "seen"],
  );
  assert.deepEqual(referrals(site), [undefined, undefined, "/post?id=7", undefined, undefined]);
});

test("a page where nothing is recorded stores nothing", async () => {
  const { site, tracker } = await start({ exclude: ["/tea/"], anonymousId: true });
  tracker.track("hidden");
  await pass(3000);
  assert.deepEqual([site.names(), tracker.status().made], [[], 0]);
});

test("a search box that replaces the address while somebody types is one view, or none with `query: drop`", async () => {
  for (const [query, expected] of [
    ["keep", ["/tea/?q=1", "/search?q=green%20tea"]],
    ["drop", ["/tea/", "/search"]],
  ]) {
    const { site, page } = await start({ query });
    page.history.pushState({}, "", "/search");
    await pass(100);
    const text = "green tea";
    for (let end = 1; end <= text.length; end++) {
      page.history.replaceState({}, "", "/search?q=" + encodeURIComponent(text.slice(0, end)));
      await pass(200);
    }
    await pass(4000);
    assert.deepEqual(paths(site), expected);
  }
});

test("a later search is one view", async () => {
  const { site, page } = await start({}, {}, { url: "https://shop.example/search" });
  for (const q of ["t", "te", "tea"]) {
    page.history.replaceState({}, "", "/search?q=" + q);
    await pass(600);
  }
  await pass(4000);
  assert.deepEqual(paths(site), ["/search", "/search?q=tea"]);
  assert.equal(site.events()[1].occurred_at, NOW, "when it began");
});

test("quick navigations are views of their own, each with its time", async () => {
  const { site, page } = await start();
  await pass(1000);
  for (const to of ["/a", "/b", "/c"]) {
    page.history.replaceState({ scroll: 1 }, "");
    page.history.pushState({}, "", to);
    await pass(100);
  }
  await pass(4000);
  assert.deepEqual(paths(site), ["/tea/?q=1", "/a", "/b", "/c"]);
  assert.deepEqual(
    site.events().map(({ occurred_at }) => occurred_at - NOW),
    [0, 1000, 1100, 1200],
  );
});

test("the title is the one that a framework sets after the route change", async () => {
  const { site, page } = await start();
  page.history.pushState({}, "", "/coffee");
  await pass(100);
  page.document.title = "Coffee";
  await pass(4000);
  assert.deepEqual(
    site.events().map(({ title }) => title),
    ["Tea", "Coffee"],
  );
});

test("the referrer is what was sent, after the hook", async () => {
  const { site, page } = await start({
    beforeSend: (event) =>
      event.url?.includes("/internal") ? null : { ...event, url: event.url?.replace(/invite=\w+/, "invite") },
  });
  for (const to of ["/a?invite=s3cret", "/internal/page", "/b", "/c"]) {
    page.history.pushState({}, "", to);
    await pass(3000);
  }
  assert.deepEqual(paths(site), ["/tea/?q=1", "/a?invite", "/b", "/c"]);
  assert.deepEqual(referrals(site), ["https://search.example/", "/tea/?q=1", "/a?invite", "/b"]);
  assert.ok(!JSON.stringify(site.requests).includes("s3cret"));
});

test("events of automated browsers have `bot: true`, are dropped and counted, or are like others", async () => {
  const headless = { userAgent: "Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/131.0.0.0 Safari/537.36" };
  for (const navigator of [{ webdriver: true }, headless]) {
    const outcome = {};
    for (const bots of [undefined, "flag", "drop", "keep"]) {
      const { site, tracker } = await start({ bots }, { navigator });
      tracker.track("charge", { value: 1 });
      tracker.track("bot", { bot: "mine" });
      tracker.track("refused", 7);
      await pass(3000);
      adds(tracker);
      outcome[bots ?? "default"] = [site.events().map(({ properties }) => properties), tracker.status().dropped];
      if (bots === "drop") {
        assert.deepEqual(site.names(), []);
        assert.equal(site.requests.length, 0);
      }
    }
    const flagged = [[{ bot: true }, { bot: true, value: 1 }, { bot: "mine" }], { invalid: 1 }];
    assert.deepEqual(outcome, {
      default: flagged,
      flag: flagged,
      drop: [[], { bot: 4 }],
      keep: [[undefined, { value: 1 }, { bot: "mine" }], { invalid: 1 }],
    });
  }
  const { site, tracker } = await start(
    {},
    { navigator: { userAgent: "Mozilla/5.0 Firefox/133.0", webdriver: false } },
  );
  tracker.track("charge");
  await pass(3000);
  assert.deepEqual(
    site.events().map(({ properties }) => properties),
    [undefined, undefined],
  );
});

test("the collector is not told of dropped bots as of losses", async () => {
  const { site, page, tracker } = await start({ bots: "drop" }, { navigator: { webdriver: true } });
  tracker.track("dropped");
  page.close();
  site.navigator.webdriver = false;
  const next = site.open().track();
  next.track("kept");
  await ready(next);
  await pass(3000);
  assert.deepEqual(
    site.requests.map(({ batch }) => [batch.events.length, batch.lost]),
    [[1, undefined]],
  );
});
