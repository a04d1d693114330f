// The script tag: takes its options from the tag, and puts the tracker at window.tallymark.

import type { Options, Tracker } from "./index.js";
import { type Early, start } from "./tracker.js";

declare global {
  interface Window {
    tallymark?: Tracker | { q: Early[] };
  }
}

/** The wasm's hash, put here by build.mjs. */
declare const INTEGRITY: string;
/** Waits before another try to download the core, in milliseconds. */
const WAITS = [1000, 4000, 16000];

const script = document.currentScript as HTMLScriptElement | null;
const present = window.tallymark;

// A second tag on the page must not count everything twice.
if (script && (!present || "q" in present)) {
  const options: Record<string, unknown> = {};
  // `data-debug` alone means yes.
  const words: Record<string, boolean> = { "": true, true: true, false: false };
  for (const name in script.dataset) options[name] = words[script.dataset[name]!] ?? script.dataset[name];
  const at = (file: string) => new URL(file, script.src).href;
  const source = { wasm: () => download(at("tallymark.wasm"), 0), script: () => import(at("fallback.js")) };
  window.tallymark = start(options as unknown as Options, source, present?.q);
}

async function download(url: string, tries: number): Promise<ArrayBuffer> {
  try {
    const response = await fetch(url, { integrity: INTEGRITY });
    if (!response.ok) throw response.status;
    return await response.arrayBuffer();
  } catch (error) {
    // A status below 500 will not change. A network may.
    const wait = WAITS[tries];
    if (!wait || (error as number) < 500) throw error;
    await new Promise((resolve) => setTimeout(resolve, wait));
    return download(url, tries + 1);
  }
}
