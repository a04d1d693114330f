"use client";
// React: one tracker for everything below a provider. It may render on a server, where it does nothing.

import { type ReactElement, type ReactNode, createContext, createElement, useContext, useState } from "react";
import { type AnyEvents, type Options, type Tracker, createTracker } from "./index.js";

const Context = createContext<Tracker | undefined>(undefined);

/** What a provider takes. */
export interface TallymarkProviderProps {
  /** The tracker's options. The first ones hold. */
  options: Options;
  children?: ReactNode;
}

/** Starts a tracker for everything inside it. */
export function TallymarkProvider({ options, children }: TallymarkProviderProps): ReactElement {
  // There is one for the same endpoint and username, however often React asks.
  const [tracker] = useState(() => createTracker(options));
  return createElement(Context.Provider, { value: tracker }, children);
}

/**
 * The tracker of the provider around this component.
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
