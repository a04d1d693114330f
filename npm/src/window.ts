// The type of `window.tallymark`, for pages with the script tag: add "tallymark/window" to `types` in tsconfig.json.

import type { Tracker } from "./types.js";

declare global {
  interface Window {
    /** The tracker of the script tag. `undefined` until the script has run, unless the page has the stub. */
    tallymark?: Tracker;
  }
}
