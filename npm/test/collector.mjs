// The real collector, and a network in front of it that fails as a test says.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { listen } from "./support.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const program = process.env.COLLECTOR ?? here("../../target/debug/tallymark-collector");
const TYPES = ["page_view", "button_click", "custom", "lost"];

/** Starts a collector with these sites: names and the origins of their pages. */
export async function startCollector(origins) {
  const folder = mkdtempSync(join(tmpdir(), "tallymark-collector-"));
  const sites = join(folder, "sites.json");
  const keys = {};
  for (const [name, origin] of Object.entries(origins)) {
    const { stdout } = await promisify(execFile)(program, ["site", "add", name, "--origin", origin, "--sites", sites]);
    keys[name] = Object.fromEntries([...stdout.matchAll(/^(\w+): (\S+)$/gm)].map(([, kind, key]) => [kind, key]));
  }
  const args = ["serve", "--listen", "127.0.0.1:0", "--data-dir", folder, "--sites", sites];
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  const end = () => child.kill("SIGKILL");
  process.once("exit", end);
  let port;
  for await (const line of createInterface({ input: child.stdout })) {
    port = /:(\d+)$/.exec(line)?.[1];
    if (port) break;
  }
  if (!port) throw new Error(`${program} does not start`);
  child.stdout.resume();
  return {
    port,
    writeKey: (name) => keys[name].write_key,
    /** The counts of a site: its events by type, and the losses reported. */
    async counted(name) {
      const headers = { Authorization: "Basic " + btoa(`${name}:${keys[name].secret_key}`) };
      const ask = async (type) => {
        const answer = await fetch(`http://127.0.0.1:${port}/v1/counts?event_type=${type}`, { headers });
        return (await answer.json()).total;
      };
      return Object.fromEntries(await Promise.all(TYPES.map(async (type) => [type, await ask(type)])));
    },
    /** Shuts it down gracefully, so that the lake is complete. */
    async stop() {
      if (child.kill("SIGTERM")) await once(child, "exit");
      process.off("exit", end);
    },
    /** The events of a site in the lake, once it has stopped. */
    stored(name) {
      const lake = join(folder, "raw", `username=${name}`);
      if (!existsSync(lake)) return [];
      const files = readdirSync(lake, { recursive: true }).filter((file) => file.endsWith(".ndjson"));
      const lines = files.flatMap((file) => readFileSync(join(lake, file), "utf8").split("\n"));
      return lines.filter(Boolean).map((line) => JSON.parse(line));
    },
    forget: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** Passes the collector's answer on. */
export async function pass(response, forward) {
  const { status, headers, body } = await forward();
  response.writeHead(status, headers).end(body);
}

/**
 * The network between a page and the collector. The functions in `answers` answer one POST request each, then `otherwise`
 * does. They get the response, a function that forwards the request and returns the answer, and the batch.
 */
export async function openNetwork(collector) {
  const server = await listen(async (asked, response) => {
    const chunks = [];
    for await (const chunk of asked) chunks.push(chunk);
    const forward = () =>
      new Promise((resolve, reject) => {
        const { method, url: path, headers } = asked;
        const onward = request({ host: "127.0.0.1", port: collector().port, method, path, headers }, async (answer) => {
          const body = Buffer.concat(await answer.toArray());
          if (method === "POST" && answer.statusCode === 200) network.taken.push(JSON.parse(body).batch_id);
          resolve({ status: answer.statusCode, headers: answer.headers, body });
        });
        onward.on("error", reject).end(Buffer.concat(chunks));
      });
    try {
      if (asked.method !== "POST") return await pass(response, forward);
      network.asked++;
      const answer = network.answers.shift() ?? network.otherwise ?? pass;
      response.setHeader("Access-Control-Allow-Origin", asked.headers.origin ?? "null");
      response.setHeader("Access-Control-Expose-Headers", "retry-after");
      await answer(response, forward, JSON.parse(Buffer.concat(chunks)));
    } catch {
      response.destroy();
    }
  });
  const network = {
    ...server,
    answers: [],
    otherwise: undefined,
    /** The number of POST requests. */
    asked: 0,
    /** The ids of batches with a receipt from the collector. */
    taken: [],
  };
  return network;
}
