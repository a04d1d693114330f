// A small collector and a web site for tests in real browsers.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";

export { engines, openBrowser } from "./engines.mjs";

/** Waits until `condition` returns something truthy, and returns it. */
export async function until(condition, what = String(condition), patience = 10_000) {
  const deadline = Date.now() + patience;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > deadline) throw new Error("timed out waiting for " + what);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Serves requests on a free port. */
export async function listen(handler) {
  const server = createServer(handler);
  const open = (port) => new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  const close = () => new Promise((resolve) => (server.close(resolve), server.closeAllConnections()));
  await open(0);
  const { port } = server.address();
  // When closed it refuses connections, until `reopen`.
  return { origin: `http://127.0.0.1:${port}`, close, reopen: () => open(port) };
}

/**
 * A collector that counts every batch once and answers with receipts. The functions in `answers` answer one request each
 * before that; they get the response and a function that counts the batch. It has its own origin and requires CORS.
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
    /** A promise that preflights wait for. */
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
 * A web site with the built package in every folder. `pages` maps paths to HTML, or to null for 404; each gets the
 * `headers`. The site also answers for the collector, on its own origin.
 */
export async function openSite(pages, collector, headers = {}) {
  const types = { js: "text/javascript", wasm: "application/wasm" };
  const requests = [];
  const site = await listen((request, response) => {
    const path = request.url.split("?")[0];
    requests.push({ path, headers: request.headers });
    const [, file, type] = /^\/(?:\w+\/)?((?:tallymark|index|fallback)\.(js|wasm))$/.exec(path) ?? [];
    if (pages[path] === null) {
      response.writeHead(404).end();
    } else if (path in pages) {
      const type = path.endsWith(".js") ? "text/javascript" : "text/html; charset=utf-8";
      response.writeHead(200, { "Content-Type": type, ...headers }).end(pages[path]);
    } else if (file) {
      const bytes = readFileSync(new URL(`../dist/${file}`, import.meta.url));
      response.writeHead(200, { "Content-Type": types[type] }).end(bytes);
    } else if (path === "/v1/batch") {
      collector.handler(request, response);
    } else {
      response.writeHead(404).end();
    }
  });
  return { ...site, requests };
}
