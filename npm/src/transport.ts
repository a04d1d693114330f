// Posts batches and reads what the collector answers.

import { utf8 } from "./event.js";

/** Bytes that may be on their way when the page goes. Browsers allow 64 KiB to all of a page's scripts. */
const KEEPALIVE_BYTES = 60_000;
/** How long an answer may take, in milliseconds. */
const TIMEOUT = 30_000;

/** What came of a post. */
export interface Answer {
  /** Of HTTP; 0 for an answer that could not be understood, -1 for none at all. */
  status: number;
  /** In milliseconds from now, NaN if the answer did not say. */
  retryAfter?: number;
  accepted?: number;
  rejected?: number;
  /** Indexes of events to send again. */
  retry?: number[];
}

/** Posts a batch. Never rejects. */
export type Post = (body: string) => Promise<Answer>;

/** Throws if no request could ever be made of these. */
export function transport(endpoint: string, username: string, key: string): Post {
  if (!endpoint || !username || !key) throw "endpoint, username and key are needed";
  const url = new URL(endpoint.replace(/\/*$/, "/v1/batch"), document.baseURI).href;
  const Authorization = "Basic " + btoa(String.fromCharCode(...utf8(username + ":" + key)));
  let flying = 0;
  let keepaliveWorks = false;

  return async (text) => {
    const body = utf8(text);
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), TIMEOUT);
    const request = (keepalive: boolean) =>
      fetch(url, {
        method: "POST",
        headers: { Authorization, "Content-Type": "application/json", "tallymark-sent-at": String(Date.now()) },
        body,
        keepalive,
        cache: "no-store",
        credentials: "omit",
        referrerPolicy: "strict-origin",
        signal: abort.signal,
      });
    // Not only when the page is hidden: a page may go while a request is on its way.
    const keepalive = flying + body.length <= KEEPALIVE_BYTES;
    const share = keepalive ? body.length : 0;
    flying += share;
    let status = -1;
    try {
      const response = await request(keepalive).catch((error) => {
        // Some engines refuse keepalive with a preflight, and others' requests use up the allowance.
        if (!keepalive || keepaliveWorks || abort.signal.aborted || document.hidden) throw error;
        return request(false);
      });
      keepaliveWorks ||= keepalive;
      status = 0;
      if (response.status !== 200) return { status: response.status, retryAfter: wait(response.headers.get("Retry-After")) };
      const { batch_id, accepted, rejected, retry } = await response.json();
      // A captive portal, say, answers 200 too.
      return text.startsWith(`{"batch_id":"${batch_id}"`) ? { status: 200, accepted, rejected: rejected.length, retry: [...retry] } : { status };
    } catch {
      return { status };
    } finally {
      clearTimeout(timer);
      flying -= share;
    }
  };
}

/** `Retry-After`, which is seconds or a date, in milliseconds from now. NaN if it is neither. */
function wait(header: string | null): number {
  const seconds = Number(header || NaN);
  return seconds >= 0 ? seconds * 1000 : Date.parse(header || "") - Date.now();
}
