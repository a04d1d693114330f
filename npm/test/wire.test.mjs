// The encoding, byte for byte, against the golden fixtures that all parts of Tallymark share.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { NOW, source } from "./fake.mjs";

const { cut, encode, timeOf, uuid } = await source("event");
const { createBatches } = await source("batches");
const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
const SDK = `tallymark-js/${version}`;
const fixtures = (name) =>
  JSON.parse(readFileSync(new URL(`../../sdk/tests/wire/${name}.json`, import.meta.url), "utf8"));
const event = (fields) => ({ event_id: uuid(NOW), event_type: "custom", occurred_at: NOW, name: "n", ...fields });

/** Storage without limits. */
function memory(texts = new Map()) {
  return {
    texts,
    get: (name) => texts.get(name) ?? null,
    set: (name, text) => (text ? texts.set(name, text) : texts.delete(name), true),
    names: () => [...texts.keys()],
    makeRoom: () => {},
  };
}

test("events are encoded as in the fixtures", () => {
  // Fields that only servers send.
  const foreign = /"(useragent|ipaddress)":"[^"]*",/g;
  const all = fixtures("events");
  for (const { case: name, json } of all) assert.equal(encode(JSON.parse(json)), json.replace(foreign, ""), name);
  assert.ok(all.length >= 7);
});

test("fields have the order of the wire format", () => {
  for (const { case: name, json } of fixtures("events")) {
    const turned = Object.fromEntries(Object.entries(JSON.parse(json)).reverse());
    assert.deepEqual(JSON.parse(encode(turned)), JSON.parse(encode(JSON.parse(json))), name);
    assert.ok(encode(turned).startsWith('{"event_id"'), name);
  }
});

test("events above a limit or without their key are refused with the code of the contract", () => {
  // TypeScript checks types; the collector checks depth and weight.
  const theirs = ["unknown_event_type", "weight_out_of_range", "properties_too_deep"];
  let judged = 0;
  for (const { case: name, code, event } of fixtures("invalid")) {
    if (theirs.includes(code) || (code === "invalid_event" && name !== "a number for a string")) continue;
    assert.throws(
      () => encode(event),
      (thrown) => thrown === code,
      `${name}: ${code}`,
    );
    judged++;
  }
  assert.ok(judged >= 15, String(judged));
});

test("every limit is exact, in bytes of UTF-8", () => {
  const limits = {
    session_id: 128,
    anonymous_id: 128,
    user_id: 128,
    url: 4096,
    referral_url: 4096,
    title: 1024,
    button_id: 256,
    name: 128,
  };
  for (const [field, limit] of Object.entries(limits)) {
    for (const fits of [
      "x".repeat(limit),
      "é".repeat(limit / 2),
      "🍵".repeat(limit / 4),
      "\ud83c".repeat(Math.floor(limit / 3)),
    ]) {
      assert.ok(encode(event({ [field]: fits })), field);
      assert.equal(cut(field, fits), fits);
    }
    for (const long of [
      "x".repeat(limit + 1),
      "é".repeat(limit / 2) + "x",
      "🍵".repeat(limit / 4) + "🍵",
      "x".repeat(1e6),
    ]) {
      assert.throws(
        () => encode(event({ [field]: long })),
        (thrown) => thrown === field + "_too_long",
      );
      const short = cut(field, long);
      assert.ok(
        Buffer.byteLength(short) <= limit && Buffer.byteLength(short) > limit - 4 && long.startsWith(short),
        field,
      );
      assert.ok(short.isWellFormed?.() ?? true, "no half a character");
    }
  }
  const around = encode(event({ properties: { text: "" } })).length;
  assert.equal(encode(event({ properties: { text: "x".repeat(32768 - around) } })).length, 32768);
  for (const text of ["x".repeat(32769 - around), "茶".repeat(10_900), "\n".repeat(16_384)])
    assert.throws(
      () => encode(event({ properties: { text } })),
      (thrown) => thrown === "event_too_large",
    );
});

test("lone surrogates become the replacement character", () => {
  const text = encode(
    event({
      name: "half \ud83c",
      properties: { cut: "tea \ud83c", "key_\udf75": "\udf75\ud83c", whole: "🍵", literal: "\\ud83c" },
    }),
  );
  const { name, properties } = JSON.parse(text);
  assert.equal(name, "half \ufffd");
  assert.deepEqual(properties, { cut: "tea \ufffd", "key_\ufffd": "\ufffd\ufffd", whole: "🍵", literal: "\\ud83c" });
  assert.equal(Buffer.from(text).toString(), text, "it is Unicode");
});

test("properties are encoded as JSON or refused", () => {
  const date = new Date(NOW);
  const taken = [
    [
      { at: date, none: undefined, act() {}, number: NaN },
      { at: date.toJSON(), number: null },
    ],
    [
      new (class {
        a = 1;
        toJSON() {
          return { b: 2 };
        }
      })(),
      { b: 2 },
    ],
    [Object.assign(Object.create(null), { __proto__: null, toString: "x" }), { toString: "x" }],
    [new Map([[1, 2]]), {}],
    [null, undefined],
    [undefined, undefined],
  ];
  for (const [properties, read] of taken) assert.deepEqual(JSON.parse(encode(event({ properties }))).properties, read);
  const cyclic = {};
  cyclic.self = { cyclic };
  for (const properties of [
    [1],
    "text",
    7,
    true,
    0,
    "",
    false,
    1n,
    date,
    () => {},
    Symbol("s"),
    cyclic,
    { big: 1n },
    { toJSON: () => undefined },
    {
      get a() {
        throw new Error("mine");
      },
    },
  ])
    assert.throws(() => encode(event({ properties })));
});

test("ids are UUIDv7, sort by time and are unique", () => {
  const ids = new Set();
  for (const now of [0, 1, NOW, NOW + 1, 2 ** 48 - 1]) {
    for (let draw = 0; draw < 2000; draw++) {
      const id = uuid(now);
      assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
      assert.equal(timeOf(id), now);
      ids.add(id);
    }
  }
  assert.equal(ids.size, 10_000);
  assert.ok(uuid(NOW) < uuid(NOW + 1));
});

test("batches are encoded as in the fixtures", () => {
  const names = fixtures("reasons");
  for (const { case: name, body, batch_id, sdk, events, lost } of fixtures("batches")) {
    const queue = createBatches(memory(), () => uuid(NOW));
    let batch;
    for (const json of events) {
      if (batch) assert.ok(queue.extend(batch, json));
      else batch = queue.begin(NOW, json);
    }
    assert.ok(
      queue.seal(
        batch,
        names.map((reason) => lost[reason] ?? 0),
      ),
    );
    const own = queue.all.get(batch).name.slice(37);
    assert.equal(queue.body(batch), body.replace(batch_id, own).replace(sdk, SDK), name);
    assert.equal(queue.size(batch), Buffer.byteLength(queue.body(batch)));
    assert.equal(queue.madeAt(batch), NOW);
  }
});

/** A stored batch of events with the names 0, 1 and so on. */
function filled(events, storage = memory()) {
  const lane = uuid(NOW);
  const queue = createBatches(storage, () => lane);
  let batch = 0;
  for (let name = 0; name < events; name++) {
    // Texts that look like the surrounding JSON.
    const json = encode(event({ name: `${name}`, properties: { text: '\n],"lost":{"event_id",\n{"event_id"' } }));
    if (batch) queue.extend(batch, json);
    else batch = queue.begin(NOW, json);
  }
  queue.save();
  return { queue, batch, lane, storage };
}
const namesIn = (text) => JSON.parse(text).events.map(({ name }) => Number(name));

test("every page closes an open batch the same way", () => {
  const { queue, batch, lane, storage } = filled(3);
  const [[, unclosed]] = storage.texts;
  assert.throws(() => JSON.parse(unclosed));
  const heirs = [1, 2].map(() => {
    const heir = createBatches(memory(new Map(storage.texts)), () => uuid(NOW));
    const [[found], corrupt] = heir.adopt(lane);
    assert.equal(corrupt, 0);
    assert.equal(heir.all.get(found).events, 3);
    return heir.body(found);
  });
  assert.equal(heirs[0], heirs[1]);
  assert.equal(queue.body(batch), heirs[0], "the same as its own page");
  queue.seal(batch, [0, 0, 0, 0, 0, 0]);
  assert.equal(queue.body(batch), heirs[0]);
});

test("a part has the requested events and a new id with the same time", () => {
  const { queue, batch, storage } = filled(5);
  queue.seal(batch, [1, 0, 0, 0, 0, 0]);
  const before = queue.body(batch);
  const again = queue.part(batch, 0, [3, 1]);
  assert.deepEqual(namesIn(queue.body(again)), [1, 3]);
  const halves = [queue.part(batch, 1, [0, 1]), queue.part(batch, 2, [2, 3, 4])];
  assert.deepEqual(
    halves.map((half) => namesIn(queue.body(half))),
    [
      [0, 1],
      [2, 3, 4],
    ],
  );
  assert.equal(queue.body(batch), before);
  assert.equal(new Set([...queue.all.keys()].map((number) => JSON.parse(queue.body(number)).batch_id)).size, 4);
  for (const part of [again, ...halves]) {
    assert.equal(queue.madeAt(part), NOW);
    assert.ok(!JSON.parse(queue.body(part)).lost, "losses are reported once");
    assert.ok(storage.texts.has(queue.all.get(part).name));
  }
  const [quarter, name] = [queue.part(halves[1], 2, [1, 2]), queue.all.get(halves[1]).name + ".2"];
  assert.equal(queue.all.get(quarter).name, name);
  assert.deepEqual(namesIn(queue.body(quarter)), [3, 4]);
  assert.equal(queue.madeAt(quarter), NOW);
});

test("invalid indexes make no part", () => {
  const { queue, batch } = filled(3);
  for (const indexes of [[0, 0], [3], [-1], [0.5], ["0"], [null], [0, 1, 2, 9]]) {
    assert.equal(queue.part(batch, 0, indexes), 0, JSON.stringify(indexes));
  }
  assert.equal(queue.all.size, 1);
});

test("an event without an id does not shift the others", () => {
  const queue = createBatches(memory(), () => uuid(NOW));
  const batch = queue.begin(NOW, encode({ event_type: "custom", name: "0" }));
  for (const name of ["1", "2"]) queue.extend(batch, encode(event({ name })));
  assert.deepEqual(namesIn(queue.body(queue.part(batch, 0, [0, 2]))), [0, 2]);
});

test("parts beside their whole are removed, parts without it are adopted", () => {
  const { queue, batch, lane, storage } = filled(4);
  queue.seal(batch, [0, 0, 0, 0, 0, 0]);
  const half = queue.part(batch, 1, [0, 1]);
  const open = () => {
    const texts = new Map(storage.texts);
    const heir = createBatches(memory(texts), () => uuid(NOW));
    const [found, corrupt] = heir.adopt(lane);
    return [found.map((number) => namesIn(heir.body(number))), corrupt, texts.size];
  };
  assert.deepEqual(open(), [[[0, 1, 2, 3]], 0, 1]);
  queue.part(batch, 2, [2, 3]);
  queue.remove(batch);
  assert.deepEqual(open(), [
    [
      [0, 1],
      [2, 3],
    ],
    0,
    2,
  ]);
  const quarter = queue.part(half, 1, [0]);
  assert.deepEqual(open(), [
    [
      [0, 1],
      [2, 3],
    ],
    0,
    2,
  ]);
  queue.part(half, 2, [1]);
  queue.remove(half);
  assert.deepEqual(open(), [[[0], [1], [2, 3]], 0, 3]);
  assert.ok(quarter);
});

test("unreadable batches are counted and removed", () => {
  const { batch, lane, storage, queue } = filled(2);
  queue.seal(batch, [0, 0, 0, 0, 0, 0]);
  queue.save();
  const [[, good]] = storage.texts;
  const id = () => `${lane}/${uuid(NOW)}`;
  const damaged = [
    "x",
    "{}",
    "null",
    "[]",
    "7",
    good.slice(0, -40),
    good.slice(1),
    "\0" + good,
    '{"batch_id":"7","events":7',
    '{"batch_id":null,"events":[\n]}',
  ];
  for (const text of damaged) storage.texts.set(id(), text);
  const heir = createBatches(storage, () => uuid(NOW));
  const [found, corrupt] = heir.adopt(lane);
  assert.deepEqual(
    found.map((number) => heir.body(number)),
    [good],
  );
  assert.equal(corrupt, damaged.length);
  assert.equal(storage.texts.size, 1);
});

test("a batch of an older version is sent unchanged", () => {
  const { batch, lane, storage, queue } = filled(2);
  queue.seal(batch, [0, 0, 0, 0, 0, 0]);
  queue.save();
  const [[name, text]] = storage.texts;
  const older = text.replace(SDK, "tallymark-js/0.0.9");
  storage.texts.set(name, older);
  const heir = createBatches(storage, () => uuid(NOW));
  const [[found], corrupt] = heir.adopt(lane);
  assert.equal(corrupt, 0);
  assert.equal(heir.body(found), older);
});

test("without storage, batches are complete in memory, and stored again later", () => {
  const storage = memory();
  const take = storage.set;
  const { queue, batch } = filled(2, storage);
  storage.set = (name, text) => !text && take(name);
  queue.extend(batch, encode(event({ name: "2" })));
  queue.save();
  assert.deepEqual(
    [queue.all.get(batch).stored, storage.texts.size],
    [false, 0],
    "a beginning must not be taken for the whole",
  );
  queue.seal(batch, [0, 0, 0, 0, 0, 0]);
  queue.save();
  assert.deepEqual(namesIn(queue.body(batch)), [0, 1, 2]);
  assert.deepEqual(namesIn(queue.body(queue.part(batch, 1, [0]))), [0]);
  const second = queue.begin(NOW, encode(event()));
  queue.save();
  assert.equal(queue.all.get(second).stored, false);
  storage.set = take;
  const third = queue.begin(NOW, encode(event()));
  queue.save();
  assert.ok(queue.all.get(third).stored);
  queue.leave();
  assert.deepEqual(
    [...queue.all.values()].map(({ stored }) => stored),
    [false, false, false],
  );
});

test("a batch stays whole if its parts cannot be stored", () => {
  const storage = memory();
  const { queue, batch } = filled(2, storage);
  queue.seal(batch, [0, 0, 0, 0, 0, 0]);
  queue.save();
  const take = storage.set;
  storage.set = (name, text) => !text && take(name);
  assert.equal(queue.part(batch, 1, [0]), 0);
  assert.deepEqual([[...storage.texts.values()], queue.all.size], [[queue.body(batch)], 1]);
});
