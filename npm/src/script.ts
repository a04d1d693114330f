// The script tag: takes its options from the tag, and puts the tracker at window.tallymark.

import type { Tracker } from "./index.js";
import { type Early, start } from "./tracker.js";

declare global {
  interface Window {
    tallymark?: Tracker | { q: Early[] };
  }
}

const script = document.currentScript as HTMLScriptElement | null;
const { endpoint = "", username = "", key = "", pageViews, debug = "false" } = script?.dataset ?? {};
const present = window.tallymark;
const early = present && "q" in present ? present.q : [];

// A second tag on the page must not count everything twice.
if (!present || "q" in present) {
  if (!script || !endpoint || !username || !key) {
    console.warn("tallymark: the script tag needs data-endpoint, data-username and data-key");
  } else {
    window.tallymark = start(
      { endpoint, username, key, pageViews: pageViews !== "false", debug: debug !== "false" },
      new URL("tallymark.wasm", script.src),
      early,
    );
  }
}
