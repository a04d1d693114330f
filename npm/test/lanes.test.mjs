// Events of pages that end, are restored, or are many at once: none is lost, and no batch is sent twice.

import assert from "node:assert/strict";
import { test } from "node:test";
import { adds, browser, dice, pass, ready, receipt, SITE, settle, status } from "./fake.mjs";

const never = () => new Promise(() => {});
const texts = (site) => site.requests.map(({ text }) => text);
const names = (site) =>
  site
    .events()
    .map(({ name }) => name)
    .sort();

/** Asserts that no batch was sent twice, and no event in two batches. */
function once(site) {
  const ids = site.requests.map(({ batch }) => batch.batch_id);
  assert.equal(new Set(ids).size, ids.length, "a batch was sent twice");
  const events = site.events().map(({ event_id }) => event_id);
  assert.equal(new Set(events).size, events.length, "an event was sent twice");
}

/** Asserts that no batch, lane or lock is left. */
const clean = (site) => assert.deepEqual([site.names(), site.held()], [["session"], []]);

for (const locks of [true, false]) {
  const how = locks ? "with locks" : "without locks";
  /** After this time, the lane of a crashed page can be adopted. */
  const ABANDONED = locks ? 11_000 : 200_000;

  test(`after a reload during a request, the next page sends the same bytes after ten seconds (${how})`, async () => {
    const site = browser({ locks, answer: never });
    const page = site.open();
    const tracker = page.track();
    await ready(tracker);
    tracker.track("n");
    tracker.flush();
    await settle();
    page.close();
    site.answer = (batch) => receipt(batch, { duplicate: true });
    const next = site.open();
    const heir = next.track();
    await ready(heir);
    await pass(9000);
    assert.equal(heir.status().adopted, 0, "it might be starting still");
    if (!locks) {
      // Without locks, a lane is abandoned much later, and pages look for it when they start.
      await pass(200_000);
      next.close();
      const last = site.open().track();
      await ready(last);
      await pass(1000);
      assert.equal(last.status().delivered, 1);
    } else {
      await pass(2000);
      const { adopted, delivered, queued } = heir.status();
      assert.deepEqual({ adopted, delivered, queued }, { adopted: 1, delivered: 1, queued: 0 });
      adds(heir);
    }
    assert.deepEqual(texts(site), [site.requests[0].text, site.requests[0].text]);
    clean(site);
  });

  test(`a page that ends right after an event has stored it, even before the core runs (${how})`, async () => {
    for (const load of [never, undefined]) {
      const site = browser({ locks, load, answer: never });
      const page = site.open();
      const tracker = page.tag();
      if (!load) await ready(tracker);
      tracker.track("a");
      tracker.track("b", { text: '\n]}],"lost"' });
      // Events are written at the end of the task.
      await settle();
      page.crash();
      await pass(ABANDONED);
      site.load = undefined;
      site.answer = (batch) => receipt(batch);
      const heir = site.open().track();
      await ready(heir);
      await pass(1000);
      assert.deepEqual(names(site), ["a", "b"]);
      assert.equal(heir.status().delivered, 2);
      clean(site);
      adds(heir);
    }
  });

  test(`forty pages send every event once (${how})`, async () => {
    const site = browser({ locks });
    const left = site.open();
    const before = left.track();
    site.answer = never;
    await ready(before);
    for (let event = 0; event < 50; event++) before.track("left");
    await settle();
    left.crash();
    await pass(ABANDONED);
    site.requests.length = 0;
    site.answer = (batch) => new Promise((resolve) => setTimeout(() => resolve(receipt(batch)), 700));
    const pages = Array.from({ length: 40 }, () => site.open());
    const trackers = pages.map((page) => page.track({ pageViews: true }));
    for (const tracker of trackers) tracker.track("n");
    await ready(...trackers);
    await pass(20_000);
    for (const tracker of trackers) tracker.track("later");
    await pass(10_000);
    assert.equal(site.events().length, 50 + 3 * 40);
    once(site);
    trackers.forEach(adds);
    assert.equal(
      trackers.reduce((sum, tracker) => sum + tracker.status().delivered, 0),
      170,
    );
    clean(site);
    assert.equal(
      new Set(
        site
          .events()
          .slice(50)
          .map(({ session_id }) => session_id),
      ).size,
      1,
      "they share a session",
    );
  });

  test(`a page restored from the back/forward cache begins a new lane (${how})`, async () => {
    const site = browser({ locks, answer: () => status(503) });
    const page = site.open();
    const tracker = page.track({ pageViews: true });
    await ready(tracker);
    await pass(3000);
    page.hide();
    await settle();
    assert.deepEqual(site.held(), [], "a page with a lock is not kept");
    tracker.track("while it is put away");
    await pass(ABANDONED);
    site.answer = (batch) => receipt(batch);
    const other = site.open().track();
    await ready(other);
    await pass(1000);
    page.comeBack();
    await ready(tracker);
    adds(tracker);
    tracker.track("again");
    await pass(30_000);
    const counted = new Map(site.requests.map(({ batch }) => [batch.batch_id, batch.events])).values();
    assert.deepEqual(
      [...counted]
        .flat()
        .map(({ event_type, name }) => name ?? event_type)
        .sort(),
      ["again", "page_view", "page_view", "while it is put away"],
    );
    assert.deepEqual([tracker.status().queued, other.status().queued], [0, 0]);
    adds(tracker);
    adds(other);
    clean(site);
  });

  test(`pages open, close, crash and are restored at random: nothing is lost or counted twice (${how})`, async () => {
    const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 32));
    const roll = dice(seed);
    try {
      const site = browser({ locks });
      const counted = new Map();
      const count = (batch) => {
        const before = counted.get(batch.batch_id);
        if (before) assert.deepEqual(before, batch.events, "an id has one body");
        else counted.set(batch.batch_id, batch.events);
      };
      const answers = [
        (batch) => (count(batch), receipt(batch)),
        (batch) => (count(batch), receipt(batch)),
        (batch) => (count(batch), Promise.reject(new TypeError("lost on the way back"))),
        () => status(503),
        () => new Response("<html>"),
        (batch) => new Promise((resolve) => setTimeout(() => resolve((count(batch), receipt(batch))), 3000)),
      ];
      site.answer = (batch) => answers[roll(answers.length)](batch);
      const open = () => {
        const page = site.open();
        return { page, tracker: page.track(), away: false };
      };
      const pages = [open()];
      let made = 0;
      for (let step = 0; step < 150; step++) {
        const at = roll(pages.length);
        const one = pages[at];
        const act = roll(12);
        if (act < 5)
          for (let event = roll(30); event >= 0; event--)
            one.tracker.track(`${made++}`, { text: "x".repeat(roll(50)) });
        else if (act === 5 && pages.length < 6) pages.push(open());
        else if (act === 6 || act === 7) {
          if (act === 6) one.page.close();
          else one.page.crash();
          pages.splice(at, 1);
          if (!pages.length) pages.push(open());
        } else if (act === 8 && !one.away) {
          one.page.hide();
          one.away = true;
        } else if (act === 9 && one.away) {
          one.page.comeBack();
          one.away = false;
        } else await pass(roll(8000));
        await settle();
        for (const { tracker } of pages) adds(tracker);
      }
      for (const { page } of pages) page.close();
      answers.splice(0, answers.length, (batch) => (count(batch), receipt(batch)));
      for (let visit = 0; visit < 3; visit++) {
        await pass(1_000_000);
        const page = site.open();
        const last = page.track();
        await ready(last);
        await pass(20_000);
        adds(last);
        page.close();
      }
      const times = Array(made).fill(0);
      for (const { name } of [...counted.values()].flat()) times[name]++;
      assert.deepEqual(
        times.flatMap((count, name) => (count === 1 ? [] : [`${name}: ${count} times`])),
        [],
      );
      assert.deepEqual(site.stored(), []);
    } catch (error) {
      error.message += `\nSEED=${seed}`;
      throw error;
    }
  });
}

test("the lane of a living page is not adopted, however old it is", async () => {
  const site = browser({ answer: () => status(503) });
  const first = site.open().track();
  await ready(first);
  first.track("mine");
  await pass(60_000);
  const second = site.open().track();
  await ready(second);
  await pass(30_000);
  assert.deepEqual([first.status().queued, second.status().adopted], [1, 0]);
});

test("without locks, a page renews its lease while it has events", async () => {
  const site = browser({ locks: false, answer: () => status(503) });
  const page = site.open();
  const first = page.track();
  await ready(first);
  first.track("mine");
  await pass(600_000);
  const second = site.open().track();
  await ready(second);
  await pass(30_000);
  assert.deepEqual([first.status().queued, second.status().adopted], [1, 0]);
  site.answer = (batch) => receipt(batch);
  page.online(true);
  await pass(1000);
  clean(site);
});

test("refused locks do no harm", async () => {
  const site = browser();
  const page = site.open();
  page.navigator.locks = { request: () => Promise.reject(new DOMException("no", "SecurityError")) };
  const tracker = page.createTracker({ endpoint: "/", username: "shop", key: "k", pageViews: false });
  await ready(tracker);
  tracker.track("n");
  await pass(3000);
  assert.equal(tracker.status().delivered, 1);
});

test("a batch is removed from storage with its receipt and not before", async () => {
  let answer;
  const site = browser({ answer: (batch) => new Promise((resolve) => (answer = () => resolve(receipt(batch)))) });
  const tracker = site.open().track();
  await ready(tracker);
  for (let event = 0; event < 20; event++) tracker.track("n");
  await settle();
  assert.equal(site.stored().length, 1);
  assert.equal(site.stored()[0], site.requests[0].text);
  answer();
  await settle();
  clean(site);
});

test("damaged batches are counted and removed, and do no other harm", async () => {
  const site = browser();
  const lane = "019aa300-0000-7000-8000-000000000000";
  for (const [id, text] of [
    ["a", "x"],
    ["019aa300-0000-7000-8000-000000000001", "{}"],
    ["", "\n]"],
  ])
    site.storage.setItem(`${SITE}${lane}/${id}`, text);
  for (const name of ["x", "not/ours", "x".repeat(36) + "/y", "session", "visitor", "blocked"])
    site.storage.setItem(SITE + name, "\0 7 {");
  site.storage.setItem("another site's", "stays");
  const tracker = site.open().track({ anonymousId: true });
  await ready(tracker);
  tracker.track("n");
  await pass(3000);
  const { adopted, delivered, dropped } = tracker.status();
  assert.deepEqual({ adopted, delivered, dropped }, { adopted: 4, delivered: 1, dropped: { storage: 4 } });
  assert.equal(site.storage.getItem("another site's"), "stays");
  assert.deepEqual(site.stored(), []);
  adds(tracker);
});

test("where storage is refused, events are in memory and arrive", async () => {
  for (const early of [true, false]) {
    const site = browser({ refused: true });
    const page = site.open();
    const tracker = page.track({ pageViews: true, anonymousId: true });
    if (!early) await ready(tracker);
    for (let event = 0; event < 50; event++) tracker.track("n");
    await ready(tracker);
    await pass(10_000);
    assert.equal(tracker.status().delivered, 51);
    assert.equal(new Set(site.events().map(({ session_id }) => session_id)).size, 1);
    assert.equal(new Set(site.events().map(({ anonymous_id }) => anonymous_id)).size, 1);
    tracker.track("unsent");
    page.hide();
    adds(tracker);
    await pass(1000);
    page.comeBack();
    await ready(tracker);
    await pass(3000);
    adds(tracker);
    assert.equal(tracker.status().queued, 0);
    assert.equal(new Set(site.events().map(({ event_id }) => event_id)).size, 53, "with the view after it came back");
  }
});

test("when storage is full, stored batches stay, new ones are in memory, and later ones are stored again", async () => {
  const site = browser({ answer: () => status(503) });
  const page = site.open();
  const tracker = page.track();
  await ready(tracker);
  tracker.track("kept");
  await pass(3000);
  site.quota = 0;
  tracker.track("in memory");
  tracker.track("in memory");
  await pass(3000);
  site.quota = Infinity;
  tracker.track("stored again");
  await settle();
  assert.deepEqual(
    site.stored().map((text) => text.match(/"name":"([^"]*)/)[1]),
    ["kept", "stored again"],
  );
  assert.equal(tracker.status().queued, 4);
  adds(tracker);
  site.answer = (batch) => receipt(batch);
  await pass(60_000);
  assert.deepEqual(
    names(site).filter((name, at, all) => name !== all[at - 1]),
    ["in memory", "kept", "stored again"],
  );
  assert.equal(tracker.status().delivered, 4);
  assert.deepEqual(site.stored(), []);
});

test("storage that fails at times loses no events", async () => {
  const roll = dice(7);
  const site = browser({ answer: (batch) => (roll(3) ? receipt(batch) : status(503)) });
  const tracker = site.open().track();
  await ready(tracker);
  for (let event = 0; event < 500; event++) {
    site.refused = roll(5) === 0;
    site.quota = roll(4) ? Infinity : roll(20_000);
    tracker.track(`${event}`);
    if (roll(20) === 0) await pass(1000);
    adds(tracker);
  }
  site.refused = false;
  site.quota = Infinity;
  site.answer = (batch) => receipt(batch);
  await pass(1_000_000);
  const { made, delivered, queued } = tracker.status();
  assert.deepEqual({ made, delivered, queued }, { made: 500, delivered: 500, queued: 0 });
});

test("two sites on one origin are separate", async () => {
  const site = browser({ answer: () => status(503) });
  const page = site.open();
  const trackers = ["shop", "blog"].map((username) => page.track({ username }));
  await ready(...trackers);
  for (const tracker of trackers) tracker.track("n");
  await settle();
  trackers[0].optOut();
  assert.deepEqual(
    trackers.map((tracker) => tracker.status().queued),
    [0, 1],
  );
  assert.equal(Object.keys(site.storage).filter((name) => name.startsWith("tallymark/blog@")).length, 2);
});
