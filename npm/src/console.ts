// Lines in the page's console. What they say is rarely needed, so the texts are in fallback.js.

import type { Source } from "./core.js";

/** What a line is about: see `explain.ts`. */
export type Report = (topic: string, ...details: unknown[]) => void;

/** Writes one line, in the words of `explain` or, if that cannot be loaded, only the details. Never throws. */
export const reporter =
  (source: Source): Report =>
  (topic, ...details) => {
    source
      .script()
      .then(({ explain }) => explain(topic, !!source.tag, details))
      .catch(() => console.warn("tallymark:", topic, ...details))
      .catch(() => {});
  };
