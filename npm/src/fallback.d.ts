// The core as a script, which build.mjs makes.

import type { Instantiate } from "./core.js";

export declare const instantiate: Instantiate;
