// Takes over what the server has rendered.

import { createElement } from "react";
import { hydrateRoot } from "react-dom/client";
import { createTracker } from "tallymark";
import { options, Shop } from "./shop.js";

window.errors = [];
const onRecoverableError = (error) => errors.push(String(error));
hydrateRoot(document.getElementById("root"), createElement(Shop), { onRecoverableError });
window.tracker = createTracker(options);
