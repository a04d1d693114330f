// Events as JSON, byte for byte as the Rust crate writes them: their ids and limits.

import type { TrackedEvent } from "./types.js";

/** Every field in the order of the wire, with its limit in bytes of UTF-8; 0 for fields that are not texts. */
const FIELDS = {
  event_id: 128,
  event_type: 64,
  occurred_at: 0,
  session_id: 128,
  anonymous_id: 128,
  user_id: 128,
  url: 4096,
  referral_url: 4096,
  title: 1024,
  button_id: 256,
  name: 128,
  properties: 0,
  weight: 0,
} as const;
/** The field that each type of event is counted by. */
const KEYS = { page_view: "url", button_click: "button_id", custom: "name" } as const;
const EVENT_BYTES = 32 * 1024;

const encoder = new TextEncoder();

/** The UTF-8 bytes of a text. */
export const utf8 = (text: string): Uint8Array<ArrayBuffer> => encoder.encode(text);

/** The length of a text in UTF-8. Most texts are ASCII, which needs no encoding. */
export const bytes = (text: string): number => (/[^\0-\x7f]/.test(text) ? utf8(text).length : text.length);

/** Cuts a text to the limit of its field, at a character boundary. */
export const cut = (field: keyof typeof FIELDS, text: string): string =>
  text.length * 3 > FIELDS[field] ? text.slice(0, encoder.encodeInto(text, new Uint8Array(FIELDS[field])).read) : text;

/** A UUIDv7. It begins with the time, so ids sort by time. */
export function uuid(now: number): string {
  const hex = (digits: number, number: number) => number.toString(16).padStart(digits, "0");
  const time = hex(12, now);
  const [a, b, ...rest] = crypto.getRandomValues(new Uint16Array(5));
  const tail = rest.map((number) => hex(4, number)).join("");
  return `${time.slice(0, 8)}-${time.slice(8)}-7${hex(3, a & 0xfff)}-${hex(4, (b & 0x3fff) | 0x8000)}-${tail}`;
}

/** The time in an id. */
export const timeOf = (id: string): number => parseInt(id.slice(0, 8) + id.slice(9, 13), 16);

/** Encodes an event. Throws a code that says what is wrong with it, such as `name_too_long`. */
export function encode(event: TrackedEvent): string {
  const key = KEYS[event.event_type];
  if (!event[key]) throw key + "_missing";
  const fields: string[] = [];
  for (const name in FIELDS) {
    const field = name as keyof typeof FIELDS;
    const value = event[field];
    if (value == null) continue;
    if (FIELDS[field]) {
      if (typeof value !== "string") throw "invalid_event";
      if (cut(field, value) !== value) throw field + "_too_long";
    }
    const json = JSON.stringify(value);
    if (field === "properties" && json?.[0] !== "{") throw "invalid_properties";
    fields.push(`"${field}":${json}`);
  }
  // A lone surrogate is not Unicode. The collector would refuse the whole batch.
  const json = `{${fields}}`.replace(/\\\\|\\ud[89a-f]../g, (found) => (found[1] === "u" ? "\ufffd" : found));
  if (bytes(json) > EVENT_BYTES) throw "event_too_large";
  return json;
}
