"use strict";
// What a pipeline has besides its runs: its stages, and frames of its videos.
const STATUS = { finished: "done", begun: "going on or stopped", waiting: "" };

function filmStrip(frames) {
  return element("ul", { className: "film" }, ...frames.map((frame) => element("li", { className: frame.is_evidence ? "evidence" : "" },
    element("img", { src: frame.source, alt: "" }), `${frame.seconds.toFixed(1)} s`)));
}

function listOptions(options) {
  return options.map((option, number) => `${"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]}. ${option}`).join("\u2003");
}

function showStages() {
  const rows = run.stages.map((stage) => element("tr", { className: stage.status },
    element("td", { textContent: stage.title }),
    element("td", { className: "number", textContent: stage.seconds === null ? "" : `${stage.seconds.toFixed(0)} s` }),
    element("td", { textContent: STATUS[stage.status] })));
  return element("div", { className: "stages" }, element("table", {}, element("tbody", {}, ...rows)),
    run.hasReport ? element("p", { textContent: "The results are in report.html in the folder." }) : null);
}

function showFilm(film) {
  if (!film.question) return element("section", {}, filmStrip(film.frames));
  return element("section", {}, element("h2", { textContent: film.question }),
    film.options.length ? element("p", { textContent: listOptions(film.options) }) : null,
    element("p", { className: "terms", textContent: `${film.skill} · right: ${film.answer}` }), filmStrip(film.frames));
}

function describeFilms({ films, are_final: areFinal, problem }) {
  if (problem) return problem;
  if (areFinal) return "Some of the videos, each with a question about it; outlined frames show what the question is about.";
  return films.length ? "The first videos; the questions follow when all are there." : "The videos appear here as soon as they are there.";
}

async function showOverview() {
  const drawn = main.querySelector(".stages");
  if (drawn && run.areFilmsFinal) {
    drawn.replaceWith(showStages());
    return;
  }
  const answer = await fetch("films");
  const found = answer.ok ? await answer.json() : { films: [], problem: await answer.text() };
  if (main.dataset.view !== "overview") return; // somebody went on meanwhile
  run.areFilmsFinal = found.are_final;
  main.replaceChildren(showStages(), element("p", { className: "note", textContent: describeFilms(found) }), ...found.films.map(showFilm));
}

// Links to the runs that have begun; the page follows the latest one until somebody chooses.
function showRuns() {
  const links = run.names.map((name) => {
    const link = element("button", { textContent: name, className: name === run.name ? "chosen" : "" });
    link.addEventListener("click", () => { run.chosen = name; lookNow(); });
    return link;
  });
  document.querySelector("nav .runs").replaceChildren(...links);
}
