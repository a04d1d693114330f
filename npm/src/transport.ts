// Posts batches and reads what the collector answers.

/** Bytes that may be on their way when the page goes. Browsers allow 64 KiB to all of a page's scripts. */
const KEEPALIVE_BYTES = 60_000;
/** How long an answer may take, in milliseconds. */
const TIMEOUT = 30_000;

/** What `Core.answer` takes after time and batch. Status 0 is no answer that could be understood. */
export type Answer = [status: number, retryAfter: number, accepted: number, rejected: number, retry: Uint32Array];

/** Posts a batch. Never rejects. */
export type Post = (batchId: string, body: string) => Promise<Answer>;

/** Throws if no request could ever be made of these. */
export function transport(endpoint: string, username: string, key: string): Post {
  if (!endpoint || !username || !key) throw "endpoint, username and key are needed";
  const url = new URL(endpoint.replace(/\/*$/, "/v1/batch"), document.baseURI).href;
  const encoder = new TextEncoder();
  const authorization = "Basic " + btoa(String.fromCharCode(...encoder.encode(username + ":" + key)));
  let flying = 0;
  let keepaliveWorks = false;

  return async (batchId, body) => {
    const bytes = encoder.encode(body);
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), TIMEOUT);
    const request = (keepalive: boolean) =>
      fetch(url, {
        method: "POST",
        headers: {
          Authorization: authorization,
          "Content-Type": "application/json",
          "tallymark-sent-at": String(Date.now()),
        },
        body: bytes,
        keepalive,
        cache: "no-store",
        credentials: "omit",
        referrerPolicy: "strict-origin",
        signal: abort.signal,
      });
    // Not only when the page is hidden: a page may go while a request is on its way.
    const keepalive = flying + bytes.length <= KEEPALIVE_BYTES;
    const share = keepalive ? bytes.length : 0;
    flying += share;
    try {
      const response = await request(keepalive).catch((error) => {
        // Some engines refuse keepalive with a preflight, and others' requests use up the allowance.
        if (!keepalive || keepaliveWorks || abort.signal.aborted || document.visibilityState === "hidden") throw error;
        return request(false);
      });
      keepaliveWorks ||= keepalive;
      if (response.status !== 200) return answer(response.status, wait(response.headers.get("Retry-After")));
      const receipt = await response.json();
      // A captive portal, say, answers 200 too.
      if (receipt.batch_id !== batchId) return answer(0);
      return answer(200, NaN, receipt.accepted, receipt.rejected.length, receipt.retry);
    } catch {
      return answer(0);
    } finally {
      clearTimeout(timer);
      flying -= share;
    }
  };
}

const answer = (status: number, retryAfter = NaN, accepted = 0, rejected = 0, retry: number[] = []): Answer => [
  status,
  retryAfter,
  accepted,
  rejected,
  Uint32Array.from(retry),
];

/** `Retry-After`, which is seconds or a date, in milliseconds from now. NaN if it is neither. */
function wait(header: string | null): number {
  const seconds = Number(header || NaN);
  return seconds >= 0 ? seconds * 1000 : Date.parse(header || "") - Date.now();
}
