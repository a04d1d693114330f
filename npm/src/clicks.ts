// Clicks on marked elements, wherever and whenever they come into the page.

const CLICK = "data-tallymark-click";
const PROPS = "data-tallymark-props";

/** Calls `click` for every click on an element with `data-tallymark-click`, or on anything inside one. */
export function watchClicks(click: (buttonId: string, properties?: object) => void, warn: (problem: unknown) => void): void {
  const listen = (event: Event) => {
    try {
      // The path leads out of open shadow roots too.
      const path = event.composedPath().filter((node): node is Element => node instanceof Element);
      const marked = path.find((element) => element.hasAttribute(CLICK));
      if (!marked || marked.closest("[aria-disabled=true],:disabled:not(fieldset)")) return;
      // A press on a label is followed by a click on its control, which is counted instead; on a link in it, by none.
      const inner = path.find((element) => element.matches("label,a,button")) as HTMLLabelElement | undefined;
      const control = inner?.control;
      if (control && !path.includes(control) && marked.contains(control)) return;
      click(marked.getAttribute(CLICK)!, properties(marked.getAttribute(PROPS), warn));
    } catch (error) {
      warn(error);
    }
  };
  // Capturing, so that a page that stops the event does not stop the count; passive, so it is never delayed.
  document.addEventListener("click", listen, { capture: true, passive: true });
}

/** A typing error in the properties should not cost the click. */
function properties(json: string | null, warn: (problem: unknown) => void): object | undefined {
  try {
    if (json) return JSON.parse(json);
  } catch (error) {
    warn(error);
  }
}
