// The package as it is published, and as a server sees it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const cwd = new URL("..", import.meta.url);

test("the package holds what it should and nothing else", () => {
  const [{ files }] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd, stdio: ["ignore", "pipe", "ignore"] }));
  assert.deepEqual(files.map(({ path }) => path).sort(), [
    "README.md",
    "dist/index.d.ts",
    "dist/index.js",
    "dist/tallymark.js",
    "dist/tallymark.wasm",
    "package.json",
  ]);
});

test("no file that is published names a path of this machine", () => {
  for (const file of ["index.d.ts", "index.js", "tallymark.js", "tallymark.wasm"]) {
    assert.doesNotMatch(readFileSync(new URL(`dist/${file}`, cwd), "latin1"), /\/(root|home|work|tmp|rustc|cargo)\//, file);
  }
});

test("on a server a tracker does nothing, and does not keep it running", () => {
  const script = `
    import { createTracker } from "tallymark";
    const tracker = createTracker({ endpoint: "/", username: "shop", key: "k", debug: true });
    tracker.pageView();
    tracker.click("buy");
    tracker.track("charge", { value: 1n });
    tracker.flush();
    console.log(JSON.stringify(tracker.status()));
  `;
  // The package can import itself by its name, as others do.
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", script], { cwd, encoding: "utf8", timeout: 10_000 });
  assert.deepEqual(JSON.parse(said), {
    made: 0,
    delivered: 0,
    rejected: 0,
    dropped: {},
    queued: 0,
    paused: null,
    ready: false,
    failed: null,
  });
});
