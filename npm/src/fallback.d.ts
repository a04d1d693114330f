// The core as a script, which build.mjs makes.

import type { Make } from "./core.js";

export declare const instantiate: Make;
