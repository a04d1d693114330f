// Loads the wasm core, once for all trackers of the page.

import { Tracker as Core, initSync } from "../build/tracker.js";

export { Core };

/** Waits before another try, in milliseconds. */
const WAITS = [1000, 4000, 16000];

let loading: Promise<void> | undefined;

/** Resolves when `Core` can be used. Rejects if it never can. */
export const load = (wasm: URL): Promise<void> => (loading ||= compile(wasm, 0));

async function compile(wasm: URL, tries: number): Promise<void> {
  let bytes: ArrayBuffer;
  try {
    const response = await fetch(wasm);
    if (!response.ok) throw response.status;
    bytes = await response.arrayBuffer();
  } catch (error) {
    // A status below 500 will not change. A network may.
    const wait = WAITS[tries];
    if (!wait || (error as number) < 500) throw error;
    await new Promise((resolve) => setTimeout(resolve, wait));
    return compile(wasm, tries + 1);
  }
  initSync({ module: await WebAssembly.compile(bytes) });
}
