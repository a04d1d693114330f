// The script tag: reads the options from its attributes and puts the tracker at window.tallymark.

import { type EarlyCall, startTracker } from "./tracker.js";
import type { Options, Tracker } from "./types.js";

declare global {
  interface Window {
    tallymark?: Tracker | { q: EarlyCall[] };
  }
}

/** The hash of the wasm, defined by build.mjs. */
declare const INTEGRITY: string;
/** Waits before another attempt to download the core, in milliseconds. */
const WAITS = [1000, 4000, 16000];

const script = document.currentScript as HTMLScriptElement | null;
const present = window.tallymark;

// A second tag in the page must not count everything twice.
if (script && (!present || "q" in present)) {
  const options: Record<string, unknown> = {};
  // `data-debug` without a value means yes.
  const words: Record<string, boolean> = { "": true, true: true, false: false };
  for (const name in script.dataset) options[name] = words[script.dataset[name]!] ?? script.dataset[name];
  const at = (file: string) => new URL(file, script.src).href;
  const source = { wasm: () => download(at("tallymark.wasm"), 0), script: () => import(at("fallback.js")) };
  window.tallymark = startTracker(options as unknown as Options, source, present?.q);
}

async function download(url: string, attempts: number): Promise<ArrayBuffer> {
  try {
    const response = await fetch(url, { integrity: INTEGRITY });
    if (!response.ok) throw response.status;
    return await response.arrayBuffer();
  } catch (error) {
    // A status below 500 is permanent, a network failure is not.
    const wait = WAITS[attempts];
    if (!wait || (error as number) < 500) throw error;
    await new Promise((resolve) => setTimeout(resolve, wait));
    return download(url, attempts + 1);
  }
}
