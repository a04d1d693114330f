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

/** The length of a character in UTF-8: surrogate pairs have 4 bytes, lone surrogates become a character of 3. */
const width = (char: string): number => (char < "\x80" ? 1 : char < "\u0800" ? 2 : char.length + 2);

/** The length of a text in UTF-8. */
export function bytes(text: string): number {
  // Most texts are ASCII.
  if (!/[^\0-\x7f]/.test(text)) return text.length;
  let size = 0;
  for (const char of text) size += width(char);
  return size;
}

/** Cuts a text to the limit of its field, at a character boundary. */
export function cut(field: keyof typeof FIELDS, text: string): string {
  if (text.length * 3 <= FIELDS[field]) return text;
  let end = 0;
  let size = 0;
  for (const char of text) {
    size += width(char);
    if (size > FIELDS[field]) break;
    end += char.length;
  }
  return text.slice(0, end);
}

/** The length of an id made here. */
export const ID_LENGTH = 36;

/** Adds to the properties of an event, which take precedence. Those that are not an object stay, to be refused. */
export const addProperties = (more: object, properties: object | null | undefined): object =>
  properties == null || (typeof properties === "object" && !Array.isArray(properties))
    ? { ...more, ...properties }
    : properties;

/** A UUIDv7. It begins with the time, so ids sort by time. */
export function uuid(now: number): string {
  const hex = (digits: number, number: number) => number.toString(16).padStart(digits, "0");
  const time = hex(12, Math.floor(now));
  const [a, b, ...rest] = crypto.getRandomValues(new Uint16Array(5));
  const tail = rest.map((number) => hex(4, number)).join("");
  return `${time.slice(0, 8)}-${time.slice(8)}-7${hex(3, a & 0xfff)}-${hex(4, (b & 0x3fff) | 0x8000)}-${tail}`;
}

/** The time in an id. */
export const timeOf = (id: string): number => parseInt(id.slice(0, 8) + id.slice(9, 13), 16);

/** Prototype.js makes texts of arrays. */
function plainArrays(this: Record<string, unknown>, key: string, value: unknown) {
  return Array.isArray(this[key]) ? this[key] : value;
}

/** Encodes an event. Throws a code that says what is wrong with it, such as `name_too_long`. */
export function encode(event: TrackedEvent): string {
  const key = KEYS[event.event_type];
  if (!event[key]) throw key + "_missing";
  const fields: string[] = [];
  // Not `for in`: a page may have added to Object.prototype.
  for (const field of Object.keys(FIELDS) as (keyof typeof FIELDS)[]) {
    const value = event[field];
    if (value == null) continue;
    if (FIELDS[field]) {
      if (typeof value !== "string") throw "invalid_event";
      if (cut(field, value) !== value) throw field + "_too_long";
    }
    const json = JSON.stringify(value, "toJSON" in [] ? plainArrays : undefined);
    if (field === "properties" && json?.[0] !== "{") throw "invalid_properties";
    fields.push(`"${field}":${json}`);
  }
  // A lone surrogate is not Unicode. The collector would refuse the whole batch.
  const json = `{${fields}}`.replace(/\\\\|\\ud[89a-f]../g, (found) => (found[1] === "u" ? "\ufffd" : found));
  if (bytes(json) > EVENT_BYTES) throw "event_too_large";
  return json;
}
