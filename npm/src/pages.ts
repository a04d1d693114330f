// Page views: the first page, those that a router shows, and pages restored from the back/forward cache.

import { fromDocument, listen } from "./dom.js";
import type { CheckedOptions } from "./options.js";

/** Calls `view` once for each page view. */
export function watchPages(view: () => void, { hash, whenVisible }: CheckedOptions): void {
  let seen = "";
  let timer: ReturnType<typeof setTimeout>;
  const look = () => {
    clearTimeout(timer);
    // Opened in a background tab, and perhaps never visible.
    if (whenVisible && fromDocument("hidden")) return;
    const here = hash ? location.href : location.href.split("#")[0];
    if (here !== seen) view();
    seen = here;
  };
  // A router may push and replace at once, and set the title later. If the page is hidden first, the view counts too.
  const schedule = () => {
    clearTimeout(timer);
    timer = setTimeout(look);
  };
  for (const name of ["pushState", "replaceState"] as const) {
    const original = history[name];
    try {
      history[name] = function (...step) {
        original.apply(this, step);
        schedule();
      };
    } catch {
      // A page may have made it read-only.
    }
  }
  listen(window, "popstate", schedule);
  listen(window, "hashchange", schedule);
  listen(document, "visibilitychange", look);
  listen(window, "pageshow", (event: PageTransitionEvent) => {
    if (!event.persisted) return;
    seen = "";
    look();
  });
  look();
}
