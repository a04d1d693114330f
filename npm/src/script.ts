// The script tag: reads the options from its attributes and puts the tracker at window.tallymark.

import { reporter } from "./console.js";
import type { Source } from "./core.js";
import { fromDocument } from "./dom.js";
import { obtainTracker, REGISTRY } from "./registry.js";
import type { EarlyCall } from "./tracker.js";

/** Defined by build.mjs: the hash of the wasm, and what the core's imports and exports must be. */
declare const INTEGRITY: string;
declare const INTERFACE: string;

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
  let verified = false;
  const source: Source = {
    tag: true,
    async wasm() {
      // `integrity` refuses the wasm of another version.
      const response = await fetch(at("tallymark.wasm"), { integrity: INTEGRITY });
      if (!response.ok) throw response.status;
      const code = await response.arrayBuffer();
      verified = true;
      return code;
    },
    async script() {
      // Where the page checks this script, nothing unchecked may run because a file was tampered with.
      if (script.integrity && !verified) throw "integrity";
      const fallback = await import(at("fallback.js"));
      if (fallback.INTERFACE !== INTERFACE) throw "version";
      return fallback;
    },
  };
  const report = reporter(source);
  if (!current) report("module");
  const tracker = obtainTracker({ ...script.dataset }, source, early);
  if (!present || early) (window as { tallymark?: unknown })[NAME] = tracker;
  else if (present !== tracker && !(REGISTRY in Object(present))) report("taken");
}
