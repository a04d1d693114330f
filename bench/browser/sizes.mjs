// What each tracker costs to transfer, in bytes: its scripts as they are shipped, with gzip -9 and with brotli 11.
// Prints the table of npm/SIZE.md.

import { readFileSync } from "node:fs";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { PEERS, scripts } from "./peers.mjs";

const dist = (name) => readFileSync(new URL(`../../npm/dist/${name}`, import.meta.url));
const figure = (bytes) => bytes.toLocaleString("en");

/** Each file is compressed by itself, as it is sent. */
function row(name, queue, files) {
  const sum = (compress) => files.map((file) => compress(file).length).reduce((all, size) => all + size, 0);
  const sizes = [(file) => file, (file) => gzipSync(file, { level: 9 }), (file) => brotliCompressSync(file)].map(sum);
  return { brotli: sizes[2], line: `| ${[name, queue, ...sizes.map(figure)].join(" | ")} |` };
}

const rows = PEERS.map((peer) => row(peer.name, peer.queue, scripts(peer)));
rows.push(row("**tallymark: script + wasm**", "storage", [dist("tallymark.js"), dist("tallymark.wasm")]));
// That it is forbidden shows when the wasm is there.
rows.push(
  row(
    "tallymark where wasm is forbidden: both + fallback",
    "storage",
    ["tallymark.js", "tallymark.wasm", "fallback.js"].map(dist),
  ),
);

console.log("| script tag | queue outlives the page in | raw | gzip -9 | brotli 11 |\n|---|---|--:|--:|--:|");
for (const { line } of rows.sort((one, other) => other.brotli - one.brotli)) console.log(line);
