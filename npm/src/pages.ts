// Which pages were seen: the first, those that a router shows, and those that come back from the browser's cache.

import type { Options } from "./index.js";

/** Calls `view` once for each. */
export function watchPages(view: () => void, { hash, whenVisible }: Options): void {
  let seen = "";
  let timer: ReturnType<typeof setTimeout>;
  const look = () => {
    clearTimeout(timer);
    // Opened behind another tab, and perhaps never looked at.
    if (whenVisible && document.hidden) return;
    const here = hash ? location.href : location.href.split("#")[0];
    if (here !== seen) view();
    seen = here;
  };
  // A router may push and replace at once, and the title comes after. Whoever leaves meanwhile has seen it too.
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(look);
  };
  for (const name of ["pushState", "replaceState"] as const) {
    const original = history[name];
    history[name] = function (...step) {
      original.apply(this, step);
      soon();
    };
  }
  addEventListener("popstate", soon);
  addEventListener("hashchange", soon);
  document.addEventListener("visibilitychange", look);
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    seen = "";
    look();
  });
  look();
}
