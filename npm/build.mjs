// Builds dist/: the wasm core with wasm-pack and wasm-opt, then the scripts around it and their types.
// `node build.mjs scripts` keeps the core of the last build.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { build } from "esbuild";
import { minify } from "terser";

const TARGET = "es2020";
/** Names that only the parts of one script use among each other, so they can be shortened. */
const INTERNAL =
  /^(address|addEarly|at|core|current|endEarly|granted|held|isOpen|leave|lost|madeAt|makeRoom|names|record|refuse|release|retryAfter|roomAt|save|setOptedOut|stop|stored|suspend|tag|text|wasm)$/;

process.chdir(import.meta.dirname);
const run = (program, args, env = {}) =>
  execFileSync(program, args, { stdio: "inherit", env: { ...process.env, ...env } });

if (process.argv[2] !== "scripts") buildCore();
await buildScripts();
buildTypes();
printSizes();

function buildCore() {
  rmSync("build", { recursive: true, force: true });
  // The standard library is rebuilt for size and without panic messages. RUSTC_BOOTSTRAP lets the stable compiler do that.
  run(
    "wasm-pack",
    [
      // Its warning is only that it could not look for a newer version of itself.
      ...["--log-level", "error", "build", "../tracker-wasm", "--target", "bundler", "--profile", "wasm"],
      // Uses the wasm-bindgen on the PATH and downloads nothing; wasm-opt runs below.
      ...["--mode", "no-install", "--no-opt", "--no-pack", "--no-gitignore"],
      ...["--out-dir", "../npm/build", "--out-name", "tracker"],
      ...["--", "-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"],
    ],
    {
      RUSTC_BOOTSTRAP: "1",
      // No references to JavaScript objects are needed. The default stack would be a megabyte in every page; a few
      // kilobytes are used.
      RUSTFLAGS:
        "-Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none -Ctarget-feature=-reference-types -Clink-arg=-zstack-size=65536",
    },
  );
  // Only the features that browsers have had for years: with --all-features, not even Node accepts the result.
  const features = ["bulk-memory", "mutable-globals", "multivalue", "nontrapping-float-to-int", "sign-ext"];
  const enabled = features.map((feature) => `--enable-${feature}`);
  removeExports(enabled);
  const optimise = (output, ...more) =>
    run("node_modules/.bin/wasm-opt", [
      // Nothing is in the lowest kilobyte: it is the far end of the stack.
      ...[
        "--low-memory-unused",
        "--flatten",
        "--rereloop",
        "-O3",
        "-Oz",
        "--gufa-optimizing",
        "-Oz",
        "--converge",
        "--strip-debug",
        "--strip-producers",
        "--strip-target-features",
      ],
      ...[...enabled, ...more, "build/needed.wasm", "-o", output],
    ]);
  optimise("build/tallymark.wasm");

  // The same as JavaScript, for pages whose policy forbids wasm. It can use none of the newer instructions.
  optimise(
    "build/plain.wasm",
    "--llvm-memory-copy-fill-lowering",
    "--llvm-nontrapping-fptoint-lowering",
    "--signext-lowering",
  );
  run("node_modules/.bin/wasm2js", ["-Oz", ...enabled, "build/plain.wasm", "-o", "build/plain.js"]);
  // wasm2js imports the host functions and makes one instance. Here, each tracker makes its own.
  const plain = readFileSync("build/plain.js", "utf8")
    .replace(/^import .*\n/, "")
    .replace(/var retasmFunc = [\s\S]*$/, "");
  writeFileSync("build/core.js", `${plain}export const instantiate = (imports) => asmFunc(imports);\n`);
  writeFileSync("build/core.d.ts", 'export declare const instantiate: import("../src/core.js").Instantiate;\n');
}

/** Removes what wasm-bindgen exports for its own glue, and with it what nothing else uses. */
function removeExports(features) {
  const names = [...readFileSync("build/tracker_bg.wasm.d.ts", "utf8").matchAll(/export const (\w+)/g)];
  const exported = names.map(([, name]) => ({ name, export: name }));
  const graph = [{ name: "page", root: true, reaches: names.map(([, name]) => name) }, ...exported];
  writeFileSync("build/exports.json", JSON.stringify(graph));
  const files = ["--graph-file", "build/exports.json", "build/tracker_bg.wasm", "-o", "build/needed.wasm"];
  execFileSync("node_modules/.bin/wasm-metadce", [...features, ...files]);
}

async function buildScripts() {
  rmSync("dist", { recursive: true, force: true });
  mkdirSync("dist");
  copyFileSync("build/tallymark.wasm", "dist/tallymark.wasm");
  const bytes = readFileSync("dist/tallymark.wasm");
  await bundle("src/fallback.ts", "fallback.js", { format: "esm" });
  const hash = (file) =>
    createHash("sha256")
      .update(readFileSync(`dist/${file}`))
      .digest("base64");
  const integrity = (file) => JSON.stringify(`sha256-${hash(file)}`);
  const { version } = JSON.parse(readFileSync("package.json", "utf8"));
  const define = {
    VERSION: JSON.stringify(version),
    // The module contains the wasm in hexadecimal, which compresses better than base64.
    WASM: JSON.stringify(bytes.toString("hex")),
    // The script contains the hashes of both files: a page that checks the script has checked them too, and files of
    // another version are refused.
    INTEGRITY: integrity("tallymark.wasm"),
    FALLBACK: integrity("fallback.js"),
  };
  const script = { define, format: "iife" };
  const module = { define, format: "esm", external: ["react", "./index.js", "./fallback.js"] };
  for (const name of ["index", "react", "testing"]) {
    await bundle(`src/${name}.ts`, `${name}.js`, module);
    // For Jest and other CommonJS. Copies of the package in one page share their trackers.
    await bundle(`src/${name}.ts`, `${name}.cjs`, { ...module, format: "cjs" });
  }
  // There is nothing in it but a type.
  writeFileSync("dist/window.js", "export {};\n");
  writeFileSync("dist/window.cjs", '"use strict";\n');
  await bundle("src/script.ts", "tallymark.js", script);
}

/** Bundles with esbuild and minifies with terser, whose output is 4 % smaller than that of esbuild. */
async function bundle(entry, name, options) {
  const bundled = await build({
    ...options,
    entryPoints: [entry],
    outfile: `dist/${name}`,
    bundle: true,
    mangleProps: INTERNAL,
    // Terser can remove and inline more in code that was minified before.
    minify: true,
    target: TARGET,
    sourcemap: true,
    write: false,
    logLevel: "warning",
  });
  const [map, code] = bundled.outputFiles.map(({ text }) => text);
  const minified = await minify(code, {
    ecma: Number(TARGET.slice(2)),
    module: options.format === "esm",
    toplevel: true,
    // "use client" must stay.
    compress: {
      directives: false,
      passes: 5,
      inline: 1,
      pure_getters: true,
      unsafe_arrows: true,
    },
    format: { preserve_annotations: true },
    sourceMap: { content: map, includeSources: true, url: `${name}.map` },
  });
  // In CommonJS, the other entries are CommonJS too.
  const own = options.format === "cjs" ? minified.code.replaceAll('"./index.js"', '"./index.cjs"') : minified.code;
  writeFileSync(`dist/${name}`, own);
  writeFileSync(`dist/${name}.map`, minified.map);
}

function buildTypes() {
  run("node_modules/.bin/tsc", ["--emitDeclarationOnly"]);
  for (const name of ["index", "react", "testing", "types", "window"]) {
    const types = readFileSync(`build/types/src/${name}.d.ts`, "utf8");
    writeFileSync(`dist/${name}.d.ts`, types);
    writeFileSync(`dist/${name}.d.cts`, types.replaceAll('.js"', '.cjs"'));
  }
  // The package contains its licences.
  for (const name of ["LICENSE-MIT", "LICENSE-APACHE"]) copyFileSync(`../${name}`, name);
}

function printSizes() {
  const sizes = (bytes) => [bytes.length, gzipSync(bytes, { level: 9 }).length, brotliCompressSync(bytes).length];
  const print = (name, sizes) => console.log(name.padEnd(24), ...sizes.map((size) => String(size).padStart(8)));
  print("bytes", ["raw", "gzip", "brotli"]);
  const files = ["tallymark.js", "index.js", "tallymark.wasm", "fallback.js"];
  const all = files.map((name) => sizes(readFileSync(`dist/${name}`)));
  files.forEach((name, at) => print(name, all[at]));
  const [script, , wasm] = all;
  print(
    "tallymark.js + wasm",
    script.map((size, at) => size + wasm[at]),
  );
}
