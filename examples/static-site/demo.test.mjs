// The demo as `make demo` runs it, in a real browser: what is seen and pressed in the page is counted and
// stored by the real collector once each, with the values expected.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { openBrowser } from "../../npm/test/support.mjs";

const PATIENCE_MS = 20_000;
let demo, browser, url, dataDir;

before(async () => {
  dataDir = await mkdtemp(join(tmpdir(), "tallymark-demo-"));
  const port = await freePort();
  demo = spawn(process.execPath, [join(import.meta.dirname, "demo.mjs")], {
    env: { ...process.env, PORT: port, DATA_DIR: dataDir },
    stdio: ["ignore", "pipe", "inherit"],
  });
  for await (const line of createInterface({ input: demo.stdout })) {
    url = line.match(/http:\/\/localhost:\d+\//)?.[0];
    if (url) break;
  }
  demo.stdout.resume();
  assert.ok(url, "the demo prints the address of its page");
  browser = await openBrowser();
});

after(async () => {
  await browser?.quit();
  // It ends the collector before itself.
  if (demo?.exitCode === null && demo.kill("SIGTERM")) await once(demo, "exit");
  await rm(dataDir, { recursive: true, force: true });
});

test("a view and two clicks appear once each, in the counts and in the lake", async () => {
  await browser.get(url);
  await browser.findElement({ id: "espresso-label" }).click();
  await browser.findElement({ id: "add-special" }).click();
  await browser.findElement({ id: "special" }).click();

  await shown("page_view", "1");
  await shown("button_click", "2");
  await shown("custom", "0");
  assert.deepEqual(await browser.executeScript("return tallymark.status().dropped"), {});

  const lines = await lake(3);
  assert.equal(lines.length, 3);
  const [view] = lines.filter((line) => line.event_type === "page_view");
  assert.equal(view.url, url);
  assert.equal(view.title, "The counter · Tallymark demo");
  const clicks = lines.filter((line) => line.event_type === "button_click");
  assert.deepEqual(clicks.map((line) => line.button_id).sort(), ["espresso", "special"]);
  for (const line of lines) {
    assert.equal(line.username, "demo");
    assert.equal(line.session_id, view.session_id);
    assert.match(line.event_id, /^[0-9a-f-]{36}$/);
    assert.ok(Math.abs(line.occurred_at - line.received_at) < 60_000);
    assert.ok(line.useragent.includes("Chrome"));
  }
});

test("a link that leads away is counted, and so are the page it leads to and a custom event", async () => {
  await browser.findElement({ css: "[data-tallymark-click=how-it-counts]" }).click();
  await browser.findElement({ css: "[data-tallymark-click=back-to-counter]" }).click();
  await browser.findElement({ id: "book-tasting" }).click();
  await shown("page_view", "3");
  await shown("button_click", "4");
  await shown("custom", "1");

  const lines = await lake(8);
  assert.equal(lines.length, 8);
  const about = lines.find((line) => line.url === `${url}about.html`);
  assert.equal(about.referral_url, url);
  const [custom] = lines.filter((line) => line.event_type === "custom");
  // The browser of this test is automated.
  assert.deepEqual([custom.name, custom.properties], ["tasting_booked", { bot: true, seats: 2 }]);
  assert.equal(new Set(lines.map((line) => line.event_id)).size, 8);
});

test("the secret key is in nothing the page can reach", async () => {
  const sites = await readFile(join(dataDir, "sites.json"), "utf8");
  assert.match(sites, /secret_key_sha256/);
  for (const name of await readdir(join(dataDir, "site"))) {
    const text = await readFile(join(dataDir, "site", name), "latin1");
    assert.ok(!/tms_[0-9a-f]/.test(text), `${name} holds a secret key`);
  }
});

test("asked to stop, it seals what there is and ends", async () => {
  await browser.get("about:blank");
  demo.kill("SIGTERM");
  const [code] = await once(demo, "exit");
  assert.equal(code, 0);
  assert.ok((await sealed()).length >= 8);
});

/** Waits until the page shows that so many have been stored. */
async function shown(type, figure) {
  const element = await browser.findElement({ css: `[data-count=${type}]` });
  await browser.wait(async () => (await element.getText()) === figure, PATIENCE_MS, `${type} should be ${figure}`);
}

/** The lines of the lake, as soon as there are so many. They are counted a moment before they are sealed. */
async function lake(expected) {
  let lines;
  await browser.wait(async () => (lines = await sealed()).length >= expected, PATIENCE_MS, `${expected} lines`);
  return lines;
}

async function sealed() {
  const lines = [];
  for (const entry of await readdir(dataDir, { recursive: true })) {
    if (!entry.endsWith(".ndjson")) continue;
    const text = await readFile(join(dataDir, entry), "utf8");
    lines.push(
      ...text
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line)),
    );
  }
  return lines;
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}
