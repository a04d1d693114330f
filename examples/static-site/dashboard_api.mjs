// The window: a tiny server that tells the demo's page what the collector has stored.
// It exists only for the demo. It holds the secret key, so that the page never has to.

import { once } from "node:events";
import { open, readdir } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";

const TYPES = ["page_view", "button_click", "custom"];
const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const CHART_MINUTES = 15;
const LINES = 8;
const LINE_CHARS = 2000; // an event may be 32 KiB; a page need not show that
const FRESH_MS = 500; // however many pages ask, the collector is asked twice a second

/** Opens the window. `collector` is its base URL, `lake` the folder of the site's lines, `origins` the pages that may ask. */
export async function openWindow({ collector, username, secretKey, origins, lake }) {
  const lines = new Lines(lake);
  const ask = countsReader(collector, username, secretKey);
  const stored = shared(async () => {
    const [counts, buttons] = await Promise.all([
      Promise.all(TYPES.map(async (type) => [type, (await ask(`/v1/counts?event_type=${type}`)).total])),
      ask("/v1/counts/top?event_type=button_click&limit=10"),
      lines.read(),
    ]);
    return {
      counts: Object.fromEntries(counts),
      buttons: buttons.top,
      minutes: lines.minutes(),
      lines: lines.latest(),
    };
  });

  const server = createServer(async (request, response) => {
    const answer = (status, body) => {
      const cors = origins.includes(request.headers.origin)
        ? { "Access-Control-Allow-Origin": request.headers.origin }
        : {};
      response.writeHead(status, {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        Vary: "Origin",
        ...cors,
      });
      response.end(JSON.stringify(body));
    };
    // A name of someone else's that resolves to this machine is not let in.
    const local = /^(localhost|127\.0\.0\.1)(:\d+)?$/.test(request.headers.host);
    if (!local || request.method !== "GET" || request.url !== "/stored") return answer(404, { error: "not found" });
    try {
      answer(200, await stored());
    } catch {
      answer(503, { error: "the collector does not answer" });
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  // Also when no page is looking, so that no hour's folder goes by unread.
  const timer = setInterval(() => lines.read(), MINUTE);

  return {
    port: server.address().port,
    async close() {
      clearInterval(timer);
      server.close();
      server.closeAllConnections();
      await lines.read();
      return { storedSinceOpen: lines.sinceOpen };
    },
  };
}

function countsReader(collector, username, secretKey) {
  const headers = { Authorization: `Basic ${Buffer.from(`${username}:${secretKey}`).toString("base64")}` };
  return async (path) => {
    const answer = await fetch(collector + path, { headers, signal: AbortSignal.timeout(2000) });
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  };
}

/** One run of `look` at a time, and its answer shared until it is no longer fresh. */
function shared(look) {
  let answer,
    running,
    freshUntil = 0;
  return () => {
    if (Date.now() < freshUntil) return answer;
    running ??= look()
      .then((found) => {
        freshUntil = Date.now() + FRESH_MS;
        return (answer = found);
      })
      .finally(() => (running = undefined));
    return running;
  };
}

/** Follows the lake's sealed files: each is read once, added up and let go of, so memory stays small. */
class Lines {
  #lake;
  #opened = Date.now();
  #read = new Map(); // folder → the names already read in it
  #minutes = new Map(); // start of the minute → counts by type
  #latest = []; // oldest first
  #turn = Promise.resolve();
  sinceOpen = 0;

  constructor(lake) {
    this.#lake = lake;
  }

  /** Takes in what was sealed since the last call. Calls take turns: no file is added up twice. */
  read() {
    return (this.#turn = this.#turn.then(() => this.#scan()));
  }

  minutes() {
    const now = Math.floor(Date.now() / MINUTE) * MINUTE;
    return Array.from({ length: CHART_MINUTES }, (_, index) => {
      const at = now - (CHART_MINUTES - 1 - index) * MINUTE;
      return { at, ...none(), ...this.#minutes.get(at) };
    });
  }

  latest() {
    return this.#latest.map(({ text }) => text).reverse();
  }

  async #scan() {
    const now = Date.now();
    const folders = TYPES.flatMap((type) =>
      [now - HOUR, now].map((at) => [type, join(this.#lake, `event_type=${type}`, hourFolder(at))]),
    );
    for (const [type, folder] of folders) {
      const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(".ndjson")).sort();
      const seen = this.#read.get(folder) ?? new Set();
      for (const name of names) {
        if (seen.has(name)) continue;
        seen.add(name);
        await this.#take(type, join(folder, name));
      }
      this.#read.set(folder, seen);
    }
    const current = new Set(folders.map(([, folder]) => folder));
    for (const folder of this.#read.keys()) if (!current.has(folder)) this.#read.delete(folder);
    for (const at of this.#minutes.keys()) if (at < now - (CHART_MINUTES + 1) * MINUTE) this.#minutes.delete(at);
  }

  async #take(type, path) {
    try {
      const file = await open(path);
      for await (const text of file.readLines()) this.#add(type, text);
    } catch (error) {
      console.error(`  could not read ${path}: ${error.message}`);
    }
  }

  #add(type, text) {
    let at;
    try {
      at = JSON.parse(text).received_at;
    } catch {
      return; // the window shows; judging the lake is not its work
    }
    if (!Number.isFinite(at)) return;
    if (at >= this.#opened) this.sinceOpen += 1;
    const minute = Math.floor(at / MINUTE) * MINUTE;
    const counts = this.#minutes.get(minute) ?? none();
    counts[type] += 1;
    this.#minutes.set(minute, counts);

    if (this.#latest.length === LINES && at < this.#latest[0].at) return;
    this.#latest.push({ at, text: text.length > LINE_CHARS ? `${text.slice(0, LINE_CHARS)}…` : text });
    this.#latest.sort((a, b) => a.at - b.at);
    if (this.#latest.length > LINES) this.#latest.shift();
  }
}

const none = () => ({ page_view: 0, button_click: 0, custom: 0 });

function hourFolder(at) {
  const [day, time] = new Date(at).toISOString().split("T");
  return join(`day=${day}`, `hour=${time.slice(0, 2)}`);
}
