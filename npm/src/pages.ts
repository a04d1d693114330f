// Page views: the first page, those that a router shows, and pages restored from the back/forward cache.

import { fromDocument, listen, outsideZones } from "./dom.js";
import type { CheckedOptions } from "./options.js";

/**
 * How long an address must stay until it is a view, in milliseconds: routers redirect, frameworks set the title later, and a
 * search box replaces the address while somebody types.
 */
const SETTLED = 700;

/**
 * Calls `view` once for each page view, with its address and the time when it was opened. Addresses that `clean` makes
 * equal are one page. Returns a function that ends the wait for the current address.
 */
export function watchPages(
  view: (address: string, at: number) => void,
  clean: (address: string) => string,
  { whenVisible }: CheckedOptions,
): () => void {
  let seen: string | undefined;
  let pending: { address: string; at: number } | undefined;
  /** Whether it is from the current task: a router may redirect at once, and what follows later is another view. */
  let fresh = false;
  let visible = false;
  let timer: ReturnType<typeof setTimeout>;

  const look = () => {
    clearTimeout(timer);
    visible ||= !fromDocument("hidden");
    // Opened in a background tab, and perhaps never visible.
    if (whenVisible && !visible) return;
    const { address, at } = pending || { address: location.href, at: Date.now() };
    pending = undefined;
    const here = clean(address);
    if (here !== seen) view(address, at);
    seen = here;
  };
  const move = (replaced: boolean) => {
    const address = location.href;
    if (replaced && pending) pending.address = address;
    else {
      if (pending && !fresh) look();
      pending = { address, at: Date.now() };
      fresh = true;
    }
    clearTimeout(timer);
    outsideZones(() => {
      setTimeout(() => {
        fresh = false;
      });
      timer = setTimeout(look, SETTLED);
    });
  };
  for (const name of ["pushState", "replaceState"] as const) {
    const original = history[name];
    try {
      history[name] = function (...step) {
        original.apply(this, step);
        move(name === "replaceState");
      };
    } catch {
      // A page may have made it read-only.
    }
  }
  for (const type of ["popstate", "hashchange"]) listen(window, type, () => move(false));
  // The Navigation API changes addresses without the above. Where it exists, it tells the others again, which is harmless.
  const { navigation } = window as { navigation?: unknown };
  if (navigation instanceof EventTarget) {
    listen(navigation, "currententrychange", ({ navigationType }: { navigationType: string | null }) => {
      if (navigationType) move(navigationType === "replace");
    });
  }
  listen(document, "visibilitychange", look);
  listen(window, "pageshow", (event: PageTransitionEvent) => {
    if (!event.persisted) return;
    seen = undefined;
    look();
  });
  look();
  return look;
}
