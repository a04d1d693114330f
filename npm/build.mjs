// Builds dist/: the wasm core with wasm-pack and wasm-opt, then the two scripts around it and their types.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { build } from "esbuild";

process.chdir(import.meta.dirname);
const run = (program, args, env = {}) =>
  execFileSync(program, args, { stdio: "inherit", env: { ...process.env, ...env } });

rmSync("build", { recursive: true, force: true });
rmSync("dist", { recursive: true, force: true });
mkdirSync("dist");

// The standard library is built anew, for size and without messages for panics, which the stable compiler
// does when asked this way.
run(
  "wasm-pack",
  [
    ...["build", "../tracker-wasm", "--target", "web", "--profile", "wasm"],
    // The wasm-bindgen on the PATH is used and nothing is downloaded; wasm-opt comes below.
    ...["--mode", "no-install", "--no-opt", "--no-pack", "--no-gitignore"],
    ...["--out-dir", "../npm/build", "--out-name", "tracker"],
    ...["--", "-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"],
  ],
  {
    RUSTC_BOOTSTRAP: "1",
    // Without the last, every page would set aside a megabyte for a stack of a few kilobytes.
    RUSTFLAGS: "-Zunstable-options -Cpanic=immediate-abort -Clink-arg=-zstack-size=65536",
  },
);
// Only what every browser of the last years runs: --all-features makes wasm that not even Node accepts.
const features = ["bulk-memory", "mutable-globals", "multivalue", "nontrapping-float-to-int", "reference-types", "sign-ext"];
run("node_modules/.bin/wasm-opt", [
  ...["-Oz", "--converge", "--strip-debug", "--strip-producers", "--strip-target-features"],
  ...features.map((feature) => `--enable-${feature}`),
  ...["build/tracker_bg.wasm", "-o", "dist/tallymark.wasm"],
]);

// The loader that wasm-bindgen writes looks beside its own module. It is not used, and left out.
const logOverride = { "empty-import-meta": "silent" };
const common = { bundle: true, minify: true, target: "es2020", logLevel: "warning", logOverride };
await build({ ...common, entryPoints: ["src/index.ts"], outfile: "dist/index.js", format: "esm" });
await build({ ...common, entryPoints: ["src/script.ts"], outfile: "dist/tallymark.js", format: "iife" });

run("node_modules/.bin/tsc", ["--emitDeclarationOnly"]);
copyFileSync("build/types/src/index.d.ts", "dist/index.d.ts");

const sizes = (bytes) => [bytes.length, gzipSync(bytes, { level: 9 }).length, brotliCompressSync(bytes).length];
const print = (name, figures) => console.log(name.padEnd(24), ...figures.map((figure) => String(figure).padStart(8)));
print("bytes", ["raw", "gzip", "brotli"]);
const files = ["tallymark.js", "index.js", "tallymark.wasm"].map((name) => [name, sizes(readFileSync(`dist/${name}`))]);
for (const [name, figures] of files) print(name, figures);
const [[, script], , [, wasm]] = files;
print("tallymark.js + wasm", script.map((size, at) => size + wasm[at]));
