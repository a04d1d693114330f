// Real browsers with pages that get in the way: elements that hide properties of the document, patched built-ins, several
// copies of the tracker, and wrong options.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, afterEach, before, describe, test } from "node:test";
import { engines, openBrowser, openCollector, openSite, until } from "./support.mjs";

const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const [stub] = /<script>\n(Object\.getOwn[\s\S]*?)<\/script>/.exec(readme);

let driver, collector, site;

/** Collects errors and the lines of the tracker. */
const watched = `<script>
  window.errors = [];
  window.lines = [];
  window.addEventListener("error", (event) => errors.push(event.message || event.target.src));
  window.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
  for (const level of ["warn", "error"]) console[level] = (line) => lines.push(line);
</script>`;
const html = (body, head = "") =>
  `<!doctype html><html><head><meta charset="utf-8"><title>Tea</title>${watched}${head}</head><body>${body}</body></html>`;
const tag = (attributes = "") =>
  `<script src="tallymark.js" data-endpoint="${collector.origin}" data-username="shop" data-key="k" ${attributes}></script>`;
const module = (endpoint, file = "dist") => `<script type="module">
  import { createTracker } from "/${file}/index.js";
  (window.trackers ||= []).push(createTracker({ endpoint: "${endpoint}", username: "shop", key: "k" }));
</script>`;

/** Each page must record its view and the click, once, without an error. */
const PAGES = {
  "an element called tallymark": () => `<h2 id="tallymark">Tea</h2>${tag()}`,
  "the tag itself has that id": () => tag(`id="tallymark"`),
  "an element called tallymark, and the stub": () => `<form id="tallymark"><input name="q"></form>${stub}${tag()}`,
  "a frame called tallymark": () => `<iframe name="tallymark" src="/blank"></iframe>${stub}${tag()}`,
  "elements that hide properties of the document": () =>
    ["title", "referrer", "baseURI", "currentScript", "addEventListener", "hidden", "scripts", "prerendering", "head"]
      .map((name) => `<iframe name="${name}"></iframe><form name="${name}"></form>`)
      .join("") + tag(),
  "enumerable functions on prototypes": () =>
    `<script>
      Object.prototype.each = function () {};
      Array.prototype.toJSON = function () { return "[patched]"; };
      String.prototype.toJSON = function () { return "patched"; };
      const now = Date.now;
      Date.now = () => now() + 0.25;
    </script>${tag()}`,
  "a read-only history": () =>
    `<script>for (const name of ["pushState", "replaceState"]) Object.defineProperty(history, name, { value() {}, writable: false });</script>${tag()}${module(collector.origin)}`,
  "a document that is opened again": () =>
    `${tag()}<script>
      setTimeout(() => {
        const { tallymark } = window;
        document.open();
        document.write('<title>Tea</title><button data-tallymark-click="buy">Buy</button>');
        document.close();
        window.reopened = true;
      });
    </script>`,
  "a policy under which the wasm cannot be fetched": () =>
    `<meta http-equiv="Content-Security-Policy" content="connect-src ${collector.origin}">${tag()}`,
  "two tags, a module, another copy of it, and a slash": () =>
    tag() + tag() + module(collector.origin) + module(collector.origin + "/", "copy"),
  "a console and a storage that are broken": () =>
    `<script>
      Object.defineProperty(window, "localStorage", { get() { throw new Error("No."); } });
      for (const level of ["warn", "error"]) console[level] = () => { throw new Error("No."); };
    </script>${tag(`data-page-views="perhaps"`)}`,
};

const MISTAKES = `data-endpiont="https://collect.example" data-before-send="hook" data-consent="Granted" data-page-views="no" data-sample-rate="10%"`;

before(async () => {
  collector = await openCollector();
  const paths = { "/blank": html("") };
  Object.values(PAGES).forEach((body, at) => {
    paths[`/${at}`] = html(body() + `<button data-tallymark-click="buy">Buy</button>`);
  });
  paths["/mistakes"] = html(tag(MISTAKES));
  paths["/secret"] = html(
    `<script src="tallymark.js" data-endpoint="/" data-username="shop" data-key="tms_1234"></script>`,
  );
  paths["/module-tag"] = html(tag(`type="module"`));
  paths["/zones"] = html(
    `<script>${readFileSync(new URL("../node_modules/zone.js/bundles/zone.umd.min.js", import.meta.url), "utf8")}</script>
    <script type="module">
      import { createTracker } from "/dist/index.js";
      window.pending = [];
      // As Angular's, which is unstable while it has a task.
      const zone = Zone.current.fork({
        name: "angular",
        onHasTask(parent, current, target, state) {
          parent.hasTask(target, state);
          if (state.macroTask) pending.push(state);
        },
      });
      zone.run(() => {
        window.tracker = createTracker({ endpoint: "${collector.origin}", username: "shop", key: "k" });
        window.track = (name) => zone.run(() => (tracker.track(name), tracker.flush()));
      });
    </script>`,
  );
  paths["/own"] = html(`<script>window.tallymark = { version: 3 };</script>${tag()}`);
  site = await openSite(paths, collector);
  paths["/based"] = html(
    `<script src="${site.origin}/tallymark.js" data-endpoint="/" data-username="shop" data-key="k"></script>`,
    `<base href="https://cdn.example/assets/">`,
  );
});

after(async () => {
  await site?.close();
  await collector?.close();
});

const open = (path) => driver.get(site.origin + path);
const run = (script) => driver.executeScript(script);
const lines = (count) =>
  until(async () => (await run("return lines")).length >= count && run("return lines"), `${count} lines`);

for (const engine of engines) {
  describe(engine, () => {
    before(async () => {
      driver = await openBrowser(engine);
    });

    after(() => driver?.quit());

    afterEach(async () => {
      await open("/blank");
      await run("localStorage.clear()");
      await driver.get("about:blank");
      collector.reset();
    });

    Object.keys(PAGES).forEach((name, at) => {
      test(`${name}: everything is recorded once, and nothing throws`, async () => {
        await open(`/${at}`);
        if (name.includes("opened again")) await until(() => run("return window.reopened"));
        await run(`document.querySelector("[data-tallymark-click]").click()`);
        await until(() => collector.events().length >= 2, "two events");
        // What is recorded twice would come with the next batch at the latest.
        await run(
          "const tracker = window.tallymark?.track ? tallymark : trackers[0]; tracker.track('last'); tracker.flush()",
        );
        await until(() => collector.events().some(({ name }) => name === "last"), "the last event");
        const events = collector.events();
        assert.deepEqual(
          events.map(({ event_type, button_id, name }) => button_id ?? name ?? event_type),
          ["page_view", "buy", "last"],
        );
        assert.equal(events[0].url, `${site.origin}/${at}`);
        assert.equal(events[0].title, "Tea");
        assert.deepEqual(await run("return errors"), []);
        if (!name.includes("broken")) assert.deepEqual(await run("return lines"), []);
      });
    });

    test("five mistakes are five lines, and the page view is recorded", async () => {
      await open("/mistakes");
      const said = await lines(5);
      assert.equal(said.length, 5, said.join("\n"));
      for (const name of ["endpiont", "before-send", "consent", "page-views", "sample-rate"]) {
        const line = said.find((line) => line.includes(`\`data-${name}\``));
        assert.match(line, /^tallymark: .*(expected|does not exist)/, name);
      }
      await until(() => collector.events().length === 1);
      assert.deepEqual(await run("return errors"), []);
    });

    test("a secret key stops the tracker, with one line that does not show it", async () => {
      await open("/secret");
      const [line, ...more] = await lines(1);
      assert.deepEqual(more, []);
      assert.match(line, /`data-key` is the secret key.*replace/);
      assert.doesNotMatch(line, /tms_1/);
      assert.equal(await run("return tallymark.status().failed"), "options");
      assert.deepEqual(await run("return Object.keys(localStorage)"), []);
    });

    test("a tag with type=module says what to change, and works", async () => {
      await open("/module-tag");
      const [line] = await lines(1);
      assert.match(line, /remove type="module"/);
      await until(() => collector.events().length === 1);
    });

    test("/ is the page's own origin, whatever its <base> is", async () => {
      await open("/based");
      await until(() => collector.events().length === 1);
      assert.deepEqual(await run("return errors"), []);
    });

    test("with zone.js, an application's zone has no tasks of the tracker", async () => {
      await open("/zones");
      await until(() => run("return window.tracker?.status().ready"));
      await run("track('a'); return new Promise((resolve) => setTimeout(resolve, 50)).then(() => track('b'))");
      await until(() => collector.events().length === 3);
      assert.deepEqual(await run("return pending"), []);
      assert.deepEqual(await run("return errors"), []);
    });

    test("a value of the page's own at window.tallymark stays, and the tag says so", async () => {
      await open("/own");
      const [line] = await lines(1);
      assert.match(line, /window\.tallymark is something else/);
      await until(() => collector.events().length === 1);
      assert.deepEqual(await run("return tallymark"), { version: 3 });
    });

    test("collectors under one username do not get each other's events", async () => {
      await open("/0");
      await until(() => collector.events().length === 1);
      const before = await run("return Object.keys(localStorage)");
      assert.ok(
        before.length && before.every((name) => name.startsWith(`tallymark/shop@${collector.origin}#`)),
        before.join(),
      );
      await open("/based");
      await until(() => collector.events().length === 2);
      const all = await run("return Object.keys(localStorage).map((name) => name.split('#')[0])");
      assert.deepEqual(
        [...new Set(all)].sort(),
        [`tallymark/shop@${collector.origin}`, `tallymark/shop@${site.origin}`].sort(),
      );
    });
  });
}
