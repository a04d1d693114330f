// What the page must transfer, in bytes. The budget is brotli's, which every browser takes and every host can serve.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { brotliCompressSync, gzipSync } from "node:zlib";

/** The most that each form may have, compressed file by file as it is sent. */
const BUDGETS = [
  { form: "script tag", files: ["tallymark.js", "tallymark.wasm"], budget: 10_000 },
  { form: "module", files: ["index.js"], budget: 10_000 },
  { form: "where wasm is forbidden, in place of it", files: ["fallback.js"], budget: 9_000 },
];

for (const { form, files, budget } of BUDGETS) {
  test(`${form}: at most ${budget} bytes`, (t) => {
    let all = 0;
    for (const file of files) {
      const bytes = readFileSync(new URL(`../dist/${file}`, import.meta.url));
      const brotli = brotliCompressSync(bytes).length;
      t.diagnostic(`${file}: ${bytes.length} raw, ${gzipSync(bytes, { level: 9 }).length} gzip, ${brotli} brotli`);
      all += brotli;
    }
    assert.ok(all <= budget, `${files.join(" + ")}: ${all} bytes`);
  });
}
