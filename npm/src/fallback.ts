// fallback.js: what pages rarely need, loaded on demand: the core as a script, and the texts for the console.

export { INTERFACE, instantiate } from "../build/core.js";
export { explain } from "./explain.js";
