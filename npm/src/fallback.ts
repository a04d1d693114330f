// fallback.js: what pages rarely need, loaded on demand: the core as a script, the texts for the console, and
// leases in place of Web Locks.

export { INTERFACE, instantiate } from "../build/core.js";
export { explain } from "./explain.js";
export { createLeases } from "./leases.js";
