// Faults of pages and networks. Each row acts in a page and returns the events that must be counted in the end: the path of
// a view, the button of a click, the name of a custom event.
//
// `leave` runs first, for all rows, and `back` after that, which gives the lanes of ended pages the time until they are
// adopted. So rows with `back` come first.

import assert from "node:assert/strict";
import { By, Key } from "selenium-webdriver";
import { pass } from "./collector.mjs";
import { openBrowser, until } from "./support.mjs";

/** The collector counts the batch; the network fails before the answer, or in the middle of it. */
const lost = async (response, forward) => {
  await forward();
  response.destroy();
};
const torn = async (response, forward) => {
  const { status, headers, body } = await forward();
  response.writeHead(status, headers).write(body.subarray(0, 9), () => response.destroy());
};
/** The collector counts the batch and never answers. */
const silent = (_, forward) => forward();
const says =
  (status, headers = {}, body = "") =>
  (response) =>
    response.writeHead(status, headers).end(body);

const track = (page, ...names) => page.run("for (const name of arguments) tallymark.track(name)", ...names);
const flush = (page) => page.run("tallymark.flush()");
const click = (page, id) => page.driver.findElement(By.id(id)).click();
/** A click that is over when this returns; a driver's may come later. */
const clicked = (page, id) => page.run("document.getElementById(arguments[0]).click()", id);
/** Navigates by script: in Firefox, a page left by a driver's click never enters the back/forward cache. */
const follow = (page, path) => page.run("location.href = arguments[0]", path);
const isAt = (page, path) =>
  until(async () => (await page.driver.getCurrentUrl()) === page.site.origin + path, "at " + path);
const ready = (page) => until(async () => (await page.status()).ready, "the core");
const settled = (page) => until(async () => !(await page.status()).queued, "nothing queued");
const keptIn = (page) => page.run(`return Object.keys(localStorage).filter((name) => name.startsWith("tallymark/"))`);
const fetched = (page, path) => page.site.requests.some((request) => request.path === path);

async function inTab(page, act) {
  const before = await page.driver.getWindowHandle();
  await page.driver.switchTo().newWindow("tab");
  await act();
  await page.driver.close();
  await page.driver.switchTo().window(before);
}

export const rows = [
  {
    // First, because browsers write to the disk seconds later.
    name: "the page's process is killed, then the browser",
    async leave(page) {
      page.driver = await openBrowser(page.engine);
      await page.network.close();
      await page.open("/");
      await ready(page);
      await track(page, "a", "b");
      // WebKit seems to pass stored items to another process a moment later: without this, they were lost once.
      await page.run(`return fetch("/blank").then(() => null)`);
      assert.ok(page.driver.killPages());
      return ["/", "a", "b"];
    },
    async back(page) {
      page.driver = await page.driver.crash();
      await page.network.reopen();
      await page.open("/next");
      return ["/next"];
    },
  },
  {
    name: "ten tabs (forty in Chromium) are closed while the collector answers 503, then two opened",
    async leave(page) {
      page.network.otherwise = says(503);
      const first = await page.driver.getWindowHandle();
      const tabs = Array.from({ length: page.engine === "chromium" ? 40 : 10 }, (_, tab) => "tab " + tab);
      for (const tab of tabs) {
        await page.driver.switchTo().newWindow("tab");
        await page.open("/");
        await track(page, tab);
      }
      for (const handle of await page.driver.getAllWindowHandles()) {
        if (handle === first) continue;
        await page.driver.switchTo().window(handle);
        await page.driver.close();
      }
      await page.driver.switchTo().window(first);
      return tabs.flatMap((tab) => ["/", tab]);
    },
    async back(page) {
      page.network.otherwise = undefined;
      await page.open("/next");
      await inTab(page, async () => {
        await page.open("/next");
        await settled(page);
      });
      return ["/next", "/next"];
    },
    // Each batch was adopted by one tab only.
    once: true,
  },
  {
    name: "the tab is closed right after a click",
    async leave(page) {
      await inTab(page, async () => {
        await page.open("/");
        await clicked(page, "buy");
      });
      return ["/", "buy"];
    },
    async back(page) {
      await page.open("/next");
      return ["/next"];
    },
  },
  {
    name: "the same while the collector cannot be reached",
    async leave(page) {
      await inTab(page, async () => {
        await page.open("/");
        await ready(page);
        await page.network.close();
        await clicked(page, "buy");
      });
      return ["/", "buy"];
    },
    async back(page) {
      await page.network.reopen();
      await page.open("/next");
      return ["/next"];
    },
  },
  {
    name: "reload while a batch is in flight, which arrives",
    async leave(page) {
      await page.open("/");
      await settled(page);
      page.network.answers.push(silent);
      await track(page, "a");
      await flush(page);
      await until(() => page.network.asked === 2);
      await track(page, "b");
      await page.driver.navigate().refresh();
      return ["/", "a", "b", "/"];
    },
    async back(page) {
      await page.open("/next");
      return ["/next"];
    },
  },
  {
    name: "reload while a batch is in flight, which is cut off",
    async leave(page) {
      await page.open("/");
      await settled(page);
      page.network.answers.push(() => {});
      await track(page, "a");
      await flush(page);
      await until(() => page.network.asked === 2);
      await page.network.close();
      await page.driver.navigate().refresh();
      await page.network.reopen();
      return ["/", "a", "/"];
    },
    async back(page) {
      await page.open("/next");
      return ["/next"];
    },
  },
  {
    name: "the key is wrong (401), then corrected",
    async leave(page) {
      await page.open("/wrong");
      await until(async () => (await page.status()).paused === "unauthorized");
      await track(page, "a");
      return ["/wrong", "a"];
    },
    async back(page) {
      await page.open("/");
      return ["/"];
    },
  },
  {
    name: "a link is followed while the collector answers 503",
    async leave(page) {
      page.network.otherwise = says(503);
      await page.open("/");
      await ready(page);
      await track(page, "a");
      await follow(page, "/blank");
      await isAt(page, "/blank");
      return ["/", "a"];
    },
    async back(page) {
      page.network.otherwise = undefined;
      await page.open("/next");
      return ["/next"];
    },
  },
  {
    name: "a page loads",
    async leave(page) {
      await page.open("/");
      await settled(page);
      assert.equal(fetched(page, "/fallback.js"), false);
      return ["/"];
    },
  },
  {
    name: "route changes within a page",
    async leave(page) {
      await page.open("/");
      for (const step of [
        `history.pushState(0, "", "/a")`,
        // A router that redirects at once, one that only stores state, and a place in the page.
        `history.pushState(0, "", "/b"); history.replaceState(0, "", "/c")`,
        `history.replaceState({ scrolled: 1 }, "", location.href)`,
        `location.hash = "reviews"`,
      ]) {
        await page.run(step + "; return new Promise((done) => setTimeout(done))");
      }
      // By script: through the driver, WebKit skips history entries without a user gesture.
      await page.run("history.back()");
      await isAt(page, "/c");
      await page.run("history.back()");
      await isAt(page, "/a");
      return ["/", "/a", "/c", "/a"];
    },
  },
  {
    name: "clicks: nested, added later, in a shadow root, by keyboard",
    async leave(page) {
      await page.open("/");
      await click(page, "inside");
      await click(page, "plain");
      await page.driver.findElement(By.id("buy")).sendKeys(Key.ENTER);
      await page.run(`
        document.getElementById("disabled").click();
        document.body.insertAdjacentHTML("beforeend", '<button id="late" data-tallymark-click="late">Late</button>');
        const root = document.getElementById("host").attachShadow({ mode: "open" });
        root.innerHTML = '<button data-tallymark-click="shadow"><b>Shadow</b></button>';
        root.querySelector("b").click();`);
      await click(page, "late");
      await settled(page);
      return ["/", "buy", "buy", "shadow", "late"];
    },
  },
  {
    name: "a click on a link that leaves the page",
    async leave(page) {
      await page.open("/");
      await click(page, "leave");
      await isAt(page, "/blank");
      return ["/", "leave"];
    },
  },
  {
    name: "offline for ten minutes",
    async leave(page) {
      await page.open("/");
      await settled(page);
      await page.network.close();
      await page.driver.setOnline(false);
      await track(page, "a");
      await page.run("const now = Date.now; Date.now = () => now() + 600_000");
      await track(page, "b");
      await flush(page);
      assert.equal((await page.status()).paused, "offline");
      assert.equal((await page.status()).queued, 2);
      await page.network.reopen();
      await page.driver.setOnline(true);
      return ["/", "a", "b"];
    },
  },
  {
    name: "the collector answers 503, twice",
    async leave(page) {
      page.network.answers.push(says(503), says(503));
      await page.open("/");
      return ["/"];
    },
  },
  {
    name: "the collector answers 429 with Retry-After",
    async leave(page) {
      page.network.answers.push(says(429, { "Retry-After": "1" }));
      await page.open("/");
      return ["/"];
    },
  },
  {
    name: "the collector answers 413 to more than two events",
    async leave(page) {
      page.network.otherwise = (response, forward, { events }) =>
        events.length > 2 ? says(413)(response) : pass(response, forward);
      await page.open("/");
      const names = ["a", "b", "c", "d", "e", "f", "g"];
      await track(page, ...names);
      return ["/", ...names];
    },
  },
  {
    name: "the answer is lost after the commit",
    async leave(page) {
      // A browser may retry a request without any answer on its own.
      page.network.answers.push(lost, torn, torn);
      await page.open("/");
      return ["/"];
    },
  },
  {
    name: "a captive portal answers 200 to everything",
    async leave(page) {
      page.network.answers.push(
        says(200, { "Content-Type": "text/html" }, "<html>Welcome to our hotel!</html>"),
        says(200, { "Content-Type": "application/json" }, "{}"),
        says(200, { "Content-Type": "application/json" }, `{"batch_id":"0","accepted":1,"rejected":[],"retry":[]}`),
      );
      await page.open("/");
      return ["/"];
    },
  },
  {
    name: "storage is refused",
    head: `Object.defineProperty(window, "localStorage", { get() { throw new DOMException("No.", "SecurityError"); } })`,
    async leave(page) {
      page.network.answers.push(says(503));
      await page.open("/");
      await track(page, "a");
      return ["/", "a"];
    },
  },
  {
    name: "storage is full, then has room again",
    head: `
      window.refused = false;
      for (let length = 2 ** 22; length >= 1; length /= 2) {
        for (;;) try { localStorage.setItem("other" + localStorage.length, "x".repeat(length)); } catch { break; }
      }
      try { localStorage.setItem("x", "xx"); } catch { window.refused = true; }`,
    async leave(page) {
      page.network.otherwise = says(503);
      await page.open("/");
      assert.equal(await page.run("return refused"), true);
      await ready(page);
      await track(page, "a");
      assert.deepEqual(await keptIn(page), []);
      await flush(page);
      await page.run(
        `for (const name of Object.keys(localStorage)) if (!name.startsWith("tallymark/")) localStorage.removeItem(name)`,
      );
      await track(page, "b");
      assert.ok((await keptIn(page)).length);
      page.network.otherwise = undefined;
      return ["/", "a", "b"];
    },
  },
  {
    name: "the back/forward cache",
    async leave(page) {
      await page.open("/");
      await settled(page);
      await until(() => page.run("return navigator.locks.query().then(({ held }) => !held.length)"), "no locks held");
      await follow(page, "/blank");
      await isAt(page, "/blank");
      await page.driver.navigate().back();
      await isAt(page, "/");
      assert.equal(await page.run("return window.restored"), true);
      await track(page, "a");
      return ["/", "/", "a"];
    },
  },
  {
    name: "the back/forward cache, with queued events",
    async leave(page) {
      page.network.otherwise = says(503);
      await page.open("/");
      await ready(page);
      await track(page, "a");
      // The lane that the page has left is adopted after ten seconds.
      await page.run(`addEventListener("pageshow", () => {
        const now = Date.now;
        Date.now = () => now() + 11_000;
      })`);
      await follow(page, "/blank");
      await isAt(page, "/blank");
      page.network.otherwise = undefined;
      await page.driver.navigate().back();
      await isAt(page, "/");
      // The browser may or may not restore it: the page held a lock until it was left.
      return ["/", "a", "/"];
    },
  },
  {
    name: "a prerendered page, and one that is never shown",
    not: { firefox: "it does not prerender", webkit: "it does not prerender" },
    rules: { prerender: [{ urls: ["/next", "/never"], eagerness: "immediate" }] },
    async leave(page) {
      await page.open("/");
      const rendered = (path) =>
        page.site.requests.some((request) => request.path === path && /prerender/.test(request.headers["sec-purpose"]));
      await until(() => rendered("/next") && rendered("/never"), "rendered in advance");
      await follow(page, "/next");
      await isAt(page, "/next");
      assert.ok((await page.run(`return performance.getEntriesByType("navigation")[0].activationStart`)) > 0);
      return ["/", "/next"];
    },
  },
  {
    name: "consent is pending, then granted",
    attributes: `data-consent="pending"`,
    async leave(page) {
      await page.open("/");
      await track(page, "a");
      await flush(page);
      assert.equal((await page.status()).queued, 2);
      assert.deepEqual(await keptIn(page), []);
      assert.equal(page.network.asked, 0);
      await page.run(`tallymark.setConsent("granted")`);
      await track(page, "b");
      return ["/", "a", "b"];
    },
  },
  {
    name: "Global Privacy Control is on",
    head: `Object.defineProperty(navigator, "globalPrivacyControl", { value: true })`,
    async leave(page) {
      await page.open("/");
      await track(page, "a");
      await flush(page);
      assert.equal((await page.status()).disabledReason, "gpc");
      assert.equal((await page.status()).made, 0);
      assert.deepEqual(await keptIn(page), []);
      return [];
    },
  },
  {
    name: "the visitor opts out, then in again",
    async leave(page) {
      await page.open("/");
      await settled(page);
      await page.run("tallymark.optOut()");
      await track(page, "unseen");
      await page.open("/next");
      assert.equal((await page.status()).disabledReason, "opted_out");
      await page.run("tallymark.optIn()");
      await track(page, "a");
      return ["/", "a"];
    },
  },
  {
    name: "the policy forbids wasm",
    policy: "default-src 'none'; script-src 'self' 'nonce-row'; connect-src 'self' http://127.0.0.1:*",
    async leave(page) {
      page.network.answers.push(says(503));
      await page.open("/");
      await click(page, "buy");
      await settled(page);
      assert.equal(fetched(page, "/fallback.js"), true);
      return ["/", "buy"];
    },
  },
];
