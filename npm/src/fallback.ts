// fallback.js: what pages rarely need, loaded on demand: the core as a script, the texts for the console, leases
// in place of Web Locks, and clicks that a site has to ask for.

export { instantiate } from "../build/core.js";
export { explain } from "./explain.js";
export { createLeases } from "./leases.js";
export { watchLinks } from "./links.js";
