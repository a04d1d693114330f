// What a site has to ask for: links to other sites and to files, and submitted forms, as clicks. A part of fallback.js.

import { isElement, type listen } from "./dom.js";
import { cut } from "./event.js";
import type { Options } from "./types.js";

const FILE =
  /\.(pdf|docx?|xlsx?|pptx?|od[tsp]|pages|numbers|key|rtf|txt|csv|epub|mobi|zip|rar|7z|t?gz|bz2|xz|tar|dmg|pkg|exe|msi|deb|rpm|apk|iso|mp[34]|mpe?g|m4[av]|mov|avi|wmv|mkv|wav|wma|flac|ogg|webm|midi?)$/i;

/** Calls `click` for what the options ask for, with ids that say what was clicked. Links that are marked are left out. */
export function watchLinks(
  click: (buttonId: string, properties?: object) => void,
  clean: (address: string) => string,
  warn: (problem: unknown) => void,
  add: typeof listen,
  { trackClicks, outbound, downloads, forms }: Pick<Options, "trackClicks" | "outbound" | "downloads" | "forms">,
): void {
  // The fields of a form may have the names of its methods.
  const { getAttribute, matches } = Element.prototype;
  const attribute = (element: Element, name: string) => getAttribute.call(element, name);
  const record = (kind: string, place: string, properties?: object) =>
    click(cut("button_id", `${kind}:${place}`), properties);
  /** Its host, unless it is the page's, and its path. */
  const placeOf = ({ host, pathname }: URL) => (host === location.host ? "" : host) + pathname;

  const onClick = (event: MouseEvent) => {
    const path = event.composedPath().filter(isElement);
    const link = path.find((element) => matches.call(element, "a[href],area[href]"));
    // The middle button opens links too, the right one does not.
    if (!link || event.button > 1) return;
    if (trackClicks && path.some((element) => matches.call(element, "[data-tallymark-click]"))) return;
    const url = new URL(attribute(link, "href")!, link.baseURI);
    if (!/^https?:/.test(url.protocol)) return;
    const isFile = downloads && (attribute(link, "download") !== null || FILE.test(url.pathname));
    if (!isFile && !(outbound && url.host !== location.host)) return;
    const address = clean(url.href);
    // Pages that are excluded.
    if (address) record(isFile ? "download" : "outbound", placeOf(url), { url: cut("url", address) });
  };
  const onSubmit = (event: Event) => {
    const [form] = event.composedPath() as Element[];
    const name = attribute(form, "id") || attribute(form, "name");
    record("form", name || placeOf(new URL(attribute(form, "action") || "", location.href)));
  };
  const watch = (type: string, act: (event: never) => void) => {
    const listener = (event: never) => {
      try {
        act(event);
      } catch (error) {
        warn(error);
      }
    };
    add(window, type, listener, { capture: true, passive: true });
  };
  if (outbound || downloads) for (const type of ["click", "auxclick"]) watch(type, onClick);
  if (forms) watch("submit", onSubmit);
}
