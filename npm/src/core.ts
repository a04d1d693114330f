// Loads the core: its WebAssembly, or where none is allowed, the same as a script.

import type * as Exports from "../build/tracker_bg.wasm.js";
import type { Host } from "./batches.js";

/** One queue: the functions of tracker-wasm. Only numbers go in and out, which needs no code around it. */
export type Core = typeof Exports;

/** Where the built core comes from. */
export interface Source {
  wasm(): BufferSource | Promise<BufferSource>;
  /** The same as a script. */
  script(): Promise<{ instantiate: Make }>;
}

/** Makes a core that works on these batches. */
export type Make = (imports: { host: Host }) => Core | Promise<Core>;

let loading: ReturnType<Source["wasm"]> | undefined;

/** Makes a core that works on these batches; its code is loaded once for all trackers of the page. */
export const load = async (source: Source, host: Host): Promise<Core> => {
  const bytes = await (loading ||= source.wasm());
  try {
    // In one step: where the page's policy allows no wasm, WebKit compiles it all the same, and refuses only then.
    return (await WebAssembly.instantiate(bytes, { host } as {})).instance.exports as unknown as Core;
  } catch {
    // There is no WebAssembly here, or none is allowed.
    return (await source.script()).instantiate({ host });
  }
};
