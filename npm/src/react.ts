"use client";
// React: one tracker for everything inside a provider. On a server it renders and does nothing else.

import { createContext, createElement, type ReactElement, type ReactNode, useContext, useState } from "react";
import { type AnyEvents, createTracker, type Options, type Tracker } from "./index.js";

const Context = createContext<Tracker | undefined>(undefined);

/** The properties of `TallymarkProvider`. */
export interface TallymarkProviderProps {
  /** The tracker's options. Later changes are ignored. */
  options: Options;
  children?: ReactNode;
}

/** Starts a tracker for the components inside it. */
export function TallymarkProvider({ options, children }: TallymarkProviderProps): ReactElement {
  // Asking again for the same endpoint and username returns the same tracker.
  const [tracker] = useState(() => createTracker(options));
  return createElement(Context.Provider, { value: tracker }, children);
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
