// Access to the page that the page cannot break by accident.

/**
 * Reads a property of the document. `document.title` itself may be an element: `<iframe name="title">` hides the property.
 * `undefined` if it cannot be had.
 */
export function fromDocument<Name extends keyof Document>(name: Name): Document[Name] | undefined {
  try {
    return Reflect.get(Document.prototype, name, document);
  } catch {
    return undefined;
  }
}

/** Whether it is an element, also of another frame, whose classes are others. */
export function isElement(node: EventTarget): node is Element {
  try {
    return Element.prototype.matches.call(node as Element, "*");
  } catch {
    return false;
  }
}

type Listener = [
  target: EventTarget,
  type: string,
  listener: (event: never) => void,
  options?: AddEventListenerOptions,
];

const listeners: Listener[] = [];
const add = ([target, ...listener]: Listener) =>
  EventTarget.prototype.addEventListener.call(target, ...(listener as unknown as [string, EventListener]));

/** Adds a listener, which `document.open()` does not remove. */
export function listen(...listener: Listener): void {
  // document.open() removes all listeners, with the content. Adding one that is still there has no effect.
  if (!listeners.length && typeof MutationObserver === "function") {
    new MutationObserver(() => listeners.forEach(add)).observe(document, { childList: true });
  }
  listeners.push(listener);
  add(listener);
}

/**
 * Runs code outside of the zones of zone.js: timers and requests begun in Angular's zone would make the application wait for
 * them and check for changes.
 */
export function outsideZones<T>(act: () => T): T {
  const { Zone } = globalThis as { Zone?: { root?: { run(act: () => T): T } } };
  return Zone?.root ? Zone.root.run(act) : act();
}
