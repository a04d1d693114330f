// A real browser, and a small collector and web site for it to talk to.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Builder } from "selenium-webdriver";
import { Options, ServiceBuilder } from "selenium-webdriver/chrome.js";

/** Starts headless Chromium with a profile of its own, which goes when the driver quits. */
export async function openBrowser() {
  const profile = mkdtempSync(join(tmpdir(), "tallymark-browser-"));
  const options = new Options();
  options.setChromeBinaryPath(process.env.CHROMIUM ?? "/usr/bin/chromium");
  options.addArguments(
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    `--user-data-dir=${profile}`,
  );
  // With the path given, selenium has no reason to look for a driver to download.
  const service = new ServiceBuilder(process.env.CHROMEDRIVER ?? "/usr/bin/chromedriver");
  const driver = await new Builder().forBrowser("chrome").setChromeOptions(options).setChromeService(service).build();
  const quit = driver.quit.bind(driver);
  driver.quit = async () => {
    await quit();
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  return driver;
}

/** Waits until `condition` gives something, which it returns; not longer than ten seconds. */
export async function until(condition, what = String(condition)) {
  const deadline = Date.now() + 10_000;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > deadline) throw new Error("never came: " + what);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function listen(handler) {
  const server = createServer(handler);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => new Promise((resolve) => (server.close(resolve), server.closeAllConnections()));
  return { origin: `http://127.0.0.1:${server.address().port}`, close };
}

/**
 * A collector that counts every batch once and gives each a receipt. Functions put into `answers` answer
 * first, one request each; they get the response and what counts the batch. It is on an origin of its own,
 * as strict about CORS as the real one.
 */
export async function openCollector() {
  const requests = [];
  const counted = new Map();
  const answers = [];
  const cors = (request) => ({
    "Access-Control-Allow-Origin": request.headers.origin ?? "null",
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "authorization, content-type, tallymark-sent-at",
    "Access-Control-Expose-Headers": "retry-after",
    "Access-Control-Max-Age": "600",
  });
  const handler = async (request, response) => {
    if (request.method === "OPTIONS") {
      await collector.preflight;
      return response.writeHead(204, cors(request)).end();
    }
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    requests.push({ path: request.url, headers: request.headers, text });
    const { batch_id, events } = JSON.parse(text);
    const count = () => {
      const duplicate = counted.has(batch_id);
      if (!duplicate) counted.set(batch_id, events);
      return { batch_id, received_at: Date.now(), duplicate, accepted: events.length, rejected: [], retry: [] };
    };
    for (const [name, value] of Object.entries(cors(request))) response.setHeader(name, value);
    const answer = answers.shift() ?? ((response, count) => response.end(JSON.stringify(count())));
    answer(response, count);
  };
  const server = await listen((request, response) => {
    handler(request, response).catch(() => response.destroy());
  });
  const collector = {
    ...server,
    handler,
    answers,
    requests,
    /** What preflights wait for before they are answered, if anything. */
    preflight: undefined,
    /** Every event counted, in order. */
    events: () => [...counted.values()].flat(),
    reset() {
      requests.length = answers.length = 0;
      counted.clear();
    },
  };
  return collector;
}

/**
 * A web site with the built package in every folder. `pages` maps paths to HTML, or to null if they shall
 * not be found. The site answers for the collector on its own origin too.
 */
export async function openSite(pages, collector) {
  const types = { js: "text/javascript", wasm: "application/wasm" };
  return listen((request, response) => {
    const path = request.url.split("?")[0];
    const [, file, type] = /^\/(?:\w+\/)?((?:tallymark|index)\.(js|wasm))$/.exec(path) ?? [];
    if (pages[path] === null) {
      response.writeHead(404).end();
    } else if (path in pages) {
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" }).end(pages[path]);
    } else if (file) {
      const bytes = readFileSync(new URL(`../dist/${file}`, import.meta.url));
      response.writeHead(200, { "Content-Type": types[type] }).end(bytes);
    } else if (path === "/v1/batch") {
      collector.handler(request, response);
    } else {
      response.writeHead(404).end();
    }
  });
}
