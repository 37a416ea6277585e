// The answer: cards made of what the server said, for one image or for two beside each other.

import { element as h, gauge, key, omega, responsive } from "./charts.js";
import * as words from "./words.js";

const narrow = matchMedia("(max-width: 44rem)");
const folded = new Map(); // title -> whether the visitor has folded it; else the plots are on narrow screens
narrow.addEventListener("change", () => {
  for (const card of document.querySelectorAll("details.fold")) card.open = !(folded.get(card.dataset.title) ?? narrow.matches);
});

export function showReport(place, outcomes, { changed, made, again }) {
  // outcomes: [{image, answer, model, took, copy} or {image, problem}], one or two; changed: see `pixels.difference`;
  // made: how the second was made of the first, of an example; again: asks once more.
  const verdicts = outcomes.map(({ answer }) => answer?.results[0].adversarial.verdict);
  const two = outcomes.length === 2;
  // A mark takes the colour of its verdict; where both have the same, the second takes that of the ink.
  const all = outcomes.map((outcome, index) => ({ ...outcome, index, kind: index === 1 && verdicts[0] === verdicts[1] ? "ink" : verdicts[index] }));
  const answered = all.filter((outcome) => outcome.model);
  const report = h("div", { class: "report" });
  const charts = [];
  const plot = (draw, name = "chart") => {
    const host = h("div", { class: name });
    charts.push([host, draw]);
    return host;
  };

  report.append(...all.map((outcome) => (outcome.answer ? verdictCard(outcome, two) : problemCard(outcome, again))));
  if (answered.length) {
    const classes = answered.map((outcome) => classesCard(outcome, two));
    if (changed) report.append(differenceCard(changed, all, made));
    const gauges = answered.every(hasScore) ? [gaugeCard(answered, plot)] : []; // not everybody is told numbers
    if (two) report.append(...gauges, ...classes);
    else report.append(...classes, ...gauges);
    const done = answered.map((outcome) => doneCard(outcome, two));
    if (two && answered.length === 1) report.append(...done.splice(0)); // beside its classes
    report.append(...(answered.every(hasSignals) ? [omegaCard(answered, plot)] : []), ...done);
  }
  place.replaceChildren(report);
  for (const [host, draw] of charts) responsive(host, draw);
}

function fold(title, label, ...body) {
  // A card that can be folded.
  const details = h("details", { class: "fold", "data-title": label, open: !(folded.get(label) ?? narrow.matches) },
    h("summary", { onclick: () => folded.set(label, details.open) }, h("h3", {}, title)), ...body);
  return h("section", { class: "card wide", "aria-label": label }, details);
}

const hasScore = ({ answer }) => answer.results[0].adversarial.score !== undefined;
const hasSignals = ({ answer }) => answer.results[0].signals !== undefined;

function preview(image, facts, size) {
  // The file as the browser shows it, and where it was scaled, about what came out of that.
  const element = h("img", { src: image.url, alt: `The image asked about: ${image.name}` });
  const frame = h("div", { class: "preview" }, element);
  element.addEventListener("error", () => frame.replaceChildren(h("span", { class: "fine" }, "no preview")));
  element.addEventListener("load", () => {
    if (Math.max(element.naturalWidth, element.naturalHeight) <= 4 * size) element.classList.add("coarse");
    if (!facts?.resized) return;
    const { naturalWidth: w, naturalHeight: tall } = element;
    const short = Math.min(w, tall);
    const seen = h("canvas", { width: size, height: size, role: "img", "aria-label": "Roughly what the model saw of it" });
    const pen = seen.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(element, (w - short) / 2, (tall - short) / 2, short, short, 0, 0, size, size);
    frame.append(h("figure", {}, seen, h("figcaption", {}, `about what the model saw, ${size} × ${size}`)));
  });
  return frame;
}

function differenceCard(changed, outcomes, made) {
  const shown = (image, title) => h("figure", {}, h("img", { src: image.url, alt: "" }), h("figcaption", {}, title));
  const figures = made ? outcomes.map(({ image }, k) => shown(image, k ? "attacked" : "original")) : [];
  const said = h("div", {}, h("h3", {}, "What differs"), h("p", {}, words.difference(changed)));
  if (made) said.append(...redTeam(made, outcomes));
  return h("section", { class: "card wide difference", "aria-label": "What differs" },
    h("div", { class: "figures" }, ...figures,
      h("figure", {}, changed.canvas, h("figcaption", {}, `difference × ${changed.times}`))), said);
}

function redTeam(made, outcomes) {
  const facts = words.redTeam(made).map(([term, ...said]) => [h("dt", {}, term), h("dd", {}, ...said)]);
  const verdicts = outcomes.filter(({ answer }) => answer).map(({ answer }) => words.found(answer.results[0]));
  if (verdicts.length === 2) facts.push([h("dt", {}, "This server"), h("dd", {}, verdicts.join(" → "))]);
  return [h("h3", {}, "Red team: how the twin was made"), h("dl", { class: "facts" }, ...facts.flat()),
    h("p", { class: "fine" }, "The same again: ", h("code", {}, made.command))];
}

function verdictCard({ image, answer, model, index, kind, copy }, two) {
  const { adversarial, image: facts } = answer.results[0];
  const score = words.scored(adversarial);
  const size = model?.size ?? 32;
  // What is known of clean images and of chances is known of files as they are.
  const known = adversarial.calibrated && !copy;
  return h("article", { class: `card verdict ${adversarial.verdict}`, "aria-label": image.name },
    preview(image, facts, size),
    h("div", {},
      h("h3", {}, icon(adversarial.verdict), words.VERDICT[adversarial.verdict], " ", h("span", { class: "label" }, words.named(answer.results[0]))),
      h("p", { class: "name" }, two ? key(kind, index) : null, image.name),
      score ? h("p", { class: "score" }, "score ", h("b", {}, score)) : null,
      h("p", {}, words.meaning({ ...adversarial, calibrated: known })),
      known && typeof adversarial.probability === "number" ? h("p", {}, words.chance(adversarial)) : null,
      copy ? h("p", { class: "caution" }, words.shrunk(copy)) : null,
      adversarial.calibrated ? null : h("p", { class: "caution" }, words.calibration(adversarial))));
}

export function icon(verdict) {
  const shapes = {
    clean: "M4 10.500l4 4 8-9",
    suspicious: "M10 3.500v8M10 15v1.500",
    adversarial: "M5 5l10 10M15 5L5 15",
  };
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 20 20");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", shapes[verdict]);
  drawing.append(path);
  return drawing;
}

function problemCard({ image, problem }, again) {
  return h("div", { class: "card problem", role: "alert", "aria-label": `${image.name}: not answered` },
    h("p", { class: "name" }, image.name),
    h("h3", {}, problem.title),
    problem.todo ? h("p", {}, problem.todo) : null,
    problem.said ? h("p", { class: "fine" }, problem.said) : null,
    problem.id ? h("p", { class: "fine" }, "Request ", h("code", {}, problem.id)) : null,
    problem.again ? h("button", { type: "button", class: "button", onclick: again }, "Ask again") : null);
}

function classesCard({ image, answer, index, kind }, two) {
  const { predictions } = answer.results[0];
  const rows = predictions.map((named, n) => {
    const { label, probability } = named;
    const bar = probability === undefined ? "" : h("i", { class: "bar" });
    if (bar) bar.style.width = `${Math.max(0.4, 100 * probability)}%`;
    return h("tr", { class: n === 0 ? "best" : null },
      h("th", { scope: "row" }, label), h("td", { class: "number" }, words.likely(named)), h("td", { class: "track", "aria-hidden": "true" }, bar));
  });
  const title = two ? h("h3", {}, key(kind, index), `Classes: ${image.name}`) : h("h3", {}, "Classes");
  if (rows.length === 0) {
    return h("section", { class: "card classes", "aria-label": `Classes of ${image.name}` }, title, h("p", { class: "caution" }, words.noClass(answer.results[0])));
  }
  return h("section", { class: "card classes", "aria-label": `Classes of ${image.name}` }, title,
    h("table", {},
      h("thead", { class: "unseen" }, h("tr", {}, h("th", { scope: "col" }, "Class"), h("th", { scope: "col" }, "Probability"), h("td", {}))),
      h("tbody", {}, rows.shift(), ...rows)));
}

const thresholdsOf = ({ answer }) => Object.values(answer.results[0].adversarial.thresholds);

function legend(answered, text) {
  return h("ul", { class: "legend" }, ...answered.map(({ image, answer, index, kind }) =>
    h("li", {}, key(kind, index), text(image, answer.results[0].adversarial))));
}

function gaugeCard(answered, plot) {
  // Images of different domains have different thresholds: then each has a scale of its own.
  const alike = answered.every((outcome) => String(thresholdsOf(outcome)) === String(thresholdsOf(answered[0])));
  const scales = alike ? [answered] : answered.map((outcome) => [outcome]);
  return fold("Adversarial score", "Adversarial score",
    ...scales.flatMap((some) => scale(some, plot)),
    h("p", { class: "fine" },
      "The scale is in log-odds: equal steps multiply the odds. Scores crowd near 0 and near 1, where an even scale would show them, and a threshold among them, as one spot."));
}

function scale(answered, plot) {
  const { adversarial } = answered[0].answer.results[0];
  const points = thresholdsOf(answered[0]);
  const thresholds = ["suspicious", "adversarial"].map((name) => ({
    score: adversarial.thresholds[name],
    shown: `${name} above ${words.score(adversarial.thresholds[name])}`,
    note: `${words.rate(adversarial.target_fpr[name])} of clean images`,
  }));
  const marks = answered.map(({ answer, index, kind }) => ({ score: answer.results[0].adversarial.score, kind, index }));
  const label = `Scores on a scale of log-odds. ${thresholds.map((t) => `${t.shown} (${t.note})`).join("; ")}. ${answered
    .map(({ image, answer }) => `${image.name}: ${words.score(answer.results[0].adversarial.score, points)}`).join("; ")}.`;
  return [legend(answered, (image, judged) => `${image.name}: ${words.score(judged.score, points)}`), plot(gauge(marks, thresholds, label))];
}

function omegaCard(answered, plot) {
  const { model } = answered[0];
  const parts = model.reference.convolutions;
  const comparable = answered.filter((outcome) => outcome.model === model);
  const values = comparable.map(({ answer }) => answer.results[0].signals.convolutions.map((part) => part.values));
  const every = [...parts.flatMap((part) => part.mean), ...values.flat(2)];
  const [low, high] = [Math.min(...every), Math.max(...every)];
  const pad = 0.04 * (high - low || 1);
  const range = [low - pad, high + pad];
  const away = parts.map((part, n) => values.map((image) => distance(image[n], part)));
  const figures = parts.map((part, n) => {
    const label = `${part.name}: ${comparable.map(({ image }, k) => `${image.name} is ${away[n][k]} standard deviations from the clean mean`).join("; ")}.`;
    const series = comparable.map(({ kind }, k) => ({ kind, values: values[k][n] }));
    return h("li", {},
      h("p", {}, h("span", {}, part.name),
        h("span", { class: "aways" }, ...comparable.map(({ kind }, k) => h("b", { class: kind }, `${away[n][k]} σ`)))),
      plot(omega(part, series, range, label), "chart plot"));
  });
  return fold("Regulation signals, beside the model’s clean reference", "Regulation signals",
    h("ul", { class: "legend" },
      h("li", {}, h("i", { class: "key line" }), `mean of ${model.reference.images.toLocaleString("en")} clean images; channels sorted by it`),
      ...comparable.map(({ image, index, kind }) => h("li", {}, key(kind, index), image.name))),
    h("ul", { class: "omegas" }, ...figures),
    h("p", { class: "fine" },
      "Omega is the weight that the network gives each of its filters for this image. σ is how far an image lies from the mean, " +
      "averaged over channels, in standard deviations of the clean images. The verdict comes from the score alone."));
}

function distance(values, part) {
  const sum = values.reduce((total, value, k) => total + Math.abs(value - part.mean[k]) / Math.max(part.std[k], 1e-6), 0);
  const mean = sum / values.length;
  return mean < 10 ? mean.toFixed(1) : String(Math.round(mean));
}

function doneCard({ image, answer, took, model, index, kind, copy }, two) {
  const { image: prepared, adversarial } = answer.results[0];
  const { decode, queue, inference, total } = answer.timing_ms;
  const stages = [["decode", decode], ["queue", queue], ["inference", inference], ["rest", Math.max(0, total - decode - queue - inference)]];
  const bar = h("div", { class: "stages", "aria-hidden": "true" }, ...stages.map(([name, value]) => {
    const part = h("i", { class: name });
    part.style.flexGrow = String(Math.max(value, 0.001));
    return part;
  }));
  const title = two ? h("h3", {}, key(kind, index), `Done to ${image.name}`) : null;
  const facts = h("dl", { class: "facts" },
    h("dt", {}, "File"), h("dd", {}, `${prepared.format}, ${prepared.width} × ${prepared.height}, ${words.bytes((copy ?? image).blob.size)}`),
    ...(copy ? [h("dt", {}, "Before"), h("dd", {}, words.original(copy, image.blob.size))] : []),
    h("dt", {}, "Prepared"), h("dd", {}, words.preprocessing(prepared, model.size)),
    h("dt", {}, "Calibrated"), h("dd", {}, copy ? "Of the copy: " : "", words.calibration(adversarial)),
    h("dt", {}, "Model"), h("dd", {}, `${answer.model.name}, version ${answer.model.version}${model.modes.length > 1 ? `, mode ${answer.mode}` : ""}`),
    h("dt", {}, "Request"), h("dd", {}, h("code", {}, answer.request_id)));
  const times = h("div", {},
    bar,
    h("ul", { class: "legend" }, ...stages.map(([name, value]) => h("li", {}, h("i", { class: `key ${name}` }), `${name} ${words.milliseconds(value)}`))),
    h("p", { class: "fine" }, `In the server ${words.milliseconds(total)}; seen from this page ${words.milliseconds(took)}.`));
  if (two) return h("section", { class: "card", "aria-label": `Preparation and times of ${image.name}` }, title, facts, times);
  return h("div", { class: "split wide" },
    h("section", { class: "card", "aria-label": "Preparation" }, h("h3", {}, "What was done to it"), facts),
    h("section", { class: "card", "aria-label": "Times" }, h("h3", {}, "Where the time went"), times));
}
