// Clicks on elements with `data-tallymark-click`, also those added later.

import { listen } from "./dom.js";

const CLICK = "data-tallymark-click";
const PROPS = "data-tallymark-props";

/** Calls `click` for every click on a marked element or on anything inside one. */
export function watchClicks(
  click: (buttonId: string, properties?: object) => void,
  warn: (problem: unknown) => void,
): void {
  const onClick = (event: Event) => {
    try {
      // The path leads out of open shadow roots too.
      const path = event.composedPath().filter((node): node is Element => node instanceof Element);
      const marked = path.find((element) => element.hasAttribute(CLICK));
      if (!marked || marked.closest("[aria-disabled=true],:disabled:not(fieldset)")) return;
      // A click on a label causes a click on its control, which is counted instead. A click on a link in a label does not.
      const inner = path.find((element) => element.matches("label,a,button")) as HTMLLabelElement | undefined;
      const control = inner?.control;
      if (control && !path.includes(control) && marked.contains(control)) return;
      click(marked.getAttribute(CLICK)!, properties(marked.getAttribute(PROPS), warn));
    } catch (error) {
      warn(error);
    }
  };
  // Capture, so that `stopPropagation` in the page has no effect here; passive, so that the click is not delayed.
  listen(document, "click", onClick, { capture: true, passive: true });
}

/** Invalid JSON is reported and left out; the click still counts. */
function properties(json: string | null, warn: (problem: unknown) => void): object | undefined {
  try {
    if (json) return JSON.parse(json);
  } catch (error) {
    warn(error);
  }
}
