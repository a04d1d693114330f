// The shipped wasm against the golden fixtures that every part of Tallymark is held to.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Tracker, initSync } from "../build/tracker.js";

const NOW = 1_763_673_600_000;
const { memory } = initSync({ module: readFileSync(new URL("../dist/tallymark.wasm", import.meta.url)) });
const fixtures = JSON.parse(readFileSync(new URL("../../sdk/tests/wire/events.json", import.meta.url), "utf8"));

/** Pushes the event that the fields describe; false if it was refused. */
const push = (tracker, { event_type, occurred_at, url, button_id, name, referral_url, title, properties }) =>
  tracker.push(
    ["page_view", "button_click", "custom"].indexOf(event_type),
    occurred_at,
    url ?? button_id ?? name,
    referral_url ?? "",
    title ?? "",
    properties ? JSON.stringify(properties) : "",
  );

function sent(tracker, now) {
  tracker.flush();
  assert.equal(tracker.poll(now), 0);
  return tracker.text(1);
}

test("events have the golden text, but for the ids that are made here", () => {
  // What every event of the tracker has, and what it cannot be given.
  const ours = /"(event_id|session_id)":"[^"]*",/g;
  const foreign = ["anonymous_id", "user_id", "useragent", "ipaddress", "weight"];
  let compared = 0;
  for (const { case: name, json } of fixtures) {
    const fields = JSON.parse(json);
    if (foreign.some((field) => field in fields)) continue;
    const tracker = new Tracker(fields.session_id ?? "", fields.occurred_at);
    assert.ok(push(tracker, fields), name);
    const line = sent(tracker, fields.occurred_at).split("\n")[1];
    assert.equal(line.replace(ours, ""), json.replace(ours, ""), name);
    const { event_id, session_id } = JSON.parse(line);
    assert.match(event_id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    if (fields.session_id) assert.equal(session_id, fields.session_id);
    compared++;
  }
  assert.ok(compared >= 5);
});

test("a batch has the golden form", () => {
  const [{ body: golden, batch_id, sdk }] = JSON.parse(
    readFileSync(new URL("../../sdk/tests/wire/batches.json", import.meta.url), "utf8"),
  );
  const tracker = new Tracker("xyz", NOW);
  for (const line of golden.split("\n").slice(1, -1)) assert.ok(push(tracker, JSON.parse(line.replace(/,$/, ""))));
  const body = sent(tracker, NOW);
  const ours = /"(event_id|session_id)":"[^"]*",/g;
  const named = golden.replace(batch_id, JSON.parse(body).batch_id).replace(sdk, "tallymark-js/0.1.0");
  assert.equal(body.replace(ours, ""), named.replace(ours, ""));
});

test("memory stays small however long the page lives", () => {
  const tracker = new Tracker("", 0);
  const text = "x".repeat(2000);
  const live = (rounds) => {
    for (let round = 0; round < rounds; round++) {
      const size = 1 + ((round * 7919) % 2000);
      push(tracker, { event_type: "custom", occurred_at: NOW + round, name: "n", properties: { text: text.slice(0, size) } });
      while (!tracker.poll(NOW + round)) {
        const { batch_id, events } = JSON.parse(tracker.text(1));
        tracker.answer(NOW + round, batch_id, 200, NaN, events.length, 0, new Uint32Array());
      }
    }
  };
  live(2000);
  const before = memory.buffer.byteLength;
  live(50_000);
  assert.equal(memory.buffer.byteLength, before);
  assert.ok(before <= 512 * 1024, `${before} bytes`);
  assert.ok(tracker.figure(2) > 51_000);
});
