// Clicks on elements with `data-tallymark-click`, also those added later.

import { isElement, listen } from "./dom.js";

const CLICK = "data-tallymark-click";
const PROPS = "data-tallymark-props";

/** Calls `click` for every click on a marked element or on anything inside one. */
export function watchClicks(
  click: (buttonId: string, properties?: object) => void,
  warn: (problem: unknown) => void,
): void {
  // The fields of a form may have the names of its methods.
  const { closest, contains, getAttribute, matches } = Element.prototype;
  const onClick = (event: MouseEvent) => {
    try {
      // The path leads out of open shadow roots too.
      const path = event.composedPath().filter(isElement);
      const find = (selector: string) => path.find((element) => matches.call(element, selector));
      const marked = find(`[${CLICK}]`);
      // The middle button opens links, and other elements do nothing then.
      if (!marked || (event.type !== "click" && (event.button !== 1 || !find("a[href],area[href]")))) return;
      if (closest.call(marked, "[aria-disabled=true],:disabled:not(fieldset)")) return;
      const record = () => click(getAttribute.call(marked, CLICK)!, properties(getAttribute.call(marked, PROPS), warn));
      // A click on a label causes a click on its control, which is counted instead, unless the page prevents it. A click
      // on a link in a label does not.
      const control = (find("label,a,button") as HTMLLabelElement | undefined)?.control;
      if (!control || path.includes(control) || !contains.call(marked, control)) record();
      else setTimeout(() => event.defaultPrevented && record());
    } catch (error) {
      warn(error);
    }
  };
  // On the window, before anything in the page can stop them, except an earlier listener there that stops them
  // immediately. Passive, so that the click is not delayed.
  for (const type of ["click", "auxclick"]) listen(window, type, onClick, { capture: true, passive: true });
}

/** Invalid JSON is reported and left out; the click still counts. */
function properties(json: string | null, warn: (problem: unknown) => void): object | undefined {
  try {
    if (json) return JSON.parse(json);
  } catch (error) {
    warn(error);
  }
}
