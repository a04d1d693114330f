// What this shop counts of its own, beside page views and clicks. A misspelt name or property does not compile.

import { useTallymark } from "tallymark/react";

type Events = {
  tea_added: { tea: string; price: number };
  order_placed: { teas: number; total: number };
};

export const useTracker = () => useTallymark<Events>();
