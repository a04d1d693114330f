// Posts batches and reads the answers of the collector.

import { fromDocument } from "./dom.js";
import { bytes } from "./event.js";
import type { CheckedOptions } from "./options.js";

/** Bytes in flight when the page ends. Browsers allow 64 KiB to all scripts of a page together. */
const KEEPALIVE_BYTES = 60_000;
/** The timeout of a request, in milliseconds. */
const TIMEOUT = 30_000;

/** The status of any redirect, which is not followed. */
export const REDIRECT = 300;

/** The result of a request. */
export interface Answer {
  /** The HTTP status; 0 for a body that is not a receipt, -1 for no answer. */
  status: number;
  /** If it is not a receipt. */
  response?: Response;
  /** In milliseconds from now; NaN if the answer has none. */
  retryAfter?: number;
  accepted?: number;
  rejected?: number;
  /** The indexes of the events to send again. */
  retry?: number[];
}

/** Posts a batch. Never rejects. */
export type Post = (body: string) => Promise<Answer>;

export function createPost({ endpoint, username, key, credentials }: CheckedOptions): Post {
  // btoa() takes bytes, and jsdom has no TextEncoder.
  const Authorization = "Basic " + btoa(unescape(encodeURIComponent(`${username}:${key}`)));
  let inFlight = 0;
  let keepaliveWorks = false;

  return async (body) => {
    const size = bytes(body);
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), TIMEOUT);
    const request = (keepalive: boolean) =>
      fetch(endpoint + "/v1/batch", {
        method: "POST",
        headers: { Authorization, "Content-Type": "application/json", "tallymark-sent-at": String(Date.now()) },
        body,
        keepalive,
        cache: "no-store",
        credentials,
        // Another address may answer anything.
        redirect: "manual",
        referrerPolicy: "strict-origin",
        signal: abort.signal,
      });
    // Also while the page is visible: it may end while a request is in flight.
    const keepalive = inFlight + size <= KEEPALIVE_BYTES;
    const share = keepalive ? size : 0;
    inFlight += share;
    let status = -1;
    try {
      const response = await request(keepalive).catch((error) => {
        // Some engines refuse keepalive with a preflight, and other scripts use up the allowance.
        if (!keepalive || keepaliveWorks || abort.signal.aborted || fromDocument("hidden")) throw error;
        return request(false);
      });
      keepaliveWorks ||= keepalive;
      status = 0;
      if (response.type === "opaqueredirect") return { status: REDIRECT };
      if (response.status !== 200)
        return { status: response.status, response, retryAfter: wait(response.headers.get("Retry-After")) };
      const { batch_id, accepted, rejected, retry } = await response.json();
      // Captive portals, for example, answer 200 too.
      return body.startsWith(`{"batch_id":"${batch_id}"`)
        ? { status: 200, accepted, rejected: rejected.length, retry: [...retry] }
        : { status };
    } catch {
      return { status };
    } finally {
      clearTimeout(timer);
      inFlight -= share;
    }
  };
}

/** `Retry-After`, which is seconds or a date, as milliseconds from now. NaN if it is neither. */
function wait(header: string | null): number {
  const text = header || NaN;
  return +text >= 0 ? +text * 1000 : Date.parse(`${text}`) - Date.now();
}
