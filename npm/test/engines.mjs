// Three browser engines behind one driver. Each browser has its own driver, profile and, for WebKit, display, which end
// with the browser or with this process.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Builder } from "selenium-webdriver";

/** The engines to test in: those that ENGINES names, such as `chromium,firefox,webkit`. */
export const engines = (process.env.ENGINES ?? "chromium").split(",");

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const built = here("../../.tools/bin/geckodriver");

const ENGINES = {
  chromium: {
    page: /--type=renderer/,
    driver: [process.env.CHROMEDRIVER ?? "/usr/bin/chromedriver"],
    capabilities: (profile) => ({
      browserName: "chrome",
      "goog:chromeOptions": {
        binary: process.env.CHROMIUM ?? "/usr/bin/chromium",
        args: [
          "--headless",
          "--no-sandbox",
          "--disable-gpu",
          "--disable-quic",
          "--no-first-run",
          "--disable-background-networking",
          "--disable-component-update",
          "--disable-sync",
          `--user-data-dir=${profile}`,
        ],
      },
    }),
    setOnline: (driver, online) =>
      online
        ? driver.deleteNetworkConditions()
        : driver.setNetworkConditions({ offline: true, latency: 0, download_throughput: -1, upload_throughput: -1 }),
  },
  firefox: {
    page: /[\0 ]tab\0$/,
    // Needed to set it offline.
    driver: [
      process.env.GECKODRIVER ?? (existsSync(built) ? built : "geckodriver"),
      "--websocket-port=0",
      "--allow-system-access",
    ],
    capabilities: (profile) => ({
      browserName: "firefox",
      "moz:firefoxOptions": {
        binary: process.env.FIREFOX ?? "/usr/bin/firefox-esr",
        args: ["-headless", "-profile", profile],
      },
    }),
    // After a crash, no question and no restored session.
    preferences: { "toolkit.startup.max_resumed_crashes": -1, "browser.sessionstore.resume_from_crash": false },
    async setOnline(driver, online) {
      await driver.setContext("chrome");
      await driver.executeScript("Services.io.offline = !arguments[0]", online);
      await driver.setContext("content");
    },
  },
  webkit: {
    page: /WebKitWebProcess/,
    driver: [process.env.WEBKITDRIVER ?? "/usr/bin/WebKitWebDriver"],
    capabilities: (profile) => ({
      browserName: "webkit.py",
      "webkitgtk:browserOptions": { binary: "/usr/bin/python3", args: [here("webkit.py"), profile] },
    }),
    display: true,
    // Neither the driver nor the library can set it offline.
    setOnline: (driver, online) =>
      driver.executeScript(
        `Object.defineProperty(navigator, "onLine", { value: arguments[0], configurable: true });
        dispatchEvent(new Event(arguments[0] ? "online" : "offline"));`,
        online,
      ),
  },
};

/**
 * Starts a browser with a new profile, which is removed when it quits. All three implement WebDriver's tabs, windows,
 * history, keys (`element.sendKeys`) and `minimize`. In Firefox, a page left by a driver's click never enters the
 * back/forward cache; one left by a script does.
 *
 * @returns {Promise<import("selenium-webdriver").WebDriver>} a driver with the additional methods below
 */
export async function openBrowser(engine = "chromium", profile = newProfile()) {
  const { driver: command, capabilities, preferences = {}, display, page, setOnline } = ENGINES[engine];
  const lines = Object.entries(preferences).map(([name, value]) => `user_pref("${name}", ${value});\n`);
  if (lines.length) writeFileSync(join(profile, "user.js"), lines.join(""));
  const started = [];
  const end = () => Promise.all(started.map(kill));
  try {
    const env = {
      ...process.env,
      HOME: profile,
      XDG_RUNTIME_DIR: profile,
      // Starts no other process, such as a message bus.
      DBUS_SESSION_BUS_ADDRESS: "disabled:",
      GSETTINGS_BACKEND: "memory",
      NO_AT_BRIDGE: "1",
      // The sandbox does not start as root, and only our own pages are opened.
      WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: "1",
    };
    if (display) env.DISPLAY = await startDisplay(started);
    const url = await startDriver(started, command, env);
    const builder = new Builder().disableEnvironmentOverrides().usingServer(url);
    // WebKit's driver never stops waiting for a browser that has ended.
    const late = new Promise((_, reject) => {
      setTimeout(reject, 60_000, new Error(`${engine} does not start`)).unref();
    });
    const driver = await Promise.race([builder.withCapabilities(capabilities(profile)).build(), late]);
    const quit = driver.quit.bind(driver);
    return Object.assign(driver, {
      engine,
      /** Closes the browser. */
      async quit() {
        await quit().finally(end);
        forget(profile);
      },
      /** Closes the browser and returns a new one with the same profile. */
      async restart() {
        await quit().finally(end);
        return openBrowser(engine, profile);
      },
      /** Kills the processes of all pages and returns how many. The browser cannot be used after that. */
      killPages: () => started.flatMap((child) => signal(child, (pid) => page.test(commandLine(pid)))).length,
      /** Kills all processes of the browser and returns a new one with the same profile. */
      async crash() {
        await end();
        return openBrowser(engine, profile);
      },
      /**
       * Sets `navigator.onLine` and fires the event. In Chromium the tab's requests fail too; Firefox still reaches this
       * machine; in WebKit a script does it, in the current page only. So close the collector's port as well.
       */
      setOnline: (online) => setOnline(driver, online),
    });
  } catch (error) {
    await end();
    forget(profile);
    throw error;
  }
}

async function startDriver(started, [program, ...args], env) {
  const port = await freePort();
  const child = start(started, program, [...args, `--port=${port}`], { env, stdio: "ignore" });
  const url = `http://127.0.0.1:${port}`;
  const answers = () =>
    fetch(url + "/status").then(
      ({ ok }) => ok,
      () => false,
    );
  for (const deadline = Date.now() + 20_000; !(await answers()); ) {
    if (!running.has(child) || Date.now() > deadline) throw new Error(`${program} does not start`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return url;
}

async function startDisplay(started) {
  // It chooses a free number and writes it to the fourth pipe.
  const args = ["-displayfd", "3", "-nolisten", "tcp", "-screen", "0", "1280x1024x24"];
  const child = start(started, "Xvfb", args, { stdio: ["ignore", "ignore", "ignore", "pipe"] });
  let number = "";
  for await (const chunk of child.stdio[3]) {
    number += chunk;
    // It comes in pieces, and closing the pipe early ends the display.
    if (number.endsWith("\n")) break;
  }
  if (!number) throw new Error("Xvfb does not start");
  return ":" + number.trim();
}

const profiles = new Set();

function newProfile() {
  const profile = mkdtempSync(join(tmpdir(), "tallymark-browser-"));
  profiles.add(profile);
  return profile;
}

function forget(profile) {
  rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  profiles.delete(profile);
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

const running = new Set();
process.on("exit", () => {
  running.forEach(signal);
  profiles.forEach(forget);
});
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(name, () => process.exit(1));

function start(started, program, args, options) {
  const child = spawn(program, args, options);
  // A test that does not quit must not keep this process alive.
  child.unref();
  running.add(child);
  started.push(child);
  child.once("error", () => running.delete(child));
  child.once("close", () => running.delete(child));
  return child;
}

/** Kills a process and its descendants, and waits for them. */
async function kill(child) {
  const pids = signal(child);
  const alive = () => running.has(child) || pids.some((pid) => !["", "Z"].includes(stat(pid).state));
  for (const deadline = Date.now() + 10_000; alive(); ) {
    if (Date.now() > deadline) throw new Error(`${child.spawnfile} does not end`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function signal(child, which = () => true) {
  if (!running.has(child)) return [];
  const pids = [child.pid];
  const parents = readdirSync("/proc").map((pid) => [Number(pid), stat(pid).parent]);
  for (const above of pids) pids.push(...parents.filter(([, parent]) => parent === above).map(([pid]) => pid));
  const chosen = pids.filter(which);
  for (const pid of chosen) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has ended already.
    }
  }
  return chosen;
}

function commandLine(pid) {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return "";
  }
}

/** The state of a process; empty when it does not exist. */
function stat(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The program's name, in brackets, may contain anything.
    const [state, parent] = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return { state, parent: Number(parent) };
  } catch {
    return { state: "" };
  }
}
