"use strict";
// Everything that a dataset says goes onto the page as text; nothing here parses markup.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const ROW_PIXELS = 74, SPARE_ROWS = 8;
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const LABELS = { train_sft: "SFT", train_rl: "RL", held_out: "held out" };
const label = (value) => LABELS[value] || String(value).replaceAll("_", " ");
const VIEWS = {
  questions: { title: "Questions", items: itemsOf(data.questions), filters: ["skill", "difficulty", "split"], one: "question" },
  dropped: { title: "Dropped", items: itemsOf(data.dropped), filters: ["reason", "stage", "skill"], one: "dropped item" },
  about: { title: "About", items: [], filters: [], one: "" },
};
const ORDER = ["temporal", "goal", "spatial", "plot", "easy", "medium", "hard", "unmeasured", "train_sft", "train_rl", "held_out"];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6), rest = seconds - whole;
  const part = rest > 0.05 ? "." + Math.min(9, Math.round(rest * 10)) : "";
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return (hours ? hours + ":" + two(minutes) : String(minutes)) + ":" + two(whole % 60) + part;
}

const span = (start, end) => clock(start) + "–" + clock(end);
const plural = (count, one) => count.toLocaleString("en") + " " + one + (count === 1 ? "" : "s");

// ---- a large dataset comes in parts: scripts beside the page, each added when something of it is looked at ----

// Of an item the page itself knows only what the list is filtered by, as columns; `whole` gives the rest, once it is here.
function itemsOf(table) {
  if (!data.parts) return table;
  return table.id.map((id, place) => {
    const item = { place, id, media: table.media[place] };
    for (const [name, column] of Object.entries(table.filters)) item[name] = column.values[column.numbers[place]];
    return item;
  });
}

const MOST_PARTS = 60;
const parts = new Map(), awaited = new Map();
let isPartMissing = false;

// Parts call this; what they hand over is text, which is parsed and never run.
globalThis.takePart = (name, text) => awaited.get(name)?.(JSON.parse(text));

function loadPart(kind, number) {
  const name = kind + "-" + number;
  let part = parts.get(name);
  if (!part) {
    part = { rows: null };
    part.ready = new Promise((resolve) => {
      const script = make("script", { src: data.parts.folder + "/" + name + ".js" });
      const finish = (rows) => {
        awaited.delete(name);
        script.remove();
        part.rows = rows;
        resolve(rows);
      };
      awaited.set(name, finish);
      script.addEventListener("error", () => { isPartMissing = true; finish([]); });
      document.head.append(script);
    });
  }
  parts.delete(name);
  parts.set(name, part); // the last one is the one that was used last
  for (const [old, { rows }] of parts) if (parts.size > MOST_PARTS && rows && old !== name) parts.delete(old);
  return part;
}

const partOf = (place) => Math.floor(place / data.parts.size);

// Gives an item with all that is known of it, or, as long as that isn't here, nothing; then `redraw` is called later.
function whole(kind, item, redraw) {
  if (!data.parts) return item;
  const part = loadPart(kind, partOf(item.place));
  if (part.rows) return part.rows[item.place % data.parts.size] || item;
  part.ready.then(redraw);
  return null;
}

// ---- state, which the address holds: a view of the data can be sent as a link ----

let state = {}, found = [], chosen = -1;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const view = VIEWS[given.get("view")] ? given.get("view") : "questions";
  state = { view, search: given.get("search") || "", item: given.get("item") || "", show: given.get("show") || "", theme: given.get("theme") || "" };
  for (const name of VIEWS[view].filters) state[name] = given.get(name) || "";
}

function writeAddress() {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value && !(name === "view" && value === "questions")) kept.set(name, value);
  history.replaceState(null, "", "#" + kept.toString());
}

const identity = (item) => item.id ?? item.item;
const haystacks = new Map();

function mediaOf(item, redraw) {
  return (item.media || []).map((number) => data.parts ? whole("media", { place: number }, redraw) : data.media[number]);
}

const textOf = (words) => words.filter(Boolean).join("\n").toLowerCase();
const textOfItem = (item) => textOf([identity(item), item.question, ...(item.options || []), item.answer, item.reasoning, item.reason, item.detail]);
const textOfMedium = (medium) => textOf([medium.path, ...(medium.segments || []).flatMap((segment) => [segment[2], segment[3]])]);

function haystack(item) {
  let text = haystacks.get(item);
  if (text === undefined) {
    text = [textOfItem(item), ...mediaOf(item).map(textOfMedium)].join("\n");
    haystacks.set(item, text);
  }
  return text;
}

// Goes through the parts one after the other and shows what is found so far; a newer search ends it.
let numSearches = 0, numUnsearched = 0;

async function searchParts(fitting, words, view) {
  const own = numSearches, wanted = state.item;
  const textOfMedia = new Map();
  for (let first = 0, last = 0; first < fitting.length; first = last) {
    const number = partOf(fitting[first].place);
    while (last < fitting.length && partOf(fitting[last].place) === number) last++;
    numUnsearched = fitting.length - first;
    showList();
    const rows = await loadPart(view, number).ready;
    const items = fitting.slice(first, last);
    const places = new Set(items.flatMap((item) => item.media || []));
    for (const place of textOfMedia.keys()) if (!places.has(place)) textOfMedia.delete(place);
    for (const place of places) {
      if (textOfMedia.has(place)) continue;
      const medium = (await loadPart("media", partOf(place)).ready)[place % data.parts.size];
      textOfMedia.set(place, medium ? textOfMedium(medium) : "");
    }
    if (own !== numSearches) return;
    const hits = items.filter((item) => {
      const text = [textOfItem(rows[item.place % data.parts.size] || item), ...(item.media || []).map((place) => textOfMedia.get(place))].join("\n");
      return words.every((word) => text.includes(word));
    });
    if (!hits.length) continue;
    const before = chosen < 0 ? null : identity(found[chosen]);
    found.push(...hits);
    if (state.item === wanted) chosen = Math.max(0, found.findIndex((item) => identity(item) === wanted));
    showRows();
    if (identity(found[chosen]) !== before) showDetail();
  }
  numUnsearched = 0;
  showList();
  showDetail();
}

function search() {
  const { items, filters } = VIEWS[state.view];
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const fitting = items.filter((item) => filters.every((name) => !state[name] || item[name] === state[name]));
  numSearches++;
  numUnsearched = 0;
  if (!words.length) found = fitting;
  else if (!data.parts) found = fitting.filter((item) => words.every((word) => haystack(item).includes(word)));
  else {
    found = [];
    chosen = -1;
    searchParts(fitting, words, state.view);
  }
  chosen = found.findIndex((item) => identity(item) === state.item);
  if (chosen < 0 && found.length) chosen = 0;
}

// ---- the list: only rows in sight exist ----

function showList() {
  const view = VIEWS[state.view];
  at("rows").style.height = found.length * ROW_PIXELS + "px";
  at("status").textContent = found.length === view.items.length ? plural(found.length, view.one)
    : found.length.toLocaleString("en") + " of " + plural(view.items.length, view.one);
  if (numUnsearched) at("status").textContent += ", " + numUnsearched.toLocaleString("en") + " to be searched";
  at("status").dataset.found = found.length;
  at("clear").hidden = !(state.search || view.filters.some((name) => state[name]));
}

function showRows() {
  const list = at("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PIXELS) - SPARE_ROWS);
  const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PIXELS) + SPARE_ROWS);
  const rows = [];
  for (let place = first; place < last; place++) {
    const item = whole(state.view, found[place], showRows) || found[place];
    const facts = state.view === "questions" ? [label(item.skill), label(item.split), item.difficulty !== "unmeasured" && item.difficulty, item.id]
      : [label(item.reason), item.stage, identity(item)];
    const row = make("div", {
      class: "row", role: "option", id: "row-" + place, "aria-selected": String(place === chosen),
      "aria-setsize": found.length, "aria-posinset": place + 1, onclick: () => choose(place),
    }, make("small", {}, facts.filter(Boolean).join(" · ")), make("b", {}, item.question || item.detail || identity(item)));
    row.style.top = place * ROW_PIXELS + "px";
    rows.push(row);
  }
  at("rows").replaceChildren(...rows);
  if (chosen >= 0) list.setAttribute("aria-activedescendant", "row-" + chosen);
  else list.removeAttribute("aria-activedescendant");
}

function choose(place) {
  if (!found.length) return;
  chosen = Math.max(0, Math.min(found.length - 1, place));
  Object.assign(state, { item: identity(found[chosen]), show: "" });
  const list = at("list"), top = chosen * ROW_PIXELS;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW_PIXELS > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PIXELS - list.clientHeight;
  writeAddress();
  showRows();
  showDetail();
}

// ---- one video's timeline, or a picture ----

function still(medium) {
  const picture = (medium.thumbnails || []).map(([, uri]) => make("img", { src: uri, alt: medium.path }));
  return { figure: make("figure", { class: "timeline", "aria-label": "Picture " + medium.path }, ...picture), show: () => {} };
}

function timeline(video, evidence, suffix) {
  const share = (seconds) => (100 * Math.max(0, Math.min(1, seconds / video.seconds))).toFixed(3) + "%";
  const put = (element, start, end) => {
    element.style.left = share(start);
    element.style.width = share(Math.max(0, Math.min(end, video.seconds) - start));
    return element;
  };
  const pictures = (video.thumbnails || []).map(([seconds, uri]) => {
    const picture = make("img", { src: uri, alt: "Frame at " + clock(seconds), title: clock(seconds) });
    picture.seconds = seconds;
    return picture;
  });
  const marker = make("div", { class: "marker", hidden: true });
  const words = make("p", { class: "said-now", role: "status", hidden: true });
  const segmentButtons = video.segments.map(([start, end, caption, speech]) => put(make("button", {
    type: "button", tabindex: "-1", title: span(start, end), class: speech ? "said" : null,
    "aria-label": span(start, end) + ": " + caption, onclick: () => show(start, end, caption, speech),
  }), start, end));
  const evidenceButtons = evidence.map(([start, end]) => put(make("button", {
    type: "button", tabindex: "-1", title: "Evidence " + span(start, end), "aria-label": "Evidence " + span(start, end),
    onclick: () => show(start, end),
  }), start, end));

  function show(start, end, caption, speech) {
    marker.hidden = false;
    put(marker, start, end);
    for (const picture of pictures) picture.classList.toggle("shown", picture.seconds >= start - 1e-6 && picture.seconds <= end + 1e-6);
    const overlapping = video.segments.filter((segment) => segment[0] < Math.max(end, start + 1e-3) && segment[1] > start);
    video.segments.forEach((segment, place) => segmentButtons[place].classList.toggle("shown", overlapping.includes(segment)));
    words.hidden = false;
    const told = caption === undefined ? overlapping.slice(0, 3) : [[start, end, caption, speech]];
    words.replaceChildren(make("b", {}, span(start, end)), told.length ? "  " : "  Nothing is described here.");
    told.forEach(([from, to, text, said]) => {
      words.append(caption === undefined ? "[" + span(from, to) + "] " + text + " " : text);
      if (said) words.append(make("q", {}, said));
    });
    play.hidden = video.kind === "image";
    play.textContent = "Play " + span(start, end);
    shown = [start, end];
    if (player) playShown();
    state.show = start + "-" + end + suffix;
    writeAddress();
  }

  // The file itself is read only when somebody wants to see it.
  let player = null, shown = [0, video.seconds];
  const play = make("button", { type: "button", class: "play", hidden: true, onclick: () => {
    if (!player) {
      player = make("video", { controls: true, src: data.root + "/" + video.path.split("/").map(encodeURIComponent).join("/") });
      player.addEventListener("timeupdate", () => { if (shown && player.currentTime >= shown[1]) { player.pause(); shown = null; } });
      player.addEventListener("error", () => player.replaceWith(make("p", { class: "quiet" }, "This browser can't play " + video.path + ".")));
      play.after(player);
    }
    playShown();
  } }, "Play");

  function playShown() {
    const start = () => { player.currentTime = shown[0]; player.play().catch(() => {}); };
    if (player.readyState) start();
    else player.addEventListener("loadedmetadata", start, { once: true });
  }

  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const tick = make("span", {}, clock(part * video.seconds));
    tick.style.left = 100 * part + "%";
    return tick;
  });
  const figure = make("figure", { class: "timeline", "aria-label": "Timeline of " + video.path },
    pictures.length ? make("div", { class: "film" }, ...pictures) : null,
    make("div", { class: "lanes" },
      segmentButtons.length ? lane("segments", "Segments; arrow keys go through them", segmentButtons) : null,
      lane("evidence", evidence.length ? "Evidence; arrow keys go through it" : "No evidence", evidenceButtons),
      make("div", { class: "axis", "aria-hidden": "true" }, ...ticks), marker),
    make("div", { class: "legend", "aria-hidden": "true" },
      segmentButtons.length ? make("span", {}, make("i", { class: "a" }), "segments") : null,
      make("span", {}, make("i", { class: "b" }), "evidence"), make("span", {}, make("i", { class: "c" }), "shown")),
    words, play);
  if (evidence.length) {
    shown = evidence[0].slice(0, 2);
    play.hidden = false;
    play.textContent = "Play " + span(...shown);
  }
  return { figure, show };
}

function lane(name, title, buttons) {
  const element = make("div", { class: "lane " + name, role: "group", "aria-label": title }, ...buttons);
  if (buttons.length) buttons[0].setAttribute("tabindex", "0");
  element.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && buttons[buttons.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    buttons.forEach((button) => button.setAttribute("tabindex", button === next ? "0" : "-1"));
    next.focus();
    next.click();
  });
  return element;
}

// ---- moments named in a text become buttons ----

const CLOCK = "(?:\\d{1,2}:)?\\d{1,2}:\\d{2}(?:\\.\\d+)?", SECONDS = "\\d+(?:\\.\\d+)?\\s?(?:seconds?|secs?|s)\\b";
const MOMENT = new RegExp("(?<![\\w.:])(" + CLOCK + "|" + SECONDS + "|\\d+(?:\\.\\d+)?(?=\\s*(?:–|—|-|to|and|until)\\s*" + SECONDS + "))"
  + "(?:\\s*(?:–|—|-|to|and|until)\\s*(" + CLOCK + "|" + SECONDS + "))?", "gi");

function secondsOf(text) {
  return text.includes(":") ? text.split(":").reduce((sum, part) => 60 * sum + parseFloat(part), 0) : parseFloat(text);
}

function withMoments(text, duration, show) {
  const paragraph = make("p", { class: "reasoning" });
  let end = 0;
  for (const match of text.matchAll(MOMENT)) {
    const from = secondsOf(match[1]), to = match[2] ? secondsOf(match[2]) : from;
    if (from > duration || to > duration + 1 || to < from) continue;
    paragraph.append(text.slice(end, match.index), timeButton(match[0], from, to, show));
    end = match.index + match[0].length;
  }
  paragraph.append(text.slice(end));
  return paragraph;
}

function timeButton(text, start, end, show) {
  const button = make("button", { type: "button", class: "time", "aria-pressed": "false", onclick: () => {
    for (const other of document.querySelectorAll(".time")) other.setAttribute("aria-pressed", String(other === button));
    show(start, end);
  } }, text);
  return button;
}

// ---- the chosen item ----

function showDetail() {
  const article = at("detail");
  article.scrollTop = 0;
  if (state.view === "about") return article.replaceChildren(...about());
  const tell = (words) => article.replaceChildren(make("p", { class: "empty" }, words));
  if (!found[chosen] && !VIEWS[state.view].items.length) return tell(state.view === "dropped"
    ? "Nothing was dropped, or the dataset doesn't say what." : VIEWS.dropped.items.length
      ? "No question was kept. " + plural(VIEWS.dropped.items.length, "dropped item") + " with the reasons: under Dropped, at the top."
      : "There are no questions, and the dataset doesn't say why.");
  if (!found[chosen]) return tell(numUnsearched ? "Nothing yet." : "Nothing matches. Change the words or the filters.");
  const item = whole(state.view, found[chosen], showDetail), media = mediaOf(item || {}, showDetail);
  if (!item || media.includes(null)) return tell("Loading…");
  if (isPartMissing && (item === found[chosen] || media.some((medium) => !medium.path)))
    return tell("A part of this view is missing. Keep the folder " + data.parts.folder + " beside the page, or write the view again.");
  article.replaceChildren(...(item.question ? question(item, media) : lost(item)));
}

function question(item, media) {
  const several = media.length > 1;
  const lines = media.map((medium, place) => medium.kind === "image" ? still(medium)
    : timeline(medium, item.evidence.filter((given) => given[2] === place), several ? "-" + place : ""));
  const show = (start, end, place) => {
    lines.forEach((line, number) => { if (place === undefined || place === number) line.show(start, end); });
    if (place === undefined) { state.show = start + "-" + end; writeAddress(); }
  };
  const named = (medium, place) => several ? make("h3", {}, place + 1 + ". " + medium.path) : null;
  const longest = Math.max(0, ...media.map((medium) => medium.seconds || 0)) || Infinity;
  const [from, to, shown] = state.show.split("-").map(parseFloat);
  if (to >= from) show(from, to, shown >= 0 ? shown : undefined);
  const parts = [
    make("p", { class: "kicker" }, make("b", { class: item.reason ? "reason" : null }, item.reason ? "dropped: " + label(item.reason) : label(item.skill)),
      " · " + [item.reason && label(item.skill), label(item.split), item.difficulty, identity(item)].filter(Boolean).join(" · ")),
    make("h2", {}, item.question),
  ];
  if (item.detail) parts.push(make("p", { class: "said-now" }, item.detail));
  lines.forEach((line, place) => parts.push(...[named(media[place], place), line.figure].filter(Boolean)));
  parts.push(answers(item));
  parts.push(make("h3", {}, "Evidence"), item.evidence.length
    ? make("div", { class: "spans" }, ...item.evidence.map(([start, end, place]) => timeButton((several ? place + 1 + ". " : "") + span(start, end), start, end, (first, last) => show(first, last, place))))
    : make("p", { class: "quiet" }, "None is given."));
  parts.push(make("h3", {}, "Reasoning"), item.reasoning ? withMoments(item.reasoning, longest, show)
    : make("p", { class: "quiet" }, "None is given."));
  parts.push(make("h3", {}, "How models answered"), rates(item));
  new Set(media).forEach((medium) => parts.push(...aboutMedium(item, medium, item.media[media.indexOf(medium)], (start, end) => show(start, end, media.indexOf(medium)))));
  return parts;
}

function answers(item) {
  if (!item.options.length) return make("p", { class: "options" }, make("b", {}, "Answer: "), item.answer);
  return make("ol", { class: "options", "aria-label": "Options" }, ...item.options.map((option, place) => {
    const right = LETTERS[place] === item.answer;
    return make("li", { class: right ? "right" : null }, make("span", {}, LETTERS[place]), make("span", {}, option), right ? make("em", {}, "right") : null);
  }));
}

function rates(item) {
  if (!item.rates.length) return make("p", { class: "quiet" }, "No model was asked.");
  return make("table", {}, make("thead", {}, make("tr", {}, ...["Given", "Model", "Right", "", "Chosen"].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...item.rates.map((rate) => {
      const fill = make("i");
      fill.style.width = 100 * rate.num_right / rate.num_asked + "%";
      const counts = (rate.num_chosen || []).map((count, place) => LETTERS[place] + " " + count);
      if (rate.num_unanswered) counts.push("none " + rate.num_unanswered);
      return make("tr", {}, make("td", {}, label(rate.condition)), make("td", {}, rate.model || ""),
        make("td", {}, rate.num_right + " of " + rate.num_asked), make("td", {}, make("span", { class: "rate", "aria-hidden": "true" }, fill)), make("td", {}, counts.join(" · ")));
    })));
}

function aboutMedium(item, video, number, show) {
  const others = VIEWS.questions.items.filter((other) => identity(other) !== identity(item) && other.media.includes(number));
  const length = video.kind === "image" ? [] : [["length", clock(video.seconds)]];
  const parts = [make("h3", {}, video.kind === "image" ? "Picture" : "Video"), make("table", {}, make("tbody", {},
    ...[["file", video.path], ...length, ["source", video.source], ["licence", video.license], ["SHA-256", video.digest]]
      .map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)))))];
  if (others.length) parts.push(make("h3", {}, "Other questions about it"), make("div", { class: "others" }, ...others.slice(0, 40).map((other) =>
    make("button", { type: "button", onclick: () => visit(other) }, make("small", {}, label(other.skill)), other.question || other.id))));
  if (video.segments.length) {
    const list = make("ol", { class: "captions" });
    const details = make("details", {}, make("summary", {}, "All " + plural(video.segments.length, "described segment")), list);
    details.addEventListener("toggle", () => {
      if (list.childElementCount) return;
      list.append(...video.segments.map(([start, end, caption, speech]) => make("li", {}, timeButton(span(start, end), start, end, show),
        make("span", {}, caption, speech ? make("q", {}, speech) : null))));
    });
    parts.push(details);
  }
  return parts;
}

function visit(item) {
  Object.assign(state, { view: "questions", search: "", skill: "", difficulty: "", split: "", item: item.id, show: "" });
  refresh();
  choose(chosen);
}

function lost(item) {
  return [make("p", { class: "kicker" }, make("b", { class: "reason" }, "dropped: " + label(item.reason)), " · " + item.stage),
    make("h2", {}, item.item), make("p", { class: "said-now" }, item.detail || "Nothing more is known.")];
}

function about() {
  const { pass_rates: answered = {}, ...counts } = data.counts, manifest = data.manifest;
  const table = (title, rows) => make("div", {}, make("h3", {}, title), make("table", {}, make("tbody", {},
    ...Object.entries(rows).map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, label(name)), make("td", {}, String(value)))))));
  const plain = Object.fromEntries(Object.entries(counts).filter(([, value]) => typeof value !== "object"));
  const tables = Object.entries(counts).filter(([, value]) => value && typeof value === "object" && Object.keys(value).length).map(([name, value]) => table(label(name), value));
  const percent = (share) => Math.round(100 * share) + " %";
  const rates = Object.entries(answered).map(([condition, rate]) => [condition, percent(rate.right_rate) + " of " + rate.answers.toLocaleString("en") + " right"
    + (rate.unanswered_rate ? ", " + percent(rate.unanswered_rate) + " without a choice" : "")]);
  const reasons = {};
  for (const item of VIEWS.dropped.items) reasons[item.stage + ": " + label(item.reason)] = (reasons[item.stage + ": " + label(item.reason)] || 0) + 1;
  const stages = Object.entries(manifest.stages || {}).map(([name, stage]) => [name, stage.kept.toLocaleString("en") + " of " + stage.input.toLocaleString("en") + " kept"]);
  return [make("h2", {}, "What this dataset holds"), make("div", { class: "pair" }, table("In all", plain), ...tables,
    rates.length ? table("How models answered", Object.fromEntries(rates)) : null,
    stages.length ? table("Stages", Object.fromEntries(stages)) : null,
    VIEWS.dropped.items.length ? table("Dropped", Object.fromEntries(Object.entries(reasons).sort((one, other) => other[1] - one[1]))) : null),
    Object.keys(manifest).length ? make("details", {}, make("summary", {}, "How it was made (manifest.json)"), make("pre", { tabindex: "0" }, JSON.stringify(manifest, null, 2))) : null].filter(Boolean);
}

// ---- the frame around it ----

function showFilters() {
  const { items, filters } = VIEWS[state.view];
  at("filters").replaceChildren(...filters.map((name) => {
    const counts = new Map();
    for (const item of items) if (item[name]) counts.set(item[name], (counts.get(item[name]) || 0) + 1);
    const rank = (value) => (ORDER.indexOf(value) + 100) % 100;
    const values = [...counts.keys()].sort((one, other) => rank(one) - rank(other) || (one < other ? -1 : 1));
    if (!values.length) return null;
    const select = make("select", { id: "filter-" + name }, make("option", { value: "" }, "all"),
      ...values.map((value) => make("option", { value }, label(value) + " (" + counts.get(value).toLocaleString("en") + ")")));
    if (state[name] && !counts.has(state[name])) select.append(make("option", { value: state[name] }, label(state[name]) + " (0)"));
    select.value = state[name];
    select.addEventListener("change", () => { state[name] = select.value; state.show = ""; refresh(); at(select.id).focus(); });
    return make("label", {}, make("span", {}, name[0].toUpperCase() + name.slice(1)), select);
  }).filter(Boolean));
}

function refresh() {
  search();
  at("views").replaceChildren(...Object.entries(VIEWS).map(([name, view]) => make("button",
    { type: "button", "aria-current": name === state.view ? "page" : null, onclick: () => {
      state = { view: name, search: "", item: "", show: "", theme: state.theme };
      for (const filter of view.filters) state[filter] = "";
      refresh();
    } }, view.title, view.items.length ? make("small", {}, " " + view.items.length.toLocaleString("en")) : "")));
  document.querySelector("main").classList.toggle("wide", state.view === "about");
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  if (at("search").value !== state.search) at("search").value = state.search;
  showFilters();
  showList();
  at("list").scrollTop = (chosen + 1) * ROW_PIXELS > at("list").clientHeight ? chosen * ROW_PIXELS : 0;
  showRows();
  showDetail();
  writeAddress();
}

at("name").textContent = data.name;
at("summary").textContent = [plural(data.counts.questions, "question"), plural(data.counts.videos, "video"), data.counts.hours + " hours"].join(" · ");
document.title = data.name + " · dataset browser";
at("search").addEventListener("input", (event) => { Object.assign(state, { search: event.target.value, item: "", show: "" }); refresh(); });
at("clear").addEventListener("click", () => { for (const name of ["search", ...VIEWS[state.view].filters]) state[name] = ""; refresh(); at("search").focus(); });
at("list").addEventListener("scroll", showRows);
addEventListener("resize", showRows);
addEventListener("hashchange", () => {
  if (location.hash === "#detail") return writeAddress();
  readAddress();
  refresh();
});
at("theme").addEventListener("click", () => {
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  state.theme = document.documentElement.dataset.theme = dark ? "light" : "dark";
  writeAddress();
});
at("list").addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(at("list").clientHeight / ROW_PIXELS) - 1);
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -found.length, End: found.length }[event.key];
  if (step) { event.preventDefault(); choose(chosen + step); }
  if (event.key === "Enter") at("detail").focus();
});
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !typing) { event.preventDefault(); at("search").focus(); }
  if (event.key === "Escape" && document.activeElement === at("search")) { state.search = ""; refresh(); at("list").focus(); }
  if (event.key === "ArrowDown" && document.activeElement === at("search")) { event.preventDefault(); at("list").focus(); }
});
readAddress();
refresh();
