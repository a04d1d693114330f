// The application as it is built, with the package as it is packed, the real collector and a real browser.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { build, preview } from "vite";
import { startCollector } from "../../npm/test/collector.mjs";
import { listen, openBrowser, until } from "../../npm/test/support.mjs";

const root = import.meta.dirname;
let collector, site, browser, origin;

before(async () => {
  // The collector has to know the site's origin before there is a site.
  const reserved = await listen(() => {});
  origin = reserved.origin;
  await reserved.close();
  collector = await startCollector({ tea: origin });
  Object.assign(process.env, { VITE_KEY: collector.writeKey("tea"), COLLECTOR: `http://127.0.0.1:${collector.port}` });
  execFileSync("node_modules/.bin/tsc", { cwd: root, stdio: "inherit" });
  await build({ root, logLevel: "error" });
  const { hostname: host, port } = new URL(origin);
  site = await preview({ root, logLevel: "error", preview: { host, port: Number(port), strictPort: true } });
  browser = await openBrowser("chromium");
});

after(async () => {
  await browser?.quit();
  await site?.close();
  await collector?.stop();
  collector?.forget();
});

const press = (css) => browser.findElement({ css }).click();

test("what a visitor sees, presses and orders is counted once", async () => {
  await browser.get(origin);
  await until(
    () => browser.findElements({ css: "[data-tallymark-click]" }).then(({ length }) => length === 3),
    "the teas",
  );
  await press("[data-tallymark-click=add-sencha]");
  await press("[data-tallymark-click=add-oolong]");
  await press("nav a[href='/basket']");
  await press("[data-tallymark-click=order]");
  await until(
    () => browser.findElements({ css: "[data-delivered='9']" }).then(({ length }) => length),
    "nine events delivered",
  );
  assert.deepEqual(await collector.counted("tea"), { page_view: 3, button_click: 3, custom: 3, lost: 0 });

  await collector.stop();
  const stored = collector.stored("tea").sort((a, b) => a.occurred_at - b.occurred_at);
  const views = stored.filter(({ event_type }) => event_type === "page_view");
  assert.deepEqual(
    views.map(({ url, title, referral_url }) => [url.slice(origin.length), title, referral_url?.slice(origin.length)]),
    [
      ["/", "Teas", undefined],
      ["/basket", "Basket", "/"],
      ["/thanks", "Thank you", "/basket"],
    ],
  );
  const placed = stored.find(({ name }) => name === "order_placed");
  // The browser of this test is automated.
  assert.deepEqual(placed.properties, { bot: true, teas: 2, total: 20.4 });
});
