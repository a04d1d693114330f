// The script tag: reads the options from its attributes and puts the tracker at window.tallymark.

import { reporter } from "./console.js";
import type { Source } from "./core.js";
import { fromDocument } from "./dom.js";
import { obtainTracker, REGISTRY } from "./registry.js";
import type { EarlyCall } from "./tracker.js";

/** The hashes of tallymark.wasm and fallback.js, defined by build.mjs. */
declare const INTEGRITY: string;
declare const FALLBACK: string;

const NAME = "tallymark";
/** In a module script there is no current script. */
const current = fromDocument("currentScript") as HTMLScriptElement | null | undefined;
const script =
  current || [...(fromDocument("scripts") || [])].find((one) => one.type === "module" && one.dataset.endpoint);
if (script) {
  // An element with that id is no own property of the window. Anything else there belongs to the page.
  const present = Object.getOwnPropertyDescriptor(window, NAME)?.value;
  const early = Array.isArray(present?.q) ? (present.q as EarlyCall[]) : undefined;
  const at = (file: string) => new URL(file, script.src).href;
  const source: Source = {
    tag: true,
    async wasm() {
      // `integrity` refuses the wasm of another version.
      const response = await fetch(at("tallymark.wasm"), { integrity: INTEGRITY });
      if (!response.ok) throw response.status;
      return response.arrayBuffer();
    },
    script: () =>
      new Promise((resolve, reject) => {
        const src = at("fallback.js");
        const element = fromDocument("createElement")!.call(document, "script");
        Object.assign(element, {
          src,
          type: "module",
          integrity: FALLBACK,
          nonce: script.nonce,
          // The module that was loaded and checked, and no other file.
          onload() {
            element.remove();
            resolve(import(src));
          },
          onerror: reject,
        });
        fromDocument("documentElement")!.append(element);
      }),
  };
  const report = reporter(source);
  if (!current) report("module");
  const tracker = obtainTracker({ ...script.dataset }, source, early);
  if (!present || early) (window as { tallymark?: unknown })[NAME] = tracker;
  else if (present !== tracker && !(REGISTRY in Object(present))) report("taken");
}
