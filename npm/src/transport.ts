// Posts batches and reads the answers of the collector.

import { utf8 } from "./event.js";
import type { CheckedOptions } from "./options.js";

/** Bytes in flight when the page ends. Browsers allow 64 KiB to all scripts of a page together. */
const KEEPALIVE_BYTES = 60_000;
/** The timeout of a request, in milliseconds. */
const TIMEOUT = 30_000;

/** The result of a request. */
export interface Answer {
  /** The HTTP status; 0 for a body that is not a receipt, -1 for no answer. */
  status: number;
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
  const Authorization = "Basic " + btoa(String.fromCharCode(...utf8(`${username}:${key}`)));
  let inFlight = 0;
  let keepaliveWorks = false;

  return async (text) => {
    const body = utf8(text);
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
        referrerPolicy: "strict-origin",
        signal: abort.signal,
      });
    // Also while the page is visible: it may end while a request is in flight.
    const keepalive = inFlight + body.length <= KEEPALIVE_BYTES;
    const share = keepalive ? body.length : 0;
    inFlight += share;
    let status = -1;
    try {
      const response = await request(keepalive).catch((error) => {
        // Some engines refuse keepalive with a preflight, and other scripts use up the allowance.
        if (!keepalive || keepaliveWorks || abort.signal.aborted || document.hidden) throw error;
        return request(false);
      });
      keepaliveWorks ||= keepalive;
      status = 0;
      if (response.status !== 200)
        return { status: response.status, retryAfter: wait(response.headers.get("Retry-After")) };
      const { batch_id, accepted, rejected, retry } = await response.json();
      // Captive portals, for example, answer 200 too.
      return text.startsWith(`{"batch_id":"${batch_id}"`)
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
  const seconds = Number(header || NaN);
  return seconds >= 0 ? seconds * 1000 : Date.parse(header || "") - Date.now();
}
