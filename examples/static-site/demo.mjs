// The demo, as `make demo` runs it: a collector on this machine, a page whose buttons are tracked,
// and a window (dashboard_api.mjs) through which that page shows what the collector has stored.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { access, copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { dirname, join, relative, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { openWindow } from "./dashboard_api.mjs";

const HERE = dirname(fileURLToPath(import.meta.url));
// The package as it is published: see the Makefile.
const DIST = join(HERE, "node_modules/tallymark/dist");
const TRACKER = ["tallymark.js", "tallymark.wasm", "fallback.js"];
const PAGE = ["index.html", "about.html", "style.css", "page.js", "icon.svg"];
const NAME = "demo";
const HEALTHY_WITHIN_MS = 15_000;
const STOPPED_WITHIN_MS = 20_000;

const port = Number(process.env.PORT || 8787);
const dataDir = resolve(process.env.DATA_DIR || ".tallymark");
const collector = resolve(process.env.COLLECTOR || "target/release/tallymark-collector");
const sites = join(dataDir, "sites.json");
const site = join(dataDir, "site");
const origins = [`http://localhost:${port}`, `http://127.0.0.1:${port}`];
const shown = (path) => relative("", path) || ".";
const step = (name, text) => console.log(`  ${name.padEnd(10)}${text}`);
const bold = (text) => (process.stdout.isTTY && !process.env.NO_COLOR ? `\x1b[1m${text}\x1b[0m` : text);

/** Something the reader can put right: shown without a stack. */
class Trouble extends Error {}

async function main() {
  await checkBuilt();
  await checkPort();
  console.log("\nTallymark demo\n");
  const keys = await makeKeys();
  const view = await openWindow({
    collector: `http://127.0.0.1:${port}`,
    username: NAME,
    secretKey: keys.secret_key,
    origins,
    lake: join(dataDir, "raw", `username=${NAME}`),
  });
  step("window", `http://127.0.0.1:${view.port}/stored`);
  await assembleSite({ USERNAME: NAME, WRITE_KEY: keys.write_key, WINDOW_PORT: view.port });

  const server = startCollector();
  let served = false;
  try {
    served = await server.healthy();
    if (served) welcome();
    const code = await server.exited;
    if (!server.stopping) throw new Trouble(`The collector stopped by itself (${code}).`, { cause: code });
  } finally {
    await server.stop();
    const { storedSinceOpen } = await view.close();
    if (served)
      console.log(
        `\nThis run stored ${storedSinceOpen} event${storedSinceOpen === 1 ? "" : "s"}. They stay in ${shown(dataDir)}.`,
      );
  }
}

async function checkBuilt() {
  for (const file of [collector, ...TRACKER.map((name) => join(DIST, name))]) {
    await access(file).catch(() => {
      throw new Trouble(
        `${shown(file)} is not there yet. Run \`make demo\`: it builds what is missing, then starts this.`,
      );
    });
  }
}

/** Before anything is touched: whoever has the port may be another demo, with keys in the same folder. */
async function checkPort() {
  if (!Number.isInteger(port) || port < 1 || port > 65535) throw new Trouble(`PORT=${process.env.PORT} is not a port.`);
  const probe = createServer().listen(port, "127.0.0.1");
  try {
    await once(probe, "listening");
  } catch (error) {
    throw new Trouble(
      `Port ${port} can't be used (${error.code}). Is another demo running? PORT=8788 make demo uses another.`,
    );
  }
  probe.close();
  await once(probe, "close");
}

async function makeKeys() {
  await mkdir(dataDir, { recursive: true });
  await rm(sites, { force: true });
  const args = ["site", "add", NAME, ...origins.flatMap((origin) => ["--origin", origin]), "--sites", sites];
  const { stdout } = await promisify(execFile)(collector, args).catch((error) => {
    throw new Trouble(`${shown(collector)} site add failed: ${error.stderr || error.message}`);
  });
  const keys = Object.fromEntries([...stdout.matchAll(/^(\w+): (\S+)$/gm)].map(([, name, value]) => [name, value]));
  if (!keys.secret_key || !keys.write_key) throw new Trouble(`${shown(collector)} site add printed no keys.`);
  step("keys", "new; the page gets the write key, the secret key stays in this process");
  return keys;
}

/** The page's files and the tracker's in one folder, made anew each time; __NAME__ in a page becomes values.NAME. */
async function assembleSite(values) {
  await rm(site, { recursive: true, force: true });
  await mkdir(site);
  for (const name of PAGE) {
    if (!name.endsWith(".html")) {
      await copyFile(join(HERE, name), join(site, name));
      continue;
    }
    const page = await readFile(join(HERE, name), "utf8");
    await writeFile(
      join(site, name),
      page.replace(/__([A-Z_]+)__/g, (whole, key) => values[key] ?? whole),
    );
  }
  for (const name of TRACKER) await copyFile(join(DIST, name), join(site, name));
  step("page", shown(site));
}

function startCollector() {
  const args = [
    "serve",
    "--listen",
    `127.0.0.1:${port}`,
    "--data-dir",
    dataDir,
    "--sites",
    sites,
    "--static",
    site,
    "--lake-roll-interval",
    "1s",
  ];
  // Not a line for each request.
  const env = { RUST_LOG: "warn", ...process.env };
  const child = spawn(collector, args, { stdio: ["ignore", "inherit", "inherit"], env });
  const server = { stopping: false, running: true };
  step("collector", `http://127.0.0.1:${port}`);

  server.exited = new Promise((done) => {
    child.once("error", (error) => done(error.code));
    child.once("exit", (code, signal) => done(code ?? signal));
  }).finally(() => (server.running = false));

  /** True once it answers; false when it stops first. */
  server.healthy = async () => {
    const deadline = Date.now() + HEALTHY_WITHIN_MS;
    while (server.running && !server.stopping) {
      const answer = await fetch(`http://127.0.0.1:${port}/health`, { signal: AbortSignal.timeout(1000) }).catch(
        () => null,
      );
      if (answer?.ok) return true;
      if (Date.now() > deadline)
        throw new Trouble(`The collector did not answer GET /health within ${HEALTHY_WITHIN_MS / 1000} s.`);
      await Promise.race([delay(100), server.exited]);
    }
    return false;
  };

  /** Asks once, and waits: the collector seals its files on the way out. */
  server.stop = async () => {
    if (server.running && !server.stopping) {
      server.stopping = true;
      child.kill("SIGTERM");
      setTimeout(() => {
        console.error(`\nThe collector did not stop within ${STOPPED_WITHIN_MS / 1000} s; ending it.`);
        child.kill("SIGKILL");
      }, STOPPED_WITHIN_MS).unref();
    }
    await server.exited;
  };
  // A second Ctrl-C, and the one the terminal gave the collector as well, change nothing.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, server.stop);
  return server;
}

function welcome() {
  console.log(`
  Open ${bold(`http://localhost:${port}/`)}

  Ctrl-C stops it. Data stays in ${shown(dataDir)}, the lines in ${shown(join(dataDir, "raw"))}.
  The page sends with its write key, and reads what is stored through the window only.
`);
}

main().catch((error) => {
  console.error(`\n${error instanceof Trouble ? error.message : error.stack}`);
  process.exitCode = Number.isInteger(error.cause) ? error.cause : 1;
});
