"use client";
// React: one tracker for everything inside a provider. On a server it renders and does nothing else.

import { createContext, createElement, type ReactElement, type ReactNode, useContext, useState } from "react";
import { type AnyEvents, createTracker, type Options, type Tracker } from "./index.js";

const Context = createContext<Tracker | undefined>(undefined);

/** The properties of `TallymarkProvider`: options, or a tracker that exists, such as one of `tallymark/testing`. */
export type TallymarkProviderProps = { children?: ReactNode } & (
  | {
      /** The tracker's options. Later changes are ignored. */
      options: Options;
      tracker?: undefined;
    }
  | { tracker: Tracker; options?: undefined }
);

/** Starts a tracker for the components inside it. */
export function TallymarkProvider({ options, tracker, children }: TallymarkProviderProps): ReactElement {
  // Asking again for the same endpoint and username returns the same tracker.
  const [value] = useState(() => tracker ?? createTracker(options!));
  return createElement(Context.Provider, { value }, children);
}

/**
 * Returns the tracker of the provider around this component.
 *
 * @example
 * const tracker = useTallymark<Events>();
 * return <button onClick={() => tracker.track("charge", { value: 100 })}>Pay</button>;
 */
export function useTallymark<Events = AnyEvents>(): Tracker<Events> {
  const tracker = useContext(Context);
  if (!tracker) throw new Error("useTallymark needs a <TallymarkProvider> above it");
  return tracker as Tracker<Events>;
}
