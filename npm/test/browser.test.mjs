// The built package in a real browser: how it is loaded, and what a page sees of it. Failures of networks and browsers are
// in faults.mjs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, afterEach, before, describe, test } from "node:test";
import { Button, By, Key } from "selenium-webdriver";
import { engines, openBrowser, openCollector, openSite, until } from "./support.mjs";

// The stub from the README, verbatim.
const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const stub = /<script>\n(Object\.getOwn[\s\S]*?)<\/script>/.exec(readme)[0];

let driver, collector, site, strict, stranger;

const watched = `<script>
  window.errors = [];
  addEventListener("error", (event) => errors.push(event.message || event.target.src), false);
  addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
</script>`;
const html = (head, body = "") =>
  `<!doctype html><html><head><meta charset="utf-8"><title>Tea</title>${watched}${head}</head><body>${body}</body></html>`;
const tag = (endpoint, src = "tallymark.js", more = "") =>
  `<script src="${src}" data-endpoint="${endpoint}" data-username="shop" data-key="k" data-bots="keep" ${more} defer></script>`;
const quiet = `data-page-views="false"`;

const buttons = `
  <button id="buy" data-tallymark-click="buy" data-tallymark-props='{"price": 2.4}'><b><i id="inside">Buy</i></b></button>
  <button id="typo" data-tallymark-click="typo" data-tallymark-props="{oops">Typo</button>
  <button id="stopped" data-tallymark-click="stopped" onclick="event.stopPropagation()">Stopped</button>
  <button id="disabled" data-tallymark-click="disabled" disabled>No</button>
  <button data-tallymark-click="aria" aria-disabled="true" id="aria">No</button>
  <button id="plain">Not marked</button>
  <label data-tallymark-click="agree" id="label">I agree <input type="checkbox" id="agree"></label>
  <div id="host"></div>`;

const links = `
  <a id="new-tab" href="/blank" data-tallymark-click="new-tab"><b id="in-link">New tab</b></a>
  <button id="button" data-tallymark-click="button">Nothing opens</button>
  <label id="prevented" data-tallymark-click="prevented" onclick="event.preventDefault()">
    <span>Prevented</span> <input type="checkbox"></label>
  <form id="form" data-tallymark-click="form" onclick="event.preventDefault()">
    <input name="matches"><input name="getAttribute"><input name="closest"><input name="contains"><b id="in-form">x</b></form>
  <div onclick="event.preventDefault()">
    <a id="other" href="https://other.example/tea/green?utm_source=shop&id=7#leaves">Another site</a>
    <a id="own" href="/about">This site</a>
    <a id="mail" href="mailto:ann@other.example">Mail</a>
    <a id="menu" href="/files/menu.pdf?token=s3cret">Menu</a>
    <a id="data" href="/export?format=csv" download>Data</a>
    <a id="there" href="https://other.example/archive.tar.gz">Archive</a>
    <a id="marked" href="https://other.example/" data-tallymark-click="marked">Marked</a>
    <svg><a id="drawn" href="https://other.example/drawn"><text>Drawn</text></a></svg>
  </div>
  <form id="signup" onsubmit="event.preventDefault()"><input name="id" value="s3cret"><input type="password" name="name"
    value="s3cret"><button id="submit">Sign up</button></form>
  <form name="search" onsubmit="event.preventDefault()"><button>Search</button></form>
  <form action="/subscribe?list=7" onsubmit="event.preventDefault()"><button>Subscribe</button></form>
  <form onsubmit="event.preventDefault()"><input required><button>Invalid</button></form>`;

before(async () => {
  collector = await openCollector();
  const there = collector.origin;
  site = await openSite(
    {
      "/view": html(tag(there)),
      "/same-origin": html(tag("/")),
      "/buttons": html(tag(there, "tallymark.js", quiet), buttons),
      // Its own endpoint, whose preflight is not in the browser's cache from another test.
      "/close": html(tag(there + "/close", "tallymark.js", quiet), buttons),
      "/blank": html(""),
      "/early": html(
        `${stub}<script>tallymark.track("early", { step: 1 }); window.kept = tallymark.track;</script>${tag(there)}`,
      ),
      "/blocked": html(`${stub}<script>tallymark.track("lost");</script>${tag(there, "blocked/tallymark.js")}`),
      "/blocked/tallymark.js": null,
      "/broken": html(tag(there, "broken/tallymark.js")),
      "/broken/tallymark.wasm": null,
      "/broken/fallback.js": null,
      "/without": html(tag(there, "without/tallymark.js")),
      "/without/tallymark.wasm": null,
      "/twice": html(tag(there) + tag(there, "dist/tallymark.js")),
      "/bare": html(`<script src="tallymark.js" defer></script>`),
      "/module": html(`<script type="module">
        import { createTracker } from "/dist/index.js";
        window.tracker = createTracker({ endpoint: "${there}", username: "shop", key: "k", bots: "keep" });
      </script>`),
      "/automated": html(
        `<script src="tallymark.js" data-endpoint="${there}" data-username="shop" data-key="k" defer></script>`,
      ),
      "/quiet-links": html(tag(there, "tallymark.js", quiet), links),
      "/stopped": html(
        `<script>addEventListener("click", (event) => { stopped++; event.stopPropagation() }, true); stopped = 0</script>` +
          tag(there, "tallymark.js", quiet),
        links,
      ),
      "/links": html(tag(there, "tallymark.js", `${quiet} data-outbound data-downloads data-forms`), links),
    },
    collector,
  );
  stranger = await openCollector();
  const evil = `data-endpoint="${stranger.origin}" src="${stranger.origin}/tallymark.js"`;
  const injected = ["currentScript", "scripts", "createElement", "documentElement", "head", "baseURI"]
    .map((name) => `<img name="${name}" id="${name}" data-username="shop" data-key="k" ${evil}>`)
    .join("");
  const attacked = (src) => `<!doctype html><html><body>${injected}${tag(there, src)}${injected}</body></html>`;
  strict = await openSite(
    {
      "/attacked": attacked("tallymark.js"),
      "/changed": attacked("changed/tallymark.js"),
      "/changed/fallback.js": "document.title = 'changed'; export const instantiate = 0, explain = 0;",
    },
    collector,
    { "Content-Security-Policy": `default-src 'none'; script-src 'self'; connect-src 'self' http://127.0.0.1:*` },
  );
});

after(async () => {
  await strict?.close();
  await stranger?.close();
  await site?.close();
  await collector?.close();
});

const open = (path) => driver.get(site.origin + path);
const click = (id) => driver.findElement(By.id(id)).click();
const errors = () => driver.executeScript("return errors");
const status = (name = "tallymark") => driver.executeScript(`return ${name}.status()`);
const delivered = (count, name) =>
  until(async () => (await status(name)).delivered === count, `${count} events delivered`);
const flush = () => driver.executeScript("tallymark.flush()");

for (const engine of engines)
  describe(engine, () => {
    before(async () => {
      driver = await openBrowser(engine);
    });

    after(() => driver?.quit());

    afterEach(async () => {
      // Events still queued must not arrive during the next test.
      await open("/blank");
      await driver.executeScript("localStorage.clear()");
      await driver.get("about:blank");
      collector.reset();
    });

    test("a page view is recorded once when the page loads", async () => {
      await open("/view");
      await delivered(1);
      const [{ event_type, url, title, session_id, referral_url }] = collector.events();
      assert.deepEqual(
        { event_type, url, title, referral_url },
        {
          event_type: "page_view",
          url: site.origin + "/view",
          title: "Tea",
          referral_url: undefined,
        },
      );
      await open("/view?again");
      await delivered(1);
      assert.equal(collector.events().length, 2);
      assert.equal(collector.events()[1].session_id, session_id, "the same visit");
      const [{ headers, path }] = collector.requests;
      assert.equal(path, "/v1/batch");
      assert.equal(headers.authorization, "Basic " + btoa("shop:k"));
      assert.ok(Math.abs(Number(headers["tallymark-sent-at"]) - Date.now()) < 60_000);
      assert.deepEqual(await errors(), []);
    });

    test("the endpoint / is the page's own origin", async () => {
      await open("/same-origin");
      await delivered(1);
      assert.equal(collector.events()[0].url, site.origin + "/same-origin");
    });

    test("clicks anywhere in a marked element are recorded, and no others", async () => {
      await open("/buttons");
      await until(async () => (await status()).ready);
      for (const id of ["inside", "typo", "stopped", "aria", "plain", "agree"]) await click(id);
      await driver.executeScript(`
      document.getElementById("disabled").click();
      document.body.insertAdjacentHTML("beforeend", '<button id="late" data-tallymark-click="late">Late</button>');
      const root = document.getElementById("host").attachShadow({ mode: "open" });
      root.innerHTML = '<button data-tallymark-click="shadow"><b>Shadow</b></button>';
      root.querySelector("b").click();
      // A click on the label's text, which causes a click on the checkbox.
      document.getElementById("label").click();
    `);
      await click("late");
      await flush();
      await delivered(7);
      const pressed = collector.events().map(({ button_id }) => button_id);
      assert.deepEqual(pressed, ["buy", "typo", "stopped", "agree", "shadow", "agree", "late"]);
      assert.deepEqual(collector.events()[0].properties, { price: 2.4 });
      assert.equal(collector.events()[1].properties, undefined);
      assert.deepEqual(await errors(), []);
    });

    test("clicks that open a tab, that the page prevents or stops, and on foreign elements are recorded", async () => {
      await open("/links");
      await until(async () => (await status()).ready);
      const first = await driver.getWindowHandle();
      const press = (id, button, key) => {
        const actions = driver.actions().move({ origin: driver.findElement(By.id(id)) });
        if (key) actions.keyDown(key);
        actions.press(button).release(button);
        if (key) actions.keyUp(key);
        return actions.perform();
      };
      await press("in-link", Button.MIDDLE);
      await press("in-link", Button.LEFT, Key.CONTROL);
      await press("button", Button.MIDDLE);
      await press("in-link", Button.RIGHT);
      await driver.actions().sendKeys(Key.ESCAPE).perform();
      await until(async () => (await driver.getAllWindowHandles()).length === 3, "two more tabs");
      for (const handle of await driver.getAllWindowHandles()) {
        if (handle === first) continue;
        await driver.switchTo().window(handle);
        await driver.close();
      }
      await driver.switchTo().window(first);
      await driver.executeScript(`
        document.querySelector("#prevented span").click();
        document.getElementById("in-form").click();
        const frame = document.body.appendChild(document.createElement("iframe"));
        const foreign = frame.contentDocument.createElement("button");
        foreign.dataset.tallymarkClick = "foreign";
        document.body.append(foreign);
        if (foreign instanceof Element) throw Error("the test needs an element of another frame");
        foreign.click();
        document.getElementById("button").click();
      `);
      await until(async () => (await status()).made === 6);
      await flush();
      await delivered(6);
      // The label's click is recorded when it is known that its control gets none.
      const pressed = collector.events().map(({ button_id }) => button_id);
      assert.deepEqual(pressed.sort(), ["button", "foreign", "form", "new-tab", "new-tab", "prevented"]);
      assert.deepEqual(await errors(), []);
    });

    test("a click that an earlier listener of the window stops is recorded", async () => {
      await open("/stopped");
      await until(async () => (await status()).ready);
      await click("button");
      assert.equal(await driver.executeScript("return stopped"), 1);
      await flush();
      await delivered(1);
    });

    test("links to other sites, downloads and forms are recorded if the site asks for it", async () => {
      await open("/links");
      await until(async () => (await status()).ready);
      await driver.executeScript(`
        for (const id of ["other", "own", "mail", "menu", "data", "there", "marked"]) document.getElementById(id).click();
        document.querySelector("#drawn text").dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
        for (const button of document.querySelectorAll("form button")) button.click();
      `);
      await flush();
      await delivered(9);
      const other = "https://other.example";
      assert.deepEqual(
        collector.events().map(({ button_id, properties }) => [button_id, properties?.url]),
        [
          ["outbound:other.example/tea/green", `${other}/tea/green?id=7`],
          ["download:/files/menu.pdf", `${site.origin}/files/menu.pdf`],
          ["download:/export", `${site.origin}/export?format=csv`],
          ["download:other.example/archive.tar.gz", `${other}/archive.tar.gz`],
          ["marked", undefined],
          ["outbound:other.example/drawn", `${other}/drawn`],
          ["form:signup", undefined],
          ["form:search", undefined],
          ["form:/subscribe", undefined],
        ],
      );
      assert.ok(!JSON.stringify(collector.events()).includes("s3cret"));
      assert.deepEqual(await errors(), []);
    });

    test("without that, they are not", async () => {
      await open("/quiet-links");
      await until(async () => (await status()).ready);
      await driver.executeScript(`
        for (const id of ["other", "menu", "submit"]) document.getElementById(id).click();
      `);
      assert.equal((await status()).made, 0);
    });

    test("events of this automated browser say so", async () => {
      await open("/automated");
      await driver.executeScript("tallymark.track('charge', { value: 1 }); tallymark.flush()");
      await delivered(2);
      assert.deepEqual(
        collector.events().map(({ properties }) => properties),
        [{ bot: true }, { bot: true, value: 1 }],
      );
    });

    test("pages that the Navigation API shows are recorded once, also beside `history`", async (t) => {
      await open("/view");
      if (!(await driver.executeScript("return 'navigation' in window"))) return t.skip("not in this engine");
      await driver.executeScript(`
        navigation.addEventListener("navigate", (event) => {
          if (event.canIntercept && !event.hashChange) event.intercept({
            async handler() {
              await new Promise(requestAnimationFrame);
              document.title = new URL(event.destination.url).pathname;
            },
          });
        });
      `);
      const views = [
        ["navigation.navigate('/navigated')", "/navigated"],
        [
          "document.body.insertAdjacentHTML('beforeend', '<a id=go href=/linked#part>Go</a>'); document.getElementById('go').click()",
          "/linked",
        ],
        ["navigation.navigate('/replaced', { history: 'replace' })", "/replaced"],
        ["history.pushState(0, '', '/pushed'); navigation.navigate('/pushed#again')", "/pushed"],
        ["navigation.navigate('/redirected'); history.replaceState(0, '', '/login')", "/login"],
        ["navigation.back()", "/pushed"],
      ];
      const expected = ["/view"];
      for (const [act, path] of views) {
        await driver.executeScript(act);
        expected.push(path);
        await until(async () => (await status()).made === expected.length, act);
      }
      await flush();
      await delivered(expected.length);
      const events = collector.events();
      assert.deepEqual(
        events.map(({ url }) => url),
        expected.map((path) => site.origin + path),
      );
      assert.deepEqual(
        events.slice(1, 4).map(({ title }) => title),
        ["/navigated", "/linked", "/replaced"],
      );
      assert.deepEqual(await errors(), []);
    });

    test("a click arrives although the tab closes before the preflight is answered", async () => {
      const first = await driver.getWindowHandle();
      await driver.switchTo().newWindow("tab");
      await open("/close");
      await until(async () => (await status()).ready);
      let allow;
      collector.preflight = new Promise((resolve) => (allow = resolve));
      await click("buy");
      await driver.close();
      await driver.switchTo().window(first);
      assert.equal(collector.requests.length, 0);
      allow();
      await until(() => collector.events().length);
      assert.deepEqual(
        collector.events().map(({ button_id }) => button_id),
        ["buy"],
      );
    });

    test("calls made before the script loads are recorded with their times", async () => {
      const before = Date.now();
      await open("/early");
      await driver.executeScript("kept('late')");
      await flush();
      await delivered(3);
      const events = collector.events();
      assert.deepEqual(
        events.map(({ event_type, name }) => name ?? event_type),
        ["early", "page_view", "late"],
      );
      assert.deepEqual(events[0].properties, { step: 1 });
      assert.ok(events[0].occurred_at >= before && events[0].occurred_at <= events[1].occurred_at);
    });

    test("two tags in a page record everything once", async () => {
      await open("/twice");
      await delivered(1);
      assert.equal((await status()).made, 1);
      assert.equal(collector.events().length, 1);
    });

    test("elements injected into a page whose policy forbids wasm redirect neither events nor scripts", async () => {
      await driver.get(strict.origin + "/attacked");
      await delivered(1);
      assert.equal(collector.events()[0].url, strict.origin + "/attacked");
      assert.equal((await status()).ready, true);
      assert.ok(strict.requests.some(({ path }) => path === "/fallback.js"));
      assert.equal(stranger.requests.length, 0);
    });

    test("a changed fallback is not run, and the events are stored", async () => {
      await driver.get(strict.origin + "/changed");
      await until(() => strict.requests.some(({ path }) => path === "/changed/fallback.js"));
      await driver.executeScript("tallymark.track('more')");
      await driver.executeAsyncScript("setTimeout(arguments[0], 500)");
      const { queued, ready } = await status();
      assert.deepEqual({ queued, ready }, { queued: 2, ready: false });
      assert.notEqual(await driver.getTitle(), "changed");
      await driver.executeScript("localStorage.clear()");
    });

    test("a page works when the script is blocked", async () => {
      await open("/blocked");
      await driver.executeScript(
        "tallymark.track('more'); tallymark.click('more'); tallymark.pageView(); tallymark.flush()",
      );
      assert.deepEqual(await errors(), []);
      assert.equal(collector.requests.length, 0);
    });

    test("a page works without the wasm, and its events are stored", async () => {
      await open("/broken");
      await driver.executeScript("tallymark.track('more')");
      const { made, queued, ready } = await status();
      assert.deepEqual({ made, queued, ready }, { made: 2, queued: 2, ready: false });
      assert.deepEqual(await errors(), []);
      await open("/blank");
      assert.equal(
        await driver.executeScript(
          "return Object.values(localStorage).filter((text) => text.includes('batch_id')).length",
        ),
        1,
      );
    });

    test("where the wasm is missing, the fallback does the same", async () => {
      await open("/without");
      await delivered(1);
      assert.deepEqual(await errors(), []);
    });

    test("a tag without attributes reports that and does nothing", async () => {
      await open("/bare");
      await driver.executeScript("tallymark.track('more')");
      const { made, failed } = await status();
      assert.deepEqual({ made, failed }, { made: 0, failed: "options" });
      assert.deepEqual(await errors(), []);
    });

    test("the module works without a bundler", async () => {
      await open("/module");
      await driver.executeScript("tracker.track('charge', { value: 100 }); tracker.flush()");
      await delivered(2, "tracker");
      assert.deepEqual(
        collector.events().map(({ event_type }) => event_type),
        ["page_view", "custom"],
      );
      assert.deepEqual(await errors(), []);
    });
  });
