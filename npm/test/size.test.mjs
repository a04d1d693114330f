// The transfer size in bytes of brotli, which every browser supports.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { brotliCompressSync, gzipSync } from "node:zlib";

/** The limit of each form. Files are compressed one by one, as they are sent. */
const BUDGETS = [
  { form: "script tag", files: ["tallymark.js", "tallymark.wasm"], budget: 11_800 },
  { form: "module", files: ["index.js"], budget: 11_900 },
  { form: "fallback where wasm is forbidden", files: ["fallback.js"], budget: 10_700 },
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
