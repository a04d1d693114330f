// The page's own script: the two menu actions, the marks of this visit, and the board of what the collector stored.
// The tracking is not here: tallymark.js does it, and this page must work without it.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const TYPES = { page_view: "page view", button_click: "click", custom: "custom event" };
const number = new Intl.NumberFormat(undefined, { useGrouping: "min2" });
const plural = (count, noun) => `${number.format(count)} ${noun}${count === 1 ? "" : "s"}`;

function html(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// ---- The menu ----

const visit = new Map();

// At once and without the collector, so that a press never feels lost while its batch travels.
$("menu").addEventListener("click", (event) => {
  const button = event.target.closest("[data-tallymark-click]");
  if (!button) return;
  const presses = (visit.get(button) ?? 0) + 1;
  visit.set(button, presses);
  button
    .querySelector(".visit")
    .replaceChildren(presses > 25 ? `pressed ${number.format(presses)} times` : tally(presses));
});

$("add-special").addEventListener("click", (event) => {
  const special = $("menu").querySelector(".item").cloneNode(true);
  special.id = "special";
  special.dataset.tallymarkClick = "special";
  special.querySelector("[id]").removeAttribute("id");
  special.querySelector(".name").textContent = "Today’s special";
  special.querySelector(".note").textContent = "Added after the page loaded, tracked like the rest";
  special.querySelector(".price").textContent = "4.10";
  special.querySelector(".visit").replaceChildren();
  special
    .querySelector("path")
    .setAttribute("d", "M20 5l4.2 9.6 10.4 1-7.8 6.9 2.3 10.2L20 27.3l-9.1 5.4 2.3-10.2-7.8-6.9 10.4-1z");
  $("menu").append(special);
  event.currentTarget.disabled = true;
  event.currentTarget.textContent = "Special added";
  special.focus();
});

$("book-tasting").addEventListener("click", () => {
  const tracker = globalThis.tallymark;
  tracker?.track("tasting_booked", { seats: 2 });
  $("said").textContent = tracker
    ? "Booked for two: a custom event, sent by the page’s own code."
    : "Booked, but uncounted: the tracker did not load.";
});

if (!globalThis.tallymark) {
  $("said").textContent = "The tracker did not load, so presses are not counted. Everything else works.";
}

// ---- Tally marks ----

// Four strokes and one across, for `count` strokes; a little unevenness, the same each time, makes it chalk.
function tally(count) {
  const wobble = (n) => Math.sin(n * 12.9898) * 1.1;
  let path = "";
  let x = 2;
  for (let stroke = 0; stroke < count; stroke++) {
    if (stroke % 5 === 4) {
      path += `M${(x - 28).toFixed(1)} ${(15 + wobble(stroke)).toFixed(1)}L${(x - 1).toFixed(1)} ${(5 + wobble(stroke + 1)).toFixed(1)}`;
      x += 7;
    } else {
      path += `M${(x + wobble(stroke) / 2).toFixed(1)} ${(2.5 + wobble(stroke + 2) / 2).toFixed(1)}L${(x + wobble(stroke + 3) / 2).toFixed(1)} ${(17.5 + wobble(stroke + 4) / 2).toFixed(1)}`;
      x += 6.5;
    }
  }
  return svg(
    "svg",
    {
      class: "tally",
      viewBox: `-1 0 ${x + 2} 20`,
      width: x + 2,
      height: 20,
      preserveAspectRatio: "xMinYMid meet",
      "aria-hidden": "true",
    },
    svg("path", { d: path }),
  );
}

// ---- The board ----

const board = $("stored");
const windowPort = Number(board.dataset.windowPort);
let shown = null;

function showFigures(counts) {
  for (const type of Object.keys(TYPES)) {
    const figure = board.querySelector(`[data-count="${type}"]`);
    const text = number.format(counts[type]);
    if (figure.textContent === text) continue;
    figure.textContent = text;
    figure.classList.toggle("long", text.length > 4);
    if (shown) blink(figure);
  }
}

// Restarts a CSS animation that may still be running.
function blink(element) {
  element.classList.remove("new");
  void element.offsetWidth;
  element.classList.add("new");
}

function showTallies(buttons) {
  const most = Math.max(1, ...buttons.map(({ count }) => count));
  let unit = 1;
  // Forty strokes fit a phone; beyond that a stroke stands for more.
  for (let step = 1; most / unit > 40; step++) unit = [1, 2, 5][step % 3] * 10 ** Math.floor(step / 3);
  $("unit").textContent = buttons.length
    ? `one stroke is ${unit === 1 ? "one press" : `${number.format(unit)} presses`}`
    : "";
  $("no-tallies").hidden = buttons.length > 0;
  $("tallies").replaceChildren(
    ...buttons.map(({ key, count }) => {
      const row = html("li");
      row.dataset.button = key;
      const name = html("span", "key", key);
      name.title = key;
      row.append(name, tally(Math.max(1, Math.round(count / unit))), html("b", "", number.format(count)));
      return row;
    }),
  );
}

const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
const sum = (minute) => Object.keys(TYPES).reduce((total, type) => total + minute[type], 0);
const breakdown = (minute) =>
  Object.entries(TYPES)
    .filter(([type]) => minute[type])
    .map(([type, noun]) => plural(minute[type], noun))
    .join(", ");

function showMinutes(minutes) {
  const total = minutes.reduce((all, minute) => all + sum(minute), 0);
  const peak = Math.max(...minutes.map(sum));
  let top = 4;
  // Even steps, so that the line half way up has a whole number too.
  for (let step = 1; top < peak; step++) top = [4, 6, 8, 10, 12, 16, 20, 30][step % 8] * 10 ** Math.floor(step / 8);

  const width = Math.max(240, $("chart").clientWidth);
  const left = 12 + 7 * number.format(top).length,
    floor = 140,
    roof = 8;
  const slot = (width - left) / minutes.length;
  const bar = Math.min(26, slot * 0.66);
  const y = (value) => floor - (value / top) * (floor - roof);

  const grid = [0, top / 2, top].flatMap((value) => [
    svg("line", { x1: left, x2: width, y1: y(value), y2: y(value) }),
    svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, number.format(value)),
  ]);
  const bars = minutes.map((minute, index) => {
    const x = left + slot * index;
    const column = svg(
      "g",
      {},
      svg("title", {}, `${clock(minute.at)}: ${breakdown(minute) || "nothing"}`),
      svg("rect", { class: "slot", x, y: roof, width: slot, height: floor - roof }),
    );
    let below = 0;
    for (const type of Object.keys(TYPES)) {
      if (!minute[type]) continue;
      // A hairline of slate between the parts, but never so much that a small part vanishes.
      const bottom = y(below) - (below ? 1 : 0);
      below += minute[type];
      column.append(
        svg("rect", {
          class: type,
          x: x + (slot - bar) / 2,
          y: Math.min(y(below), bottom - 1),
          width: bar,
          height: Math.max(1, bottom - y(below)),
          rx: 1.5,
        }),
      );
    }
    return column;
  });
  const labels = minutes.flatMap((minute, index) => {
    const last = index === minutes.length - 1;
    if (!last && index % 5) return [];
    return svg(
      "text",
      { x: left + slot * (index + 0.5), y: floor + 20, "text-anchor": "middle" },
      last ? "now" : clock(minute.at),
    );
  });

  const busy = minutes.filter(sum);
  const said = busy.length ? busy.map((minute) => `${clock(minute.at)}: ${breakdown(minute)}`).join("; ") : "none";
  const chart = svg(
    "svg",
    { role: "img", "aria-label": `Events stored per minute, last 15 minutes. ${said}.` },
    ...grid,
    ...bars,
    ...labels,
  );
  $("chart").replaceChildren(chart);
  $("minutes-summary").textContent = `${number.format(total)} in the last 15 minutes`;
}

// One line of the lake as it is on disk, every character of it, with its tokens coloured.
function lineItem(text) {
  const item = html("li");
  const token = /("(?:[^"\\]|\\.)*")(\s*:)?|-?\d[\d.eE+-]*|,/g;
  let from = 0,
    key = "";
  for (const match of text.matchAll(token)) {
    item.append(text.slice(from, match.index));
    from = match.index + match[0].length;
    const [whole, string, colon] = match;
    if (whole === ",") item.append(",", document.createElement("wbr"));
    else if (colon) {
      key = string.slice(1, -1);
      item.append(html("span", "k", whole));
    } else {
      const value = string?.slice(1, -1);
      const kind =
        key === "event_type" && Object.hasOwn(TYPES, value)
          ? `type ${value}`
          : key.endsWith("_id") && key !== "button_id"
            ? "id"
            : string
              ? "s"
              : "n";
      item.append(html("span", kind, whole));
    }
  }
  item.append(text.slice(from));
  return item;
}

// Keeps the items already there, so that text one has selected stays selected.
let items = new Map();
function showLines(lines) {
  const next = new Map();
  for (const text of lines) {
    let item = items.get(text);
    if (!item) {
      item = lineItem(text);
      if (shown) {
        item.classList.add("new");
        setTimeout(() => item.classList.remove("new"), 2000);
      }
    }
    next.set(text, item);
  }
  for (const [text, item] of items) if (!next.has(text)) item.remove();
  let after = null;
  for (const item of [...next.values()].reverse()) {
    if (item.nextSibling !== after || !item.isConnected) $("lines").insertBefore(item, after);
    after = item;
  }
  items = next;
  $("no-lines").hidden = lines.length > 0;
}

function show(stored) {
  const changed = (part) => JSON.stringify(stored[part]) !== JSON.stringify(shown?.[part]);
  showFigures(stored.counts);
  $("empty").hidden = sum(stored.counts) > 0;
  if (changed("buttons")) showTallies(stored.buttons);
  if (changed("minutes")) showMinutes(stored.minutes);
  if (changed("lines")) showLines(stored.lines);
  shown = stored;
}

function say(state, status, trouble = "") {
  const set = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  $("status").dataset.state = state;
  set($("status"), status);
  set($("trouble"), trouble);
  $("trouble").hidden = !trouble;
}

// ---- Asking the window, while someone is looking ----

let timer = 0;
let asking = false;

async function ask() {
  if (asking) return;
  clearTimeout(timer);
  asking = true;
  let pause = 1000;
  try {
    const answer = await fetch(`http://${location.hostname}:${windowPort}/stored`, {
      cache: "no-store",
      signal: AbortSignal.timeout(4000),
    });
    if (answer.ok) {
      show(await answer.json());
      say("live", "Live");
    } else {
      say(
        "lost",
        "Waiting",
        "The collector does not answer just now. What you press waits in this browser until it does.",
      );
    }
  } catch {
    pause = 2000;
    say(
      "lost",
      "Out of reach",
      `The demo can’t be reached${shown ? "; these are the last figures seen" : ""}. What you press waits in this browser. If the demo was started anew, reload this page.`,
    );
  }
  asking = false;
  if (!document.hidden) timer = setTimeout(ask, pause);
}

if (windowPort > 0) {
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) say("paused", "Paused");
    else ask();
  });
  if (!document.hidden) ask();
} else {
  say("lost", "Not running", "This page is put together by the demo. Run make demo, and open the address it prints.");
}

new ResizeObserver(() => shown && showMinutes(shown.minutes)).observe($("chart"));
