// Builds dist/: the wasm core with wasm-pack and wasm-opt, then the two scripts around it and their types.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
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
    ...["build", "../tracker-wasm", "--target", "bundler", "--profile", "wasm"],
    // The wasm-bindgen on the PATH is used and nothing is downloaded; wasm-opt comes below.
    ...["--mode", "no-install", "--no-opt", "--no-pack", "--no-gitignore"],
    ...["--out-dir", "../npm/build", "--out-name", "tracker"],
    ...["--", "-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"],
  ],
  {
    RUSTC_BOOTSTRAP: "1",
    // Objects of JavaScript's are not referred to. Without the last, every page would set aside a megabyte for a stack of
    // a few kilobytes.
    RUSTFLAGS:
      "-Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none -Ctarget-feature=-reference-types -Clink-arg=-zstack-size=65536",
  },
);
// Only what every browser of the last years runs: --all-features makes wasm that not even Node accepts.
const features = ["bulk-memory", "mutable-globals", "multivalue", "nontrapping-float-to-int", "sign-ext"];
const enabled = features.map((feature) => `--enable-${feature}`);
const optimise = (output, ...more) =>
  run("node_modules/.bin/wasm-opt", [
    ...["-Oz", "--converge", "--strip-debug", "--strip-producers", "--strip-target-features"],
    ...[...enabled, ...more, "build/tracker_bg.wasm", "-o", output],
  ]);
optimise("dist/tallymark.wasm");

// The same as JavaScript, for pages whose policy allows no wasm. It has none of the newer instructions.
optimise("build/plain.wasm", "--llvm-memory-copy-fill-lowering", "--llvm-nontrapping-fptoint-lowering", "--signext-lowering");
run("node_modules/.bin/wasm2js", ["-Oz", ...enabled, "build/plain.wasm", "-o", "build/plain.js"]);
// It imports what it calls, and makes one instance by itself. Ours are made when they are needed.
const plain = readFileSync("build/plain.js", "utf8").replace(/^import .*\n/, "").replace(/var retasmFunc = [^]*$/, "");
writeFileSync("build/fallback.js", `${plain}export const instantiate = (imports) => asmFunc(imports);\n`);

const common = { bundle: true, minify: true, target: "es2020", logLevel: "warning" };
const mapped = { ...common, sourcemap: true };
// The module has the wasm in it, in hexadecimal, which brotli and gzip make smaller than base64. The script has its hash:
// whoever checks the script has checked both, and no other version's wasm is taken for this one's.
const bytes = readFileSync("dist/tallymark.wasm");
const WASM = JSON.stringify(bytes.toString("hex"));
const INTEGRITY = JSON.stringify("sha256-" + createHash("sha256").update(bytes).digest("base64"));
const external = ["react", "./index.js", "./fallback.js"];
await build({ ...mapped, entryPoints: ["src/index.ts"], outfile: "dist/index.js", format: "esm", external, define: { WASM } });
await build({ ...mapped, entryPoints: ["src/script.ts"], outfile: "dist/tallymark.js", format: "iife", define: { INTEGRITY } });
await build({ ...mapped, entryPoints: ["src/react.ts"], outfile: "dist/react.js", format: "esm", external });
await build({ ...common, entryPoints: ["build/fallback.js"], outfile: "dist/fallback.js", format: "esm" });

run("node_modules/.bin/tsc", ["--emitDeclarationOnly"]);
for (const name of ["index", "react"]) copyFileSync(`build/types/src/${name}.d.ts`, `dist/${name}.d.ts`);
// A package has its licences in it.
for (const name of ["LICENSE-MIT", "LICENSE-APACHE"]) copyFileSync(`../${name}`, name);

const sizes = (bytes) => [bytes.length, gzipSync(bytes, { level: 9 }).length, brotliCompressSync(bytes).length];
const print = (name, figures) => console.log(name.padEnd(24), ...figures.map((figure) => String(figure).padStart(8)));
print("bytes", ["raw", "gzip", "brotli"]);
const files = ["tallymark.js", "index.js", "tallymark.wasm", "fallback.js"].map((name) => [name, sizes(readFileSync(`dist/${name}`))]);
for (const [name, figures] of files) print(name, figures);
const [[, script], , [, wasm]] = files;
print("tallymark.js + wasm", script.map((size, at) => size + wasm[at]));
