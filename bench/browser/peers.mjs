// Other trackers, as their packages ship them for a script tag. Pinned; only these files are taken, and nothing runs at
// installation.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const { transformSync } = createRequire(new URL("../../npm/package.json", import.meta.url))("esbuild");

const CACHE = new URL("../../target/bench-browser/", import.meta.url).pathname;

/** Name, where its queue is, and its files by package. */
export const PEERS = [
  { name: "posthog-js 1.449", queue: "memory", files: { "posthog-js@1.449.2": "dist/array.js" } },
  {
    name: "amplitude 2.48",
    queue: "storage",
    files: { "@amplitude/analytics-browser@2.48.1": "lib/scripts/amplitude-min.umd.js" },
  },
  { name: "countly 26.1", queue: "storage", files: { "countly-sdk-web@26.1.1": "lib/countly.min.js" } },
  {
    name: "rudderstack 3.34, minified",
    queue: "storage",
    minify: true,
    files: { "@rudderstack/analytics-js@3.34.1": "dist/npm/modern/umd/index.js" },
  },
  { name: "mixpanel 2.83", queue: "storage", files: { "mixpanel-browser@2.83.0": "dist/mixpanel.min.js" } },
  { name: "segment 1.84", queue: "storage", files: { "@segment/analytics-next@1.84.3": "dist/umd/standalone.js" } },
  {
    name: "snowplow 4.10 + button plugin",
    queue: "storage",
    files: {
      "@snowplow/browser-tracker@4.10.1": "dist/index.umd.min.js",
      "@snowplow/browser-plugin-button-click-tracking@4.6.8": "dist/index.umd.min.js",
    },
  },
  { name: "openpanel 1.4", queue: "none", files: { "@openpanel/web@1.4.1": "dist/src/tracker.global.js" } },
];

/** A file of a package. */
export function unpacked(packed, file) {
  const folder = join(CACHE, packed.replace("/", "-"));
  if (!existsSync(folder)) {
    mkdirSync(folder, { recursive: true });
    const tarball = execFileSync("npm", ["pack", packed, "--silent", "--pack-destination", CACHE], {
      encoding: "utf8",
    }).trim();
    execFileSync("tar", ["xzf", join(CACHE, tarball), "-C", folder, "--strip-components=1"]);
  }
  return readFileSync(join(folder, file));
}

/** The scripts of a peer, one after the other. */
export function scripts({ files, minify }) {
  return Object.entries(files).map(([packed, file]) => {
    const script = unpacked(packed, file);
    // Some ship theirs for bundlers only.
    return minify ? Buffer.from(transformSync(script.toString(), { minify: true }).code) : script;
  });
}
