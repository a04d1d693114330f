// One shop for every bundler, in plain JavaScript so that none needs configuration.

import { createElement, StrictMode } from "react";
import { TallymarkProvider, useTallymark } from "tallymark/react";

export const options = { endpoint: "/", username: "shop", key: "k" };

function Buy({ what }) {
  const tracker = useTallymark();
  const buy = () => tracker.track("bought", { what });
  return createElement("button", { id: what, "data-tallymark-click": what, onClick: buy }, what);
}

export const Provided = ({ what }) =>
  createElement(TallymarkProvider, { options: { ...options } }, createElement(Buy, { what }));

/** Two providers for the same site. */
export const Shop = () =>
  createElement(StrictMode, null, createElement(Provided, { what: "tea" }), createElement(Provided, { what: "cake" }));
