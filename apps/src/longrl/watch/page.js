const content = JSON.parse(document.getElementById("content").textContent);
const isFile = "state" in content;
const NO_RESPONSES = {
  "sft": "Imitation draws no responses.",
  "generate-grpo": "This run draws pictures or clips; held-out ones are in its folder, in pictures/ or clips/.",
};
const run = { edition: "", isFinished: false, steps: [], panels: [], groups: [], stages: [], names: [], name: "", chosen: "" };
const main = document.querySelector("main");
const LOOK_SECONDS = 2;
const ROWS_AT_ONCE = 100;
// Largest gaps, in nats, of tokens that are left plain, coloured lightly, and coloured clearly.
const GAPS = [0.01, 0.1, 0.5];

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(2)} G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  if (size < 1e-3) return value.toExponential(1);
  return Number(value.toPrecision(4)).toString();
}

function smooth(points) {
  const share = 2 / (Math.max(1, points.length / 15) + 1);
  let mean = null;
  return points.map(([x, y]) => [x, (mean = mean === null ? y : mean + share * (y - mean))]);
}

function path(points, place) {
  return points.map((point, number) => `${number ? "L" : "M"}${place(point).map((at) => at.toFixed(1)).join(" ")}`).join("");
}

function drawPanel(panel) {
  const series = panel.names.map((name) =>
    run.steps.filter((line) => name in line).map((line) => [line.step, line[name]]));
  const values = series.flat().map((point) => point[1]);
  if (!values.length) return null;
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const first = run.steps[0].step;
  const last = Math.max(first + 1, run.steps.at(-1).step);
  const place = ([x, y]) => [48 + (392 * (x - first)) / (last - first), 150 - (138 * (y - low)) / (high - low)];
  const svg = drawn("svg", { viewBox: "0 0 450 172", role: "img", "aria-label": panel.title });
  for (const value of [low, (low + high) / 2, high]) {
    const y = place([first, value])[1];
    svg.append(drawn("line", { class: "grid", x1: 48, x2: 440, y1: y, y2: y }));
    svg.append(drawn("text", { x: 42, y: y + 4, "text-anchor": "end" }, shown(value)));
  }
  svg.append(drawn("text", { x: 48, y: 168 }, `step ${first}`));
  svg.append(drawn("text", { x: 440, y: 168, "text-anchor": "end" }, String(run.steps.at(-1).step)));
  const caption = element("figcaption", {}, element("b", { textContent: panel.title + (panel.unit ? `, ${panel.unit}` : "") }));
  series.forEach((points, number) => {
    if (!points.length) return;
    const colour = `series-${Math.min(number, 5)}`;
    const isLong = points.length > 30;
    svg.append(drawn("path", { class: `${colour}${isLong ? " faint" : ""}`, d: path(points, place) }));
    if (isLong) svg.append(drawn("path", { class: colour, d: path(smooth(points), place) }));
    const [x, y] = place(points.at(-1));
    svg.append(drawn("circle", { class: colour, cx: x, cy: y, r: 2.5 }));
    const name = panel.names[number].split(".").at(-1);
    caption.append(element("span", { className: colour, textContent: `${name} ${shown(points.at(-1)[1])}` }));
  });
  return element("figure", {}, caption, svg);
}

function showCurves() {
  const charts = run.panels.map(drawPanel).filter(Boolean);
  main.replaceChildren(charts.length
    ? element("div", { className: "charts" }, ...charts)
    : element("p", { className: "note", textContent: "No step is finished yet." }));
}

function matches(row, filter) {
  const has = (name) => filter.get(name) !== null && filter.get(name) !== "";
  return (!has("from") || row.step >= Number(filter.get("from")))
    && (!has("to") || row.step <= Number(filter.get("to")))
    && (!has("skill") || row.skill === filter.get("skill"))
    && (!has("reward") || (row.reward !== null && row.reward <= Number(filter.get("reward"))))
    && (!has("unfinished") || row.num_unfinished > 0)
    && (!has("search") || row.question.toLowerCase().includes(filter.get("search").toLowerCase()));
}

function field(title, name, filter, properties) {
  return element("label", {}, title, element("input", { name, value: filter.get(name) ?? "", ...properties }));
}

function filterForm(filter) {
  const skills = [...new Set(run.groups.map((row) => row.skill))].sort();
  const select = element("select", { name: "skill" }, element("option", { value: "", textContent: "all" }),
    ...skills.map((skill) => element("option", { value: skill, textContent: skill, selected: skill === filter.get("skill") })));
  const form = element("form", {},
    field("From step", "from", filter, { type: "number", min: 1 }),
    field("To step", "to", filter, { type: "number", min: 1 }),
    element("label", {}, "Skill", select),
    field("Mean reward at most", "reward", filter, { type: "number", step: "any" }),
    field("Question contains", "search", filter, { type: "search" }),
    element("label", {}, "Truncated", element("input", { type: "checkbox", name: "unfinished", value: "1", checked: filter.has("unfinished") })),
    element("button", { textContent: "Show" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = [...new FormData(form)].filter(([, value]) => value !== "");
    location.hash = `responses?${new URLSearchParams(chosen)}`;
  });
  return form;
}

function showRows(filter) {
  const rows = run.groups.filter((row) => matches(row, filter)).reverse();
  const body = element("tbody");
  const more = element("button", { textContent: "More" });
  let count = 0;
  const add = () => {
    for (const row of rows.slice(count, count + ROWS_AT_ONCE)) {
      body.append(element("tr", {},
        element("td", { className: "number" }, element("a", { href: `#group?id=${row.group_id}`, textContent: row.group_id })),
        element("td", { textContent: row.question }),
        element("td", { textContent: row.skill }),
        element("td", { className: "number", textContent: `${shown(row.reward)} (${shown(row.lowest)} to ${shown(row.highest)})` }),
        element("td", { className: "number", textContent: `${row.num_unfinished} of ${row.num_responses}` })));
    }
    count += ROWS_AT_ONCE;
    more.hidden = count >= rows.length;
  };
  more.addEventListener("click", add);
  add();
  const head = ["Step", "Question", "Skill", "Reward", "Truncated"].map((title) => element("th", { textContent: title }));
  const left = isFile && content.num_groups > run.groups.length
    ? ` This file holds ${run.groups.length} of ${content.num_groups} groups; \`longrl watch\` shows all.` : "";
  main.replaceChildren(filterForm(filter),
    element("p", { className: "note", textContent: run.groups.length ? `${rows.length} groups of ${run.groups.length}, the latest first.${left}` : NO_RESPONSES[content.stage] ?? "No responses yet." }),
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), body), more);
  main.dataset.found = rows.length;
}

function gapClass(gap) {
  const size = Math.abs(gap);
  return `gap-${GAPS.filter((bound) => size > bound).length}`;
}

function responseText(response) {
  const tokens = response.tokens;
  if (!Array.isArray(tokens)) return element("pre", { textContent: response.text });
  return element("pre", {}, ...tokens.map(([text, gap]) =>
    element("span", { className: gapClass(gap), title: `gap ${shown(gap)} nats`, textContent: text })));
}

function showResponse(response, number) {
  const terms = Object.entries(response.rewards ?? {}).map(([name, value]) => `${name} ${shown(value)}`);
  const facts = [`reward ${shown(response.reward)}`, ...terms, `advantage ${shown(response.advantage)}`,
    `answer ${response.parsed ?? "none"}`, response.finished ? null : "truncated"];
  return element("article", {}, element("h3", { textContent: `Response ${number + 1}` }),
    element("p", { className: "terms", textContent: facts.filter(Boolean).join(" · ") }), responseText(response));
}

function showGroup(group) {
  const frames = group.frames ?? [];
  const options = group.options ?? [];
  const isWeighted = (group.prompt_weight ?? 1) !== 1;
  const shownParts = [
    element("p", {}, element("a", { href: "#responses", textContent: "All responses" }), ` · step ${group.step} · ${group.skill} · ${group.question_id}`),
    element("h2", { textContent: group.question }),
    options.length ? element("p", { textContent: listOptions(options) }) : null,
    element("p", { textContent: `Right: ${group.answer}` }),
    isWeighted ? element("p", { textContent: `Better than with shuffled frames: weight ${shown(group.prompt_weight)}` }) : null,
    frames.length ? filmStrip(frames)
      : element("p", { className: "note", textContent: `No frames: ${group.frames_missing}` }),
    element("div", { className: "responses" }, ...group.responses.map(showResponse)),
  ];
  main.replaceChildren(...shownParts.filter(Boolean)); // it would write "null" for what isn't there
}

async function readGroup(id) {
  if (!isFile) {
    const answer = await fetch(`groups/${encodeURIComponent(id)}?${new URLSearchParams({ run: run.name })}`);
    return answer.ok ? answer.json() : null;
  }
  const group = content.groups[id];
  if (!group) return null;
  return { frames: [], frames_missing: "this file holds those of other questions; `longrl watch` shows all", ...group,
    ...content.frames[group.question_id] };
}

function showSettings(values, prefix = "") {
  return Object.entries(values).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? showSettings(value, `${prefix}${name}.`)
      : [element("tr", {}, element("td", { textContent: prefix + name }), element("td", { textContent: JSON.stringify(value) }))]);
}

async function show() {
  const [view, query] = location.hash.slice(1).split("?");
  const filter = new URLSearchParams(query ?? "");
  main.dataset.view = view || (content.is_pipeline && !run.names.length ? "overview" : "curves");
  if (main.dataset.view === "overview") await showOverview();
  else if (view === "responses") showRows(filter);
  else if (view === "settings") main.replaceChildren(element("table", {}, element("tbody", {}, ...showSettings(content.settings))));
  else if (view === "group") {
    const group = await readGroup(filter.get("id"));
    if (group) showGroup(group);
    else main.replaceChildren(element("p", { className: "note", textContent: `There is no group ${filter.get("id")}.` }));
  } else showCurves();
}

function take(state) {
  const isOther = state.edition !== run.edition;
  if (isOther) Object.assign(run, { edition: state.edition, steps: [], groups: [] });
  if (content.is_pipeline) {
    Object.assign(run, { name: state.run, names: state.runs, stages: state.stages, hasReport: state.has_report });
    Object.assign(content, { stage: state.stage, settings: state.settings });
    showRuns();
  }
  const isNew = isOther || state.steps.length > 0 || state.groups.length > 0;
  run.steps.push(...state.steps);
  run.groups.push(...state.groups);
  run.panels = state.panels;
  run.isFinished = state.is_finished;
  const last = run.steps.length ? `step ${run.steps.at(-1).step}` : "no step yet";
  document.querySelector(".status").textContent = content.is_pipeline && !run.name ? "no training has begun yet" : `${content.stage}, ${last}, ${run.isFinished ? "finished" : isFile ? "not finished" : "going on or stopped"}`;
  return isNew;
}

async function look() {
  await lookNow();
  setTimeout(look, LOOK_SECONDS * 1000);
}

async function lookNow() {
  try {
    const query = new URLSearchParams({ run: run.chosen, edition: run.edition, steps: run.steps.length, groups: run.groups.length });
    const answer = await fetch(`state?${query}`);
    if (!answer.ok) throw new Error(await answer.text());
    const isNew = take(await answer.json());
    // What somebody reads or types in stays as it is; curves and stages are drawn anew.
    const view = main.dataset.view ?? "curves";
    if (view === "overview" || (isNew && view === "curves")) await show();
  } catch (error) {
    document.querySelector(".status").textContent = `not up to date: ${error.message}`;
  }
}

async function begin() {
  document.querySelector("h1").textContent = content.name;
  document.querySelector("nav .overview").hidden = !content.is_pipeline;
  addEventListener("hashchange", show);
  if (isFile) take(content.state);
  else await look();
  await show();
}

begin();
