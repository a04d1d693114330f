// The rows of faults.mjs in real browsers, with the real collector: nothing is lost and nothing is counted twice.
// TABLE=FILE also writes the results to a file.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { openNetwork, startCollector } from "./collector.mjs";
import { rows } from "./faults.mjs";
import { engines, openBrowser, openSite, until } from "./support.mjs";

/** How long the last events may take: until their lane is adopted, and for some retries. */
const PATIENCE = 40_000;

const ABOUT = `# Faults in real browsers

Each row is a fault of [faults.mjs](test/faults.mjs), run with the real collector. Each cell has three numbers: events made by the
tracker / stored by the collector / counted by the collector. \`make test-browsers\` writes this file.

- **Offline**: Chromium's driver disconnects the tab, and Firefox is set offline. WebKit has no such switch, so a script
  changes \`navigator.onLine\`. In all three, the collector refuses connections, and the ten minutes pass only on the page's
  clock.
- **Killed**: the test kills the page's process, and ten seconds later the rest of the browser. A killed browser loses what
  pages stored in its last seconds: up to 5 in Firefox, less than one in WebKit, and up to a minute in Chromium, which
  writes at most once a minute. No script can change that. The row waits for one request between the last event and the
  kill: without it, WebKit lost the last events once under heavy load.
- **Refused storage** and **Global Privacy Control** are simulated by a script that runs before the tracker.

`;

let collector;
const pages = new Map();
const versions = {};

for (const engine of engines) {
  for (const row of rows) {
    if (!row.not?.[engine]) pages.set(`${engine}-${rows.indexOf(row)}`, { engine, row, made: [] });
  }
}

before(async () => {
  const origins = {};
  for (const [name, page] of pages) {
    page.network = await openNetwork(() => collector);
    page.paths = {};
    const policy = page.row.policy && { "Content-Security-Policy": page.row.policy };
    page.site = await openSite(page.paths, undefined, policy);
    origins[name] = page.site.origin;
  }
  collector = await startCollector(origins);
  for (const [name, page] of pages) write(name, page);
});

after(async () => {
  for (const { site, network } of pages.values()) {
    await site?.close();
    await network?.close();
  }
  collector?.forget();
  if (process.env.TABLE) writeFileSync(process.env.TABLE, table());
});

function write(name, page) {
  const { row, network, paths } = page;
  const html = (
    key,
    { head = "", rules, attributes = "" } = {},
  ) => `<!doctype html><html><head><meta charset="utf-8"><script nonce="row">
    window.errors = [];
    addEventListener("error", (event) => errors.push(event.message || event.target.src));
    addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
    addEventListener("pageshow", (event) => (window.restored = event.persisted));
    ${head}</script>
    ${rules ? `<script type="speculationrules">${JSON.stringify(rules)}</script>` : ""}
    ${key ? `<script src="tallymark.js" data-endpoint="${network.origin}" data-username="${name}" data-key="${key}" ${attributes} defer></script>` : ""}
    </head><body>
    <button id="buy" data-tallymark-click="buy"><b><i id="inside">Buy</i></b></button>
    <button id="disabled" data-tallymark-click="disabled" disabled>No</button>
    <button id="plain">Not marked</button>
    <a id="leave" href="/blank" data-tallymark-click="leave">Leave</a>
    <div id="host"></div></body></html>`;
  const key = collector.writeKey(name);
  paths["/"] = html(key, row);
  paths["/next"] = paths["/never"] = html(key, { ...row, rules: undefined });
  paths["/wrong"] = html("wrong", row);
  paths["/blank"] = html("");
}

const called = ({ event_type, url, button_id, name }) =>
  ({ page_view: () => new URL(url).pathname, button_click: () => button_id, custom: () => name })[event_type]();
const sum = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

for (const engine of engines)
  describe(engine, () => {
    let driver;
    const own = [...pages].filter(([, page]) => page.engine === engine);

    before(async () => {
      driver = await openBrowser(engine);
      versions[engine] = (await driver.getCapabilities()).getBrowserVersion();
    });

    after(async () => {
      await driver?.quit();
      for (const [, page] of own) if (page.driver && page.driver !== driver) await page.driver.quit();
    });

    const arrived = (name, page) =>
      until(async () => sum(await collector.counted(name)) >= page.made.length, `all of ${page.made}`, PATIENCE);
    const turn = async (name, page, act, last) => {
      page.made.push(...(await act(page)));
      if (last) {
        // Without waiting for the two seconds of a batch.
        await page.run("window.tallymark?.flush()");
        await arrived(name, page);
        // More may still arrive.
        await until(() => page.run("return !window.tallymark?.status().queued"), "nothing queued", PATIENCE);
      }
      if (last || page.driver === driver) assert.deepEqual((await page.run("return window.errors")) ?? [], []);
      if (page.driver === driver) await driver.get("about:blank");
    };

    for (const [name, page] of own) {
      test(page.row.name, async () => {
        page.driver = driver;
        page.open = (path) => page.driver.get(page.site.origin + path);
        page.run = (script, ...values) => page.driver.executeScript(script, ...values);
        page.status = () => page.run("return tallymark.status()");
        await turn(name, page, page.row.leave, !page.row.back);
      });
    }
    for (const [name, page] of own) {
      if (page.row.back) test(`${page.row.name}: back`, () => turn(name, page, page.row.back, true));
    }
  });

test("nothing was lost and nothing was counted twice", async (context) => {
  const counted = {};
  for (const name of pages.keys()) counted[name] = await collector.counted(name);
  await collector.stop();
  for (const [name, page] of pages) {
    await context.test(`${page.engine}: ${page.row.name}`, () => {
      const stored = collector.stored(name);
      const ids = new Set(stored.map(({ event_id }) => event_id));
      page.figures = [page.made.length, stored.length, sum(counted[name])];
      page.lost = page.made.length - ids.size;
      page.twice = sum(counted[name]) - ids.size;
      assert.deepEqual(stored.map(called).sort(), page.made.toSorted());
      assert.deepEqual([...page.figures, ids.size], Array(4).fill(page.made.length));
      assert.equal(counted[name].lost, 0);
      if (page.row.once) assert.equal(new Set(page.network.taken).size, page.network.taken.length);
    });
  }
});

/** The results as a Markdown table. */
function table() {
  const line = (...cells) => `| ${cells.join(" | ")} |\n`;
  const of = (engine, row) => pages.get(`${engine}-${rows.indexOf(row)}`);
  const total = (engine, figure) => sum(rows.map((row) => (of(engine, row) ? figure(of(engine, row)) : 0)));
  const cell = (engine, row) => of(engine, row)?.figures.join(" / ") ?? "not possible: " + row.not[engine];
  const each = (show) => engines.map(show);
  return (
    ABOUT +
    line("", ...each((engine) => `${engine} ${versions[engine]}`)) +
    line("---", ...each(() => "---")) +
    rows.map((row) => line(row.name, ...each((engine) => cell(engine, row)))).join("") +
    line(
      "**all**",
      ...each((engine) => [0, 1, 2].map((at) => total(engine, ({ figures }) => figures[at])).join(" / ")),
    ) +
    line("**lost**", ...each((engine) => total(engine, ({ lost }) => lost))) +
    line("**counted twice**", ...each((engine) => total(engine, ({ twice }) => twice)))
  );
}
