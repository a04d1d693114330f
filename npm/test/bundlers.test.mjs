// The published package in applications, built by each bundler without configuration and opened in a real browser.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  appendFileSync,
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { createInterface } from "node:readline";
import { after, afterEach, before, describe, test } from "node:test";
import { By } from "selenium-webdriver";
import { openBrowser, openCollector, until as untilSoon } from "./support.mjs";

const apps = join(import.meta.dirname, "bundlers");
const built = mkdtempSync(join(tmpdir(), "tallymark-bundlers-"));
const bundled = createRequire(join(apps, "package.json"));
const use = async (name) => import(bundled.resolve(name));
const run = (program, ...args) =>
  execFileSync(process.execPath, [program, ...args], { cwd: apps, encoding: "utf8", stdio: "pipe", env: quiet });
const quiet = { ...process.env, NEXT_TELEMETRY_DISABLED: "1" };

const types = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".wasm": "application/wasm" };
/** Allows nothing but what is the page's own, and so no wasm. */
const STRICT = "default-src 'self'; img-src data:";

// The machine may still be busy with bundling.
const until = (condition, what) => untilSoon(condition, what, 30_000);

let driver, collector, shop;
const closing = [];

before(async () => {
  run(join(apps, "../../pack.mjs"), apps);
  collector = await openCollector();
  driver = await openBrowser("chromium");
  // Rendered as on a server, by the same component from the same package.
  const { createElement } = await use("react");
  const { renderToString } = await use("react-dom/server");
  const { Shop } = await import("./bundlers/shop.js");
  shop = renderToString(createElement(Shop));
});

after(async () => {
  await driver?.quit();
  for (const close of closing) await close();
  await collector?.close();
  rmSync(built, { recursive: true, force: true });
});

afterEach(async () => {
  await driver.get("about:blank");
  collector.reset();
});

/** Opens a server, with the collector on the same origin. */
async function listen(handler) {
  const server = createServer((request, response) => {
    if (request.url === "/v1/batch") collector.handler(request, response);
    else handler(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  closing.push(() => (server.closeAllConnections(), server.close()));
  return { server, origin: `http://127.0.0.1:${server.address().port}` };
}

/** Serves what a bundler has made. Pages are rendered on the server first. */
async function serve(folder, policy) {
  const asked = [];
  const { origin } = await listen((request, response) => {
    const path = request.url.split("?")[0];
    const file = join(folder, extname(path) ? path : "index.html");
    asked.push(path);
    try {
      const bytes = readFileSync(file);
      const type = types[extname(file)];
      response.writeHead(200, { "Content-Type": type, ...(policy && { "Content-Security-Policy": policy }) });
      response.end(file.endsWith(".html") ? String(bytes).replace("<!--shop-->", shop) : bytes);
    } catch {
      response.writeHead(404).end();
    }
  });
  return { origin, asked };
}

const events = () =>
  collector
    .events()
    .map(({ event_type, name, button_id }) => name ?? button_id ?? event_type)
    .sort();
/** The smallest module there is: four letters and a version. */
const wasmWorks = `try { return !!new WebAssembly.Module(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0)); } catch { return false; }`;
const errors = () => driver.executeScript("return errors");

/** What a visitor does in the shop, and that all of it is counted once. */
async function visit(origin) {
  await driver.get(origin + "/");
  await until(() => driver.executeScript("return window.tracker?.status().ready"), "a tracker that is ready");
  await driver.findElement(By.id("tea")).click();
  await driver.findElement(By.id("cake")).click();
  await driver.executeScript("history.pushState(null, '', '/basket'); setTimeout(() => tracker.flush(), 20)");
  await until(() => driver.executeScript("return tracker.status().delivered === 6"), "six events delivered");
  assert.deepEqual(events(), ["bought", "bought", "cake", "page_view", "page_view", "tea"]);
  assert.deepEqual(await errors(), []);
}

const entry = join(apps, "main.js");
const page = (folder) => copyFileSync(join(apps, "index.html"), join(folder, "index.html"));
const bundlers = {
  async vite(outDir) {
    const { build } = await use("vite");
    await build({ root: apps, configFile: false, logLevel: "error", build: { outDir } });
  },
  async webpack(path) {
    const { default: webpack } = await use("webpack");
    const stats = await new Promise((resolve, reject) => {
      // Its size warnings are about React.
      webpack({ mode: "production", entry, output: { path }, performance: false }, (error, stats) =>
        error ? reject(error) : resolve(stats),
      );
    });
    const { errors, warnings } = stats.toJson();
    assert.deepEqual([...errors, ...warnings], []);
    page(path);
  },
  async esbuild(outdir) {
    const { build } = await use("esbuild");
    await build({ entryPoints: [entry], bundle: true, minify: true, outdir, logLevel: "error" });
    page(outdir);
  },
  async "esbuild, in parts"(outdir) {
    const { build } = await use("esbuild");
    await build({
      entryPoints: [entry],
      bundle: true,
      minify: true,
      format: "esm",
      splitting: true,
      outdir,
      logLevel: "error",
    });
    page(outdir);
  },
};

for (const [name, bundle] of Object.entries(bundlers))
  describe(name, () => {
    const folder = join(built, name);

    before(() => bundle(folder));

    test("records everything once, also in server-rendered pages", async () => {
      const { origin, asked } = await serve(folder);
      await visit(origin);
      assert.deepEqual(
        asked.filter((path) => /wasm|fallback/.test(path)),
        [],
        "one file does it all",
      );
    });

    test("records everything once where the policy forbids wasm", async () => {
      const { origin } = await serve(folder, STRICT);
      await visit(origin);
      assert.equal(await driver.executeScript(wasmWorks), false);
    });
  });

// In development, React's StrictMode renders twice, and an edited module runs again.
test("vite's development server has one tracker, which records everything once", async () => {
  const { createServer } = await use("vite");
  // The build above has set it.
  delete process.env.NODE_ENV;
  let vite;
  const { server, origin } = await listen((request, response) => vite.middlewares(request, response));
  vite = await createServer({
    root: apps,
    configFile: false,
    logLevel: "error",
    cacheDir: join(built, "cache"),
    server: { middlewareMode: true, hmr: { server } },
    plugins: [{ name: "rendered", transformIndexHtml: (html) => html.replace("<!--shop-->", shop) }],
  });
  closing.push(() => vite.close());
  await visit(origin);
  const same = `const before = tracker; import("/main.js?again").then(() => arguments[0](before === tracker))`;
  assert.equal(await driver.executeAsyncScript(same), true);
});

describe("next", () => {
  const program = bundled.resolve("next/dist/bin/next");
  let origin;

  before(async () => {
    run(program, "build");
    const next = spawn(process.execPath, [program, "start", "--hostname", "127.0.0.1", "--port", "0"], {
      cwd: apps,
      env: { ...quiet, COLLECTOR: collector.origin },
      stdio: ["ignore", "pipe", "ignore"],
    });
    closing.push(() => next.kill() && once(next, "exit"));
    for await (const line of createInterface({ input: next.stdout })) {
      origin = /http:\/\/127\.0\.0\.1:\d+/.exec(line)?.[0];
      if (origin) break;
    }
    next.stdout.resume();
  });

  for (const path of ["/", "/strict"])
    test(`records views, clicks and route changes once, at ${path}`, async () => {
      await driver.get(origin + path);
      assert.equal(await driver.executeScript(wasmWorks), path === "/");
      await until(() => collector.events().length === 1, "the view");
      await driver.findElement(By.id("tea")).click();
      await driver.findElement(By.id("about")).click();
      await until(() => collector.events().length === 4, "four events");
      assert.deepEqual(events(), ["bought", "page_view", "page_view", "tea"]);
      const views = collector.events().filter(({ event_type }) => event_type === "page_view");
      assert.deepEqual(
        views.map(({ url, title }) => [url, title]),
        [
          [origin + path, "Shop"],
          [origin + "/about", "About"],
        ],
      );
    });
});

// The script tag from the README, with the policy there and the output of the command there.
describe("the script tag", () => {
  const readme = readFileSync(join(apps, "../../README.md"), "utf8");
  const command = /^node -p '"sha384.*$/m.exec(readme)[0];
  const [policy] = /^script-src 'self' 'wasm-unsafe-eval';.*$/m.exec(readme);
  const folder = join(built, "tag");
  let here;

  before(() => {
    cpSync(join(apps, "node_modules/tallymark/dist"), folder, { recursive: true });
    const integrity = execFileSync("sh", ["-c", command], { cwd: apps, encoding: "utf8" }).trim();
    assert.match(integrity, /^sha384-.{64}$/);
    here = policy.replace("https://collect.example", collector.origin);
    const [tag] = /<script src=[^>]* integrity=[\s\S]*?<\/script>/.exec(readme);
    const filled = tag
      .replace("https://static.example", "")
      .replace("sha384-…", integrity)
      .replace("https://collect.example", collector.origin)
      .replace("…", "k");
    writeFileSync(join(folder, "index.html"), `<!doctype html><title>Shop</title>${filled}`);
  });

  const status = () => driver.executeScript("return window.tallymark?.status()");

  test("works with the policy and the hash", async () => {
    const { origin, asked } = await serve(folder, here);
    await driver.get(origin);
    await until(async () => (await status())?.delivered === 1, "the view");
    assert.deepEqual(
      asked.filter((path) => path !== "/favicon.ico"),
      ["/", "/tallymark.js", "/tallymark.wasm"],
    );
  });

  test("fetches fallback.js only where the policy forbids wasm", async () => {
    const { origin, asked } = await serve(folder, here.replace(" 'wasm-unsafe-eval'", ""));
    await driver.get(origin);
    await until(async () => (await status())?.delivered === 1, "the view");
    assert.ok(asked.includes("/fallback.js"));
  });

  test("has a stub with all methods of the tracker, which do nothing", async () => {
    const all = `return [Object.keys(tallymark), Object.keys(tallymark.status())].map((names) => names.sort())`;
    const { origin } = await serve(folder, here);
    await driver.get(origin);
    await until(async () => (await status())?.ready, "a tracker");
    const [methods, fields] = await driver.executeScript(all);

    const alone = join(built, "alone");
    mkdirSync(alone);
    const [stub] = /<script>\nObject\.getOwn[\s\S]*?<\/script>/.exec(readme);
    writeFileSync(join(alone, "index.html"), `<!doctype html>${stub}`);
    await driver.get((await serve(alone)).origin);
    const calls = methods.map((name) => `tallymark[${JSON.stringify(name)}]("granted")`).join();
    assert.deepEqual(await driver.executeScript(`${calls}; ${all}`), [[...methods, "q"].sort(), fields]);
    assert.equal(collector.events().length, 1);
  });

  test("refuses any wasm but its own", async () => {
    const other = join(built, "other");
    cpSync(folder, other, { recursive: true });
    appendFileSync(join(other, "tallymark.wasm"), Uint8Array.of(0, 2, 1, 65)); // An empty custom section.
    const { origin, asked } = await serve(other);
    await driver.get(origin);
    // The fallback, whose hash the script has too, does the work instead.
    await until(async () => (await status())?.ready, "the fallback");
    assert.equal(asked.filter((path) => path === "/tallymark.wasm").length, 1);
    assert.ok(asked.includes("/fallback.js"), String(asked));
  });
});

test("the examples in the README compile", () => {
  const folder = join(apps, "../../build/readme");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const shown = [...readFileSync(join(apps, "../../README.md"), "utf8").matchAll(/^```tsx?\n([\s\S]*?)^```/gm)];
  assert.equal(shown.length, 4);
  shown.forEach(([, code], number) => writeFileSync(join(folder, `${number}.tsx`), code));
  const compilerOptions = {
    strict: true,
    noEmit: true,
    jsx: "react-jsx",
    module: "esnext",
    moduleResolution: "bundler",
    lib: ["es2020", "dom"],
    types: [],
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions }));
  execFileSync(join(apps, "../../node_modules/.bin/tsc"), ["-p", folder], { stdio: "inherit" });
});

test("publint and attw find no problems", () => {
  const bin = join(apps, "../../node_modules/.bin");
  execFileSync(join(bin, "publint"), ["--strict", join(apps, "node_modules/tallymark")]);
  execFileSync(join(bin, "attw"), ["--pack", join(apps, "../.."), "--profile", "strict"]);
});
