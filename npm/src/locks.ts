// Who holds a lane: what is used of Web Locks, and how leases in storage replace them.

import { timeOf } from "./event.js";
import type { Storage } from "./storage.js";

/** What is used of Web Locks. */
export interface Locks {
  request(name: string, options: { ifAvailable: boolean }, callback: (lock: unknown) => unknown): Promise<unknown>;
}

/** Without Web Locks: the age of a lease from which its page no longer relies on it. Others do so after twice that time. */
export const STALE = 90_000;

/** The time and the holder of a lane's lease. */
export const leaseOf = (storage: Storage, lane: string): [at: number, holder?: string] => {
  const [at, holder] = (storage.get(lane) || "").split(" ");
  return [Number(at) || timeOf(lane), holder];
};
