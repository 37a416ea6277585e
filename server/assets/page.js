// The page: what was asked, what was answered, and how both are shown.

import { element as h, gauge, key, omega, responsive, strip } from "./charts.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const POLL_SECONDS = 5;
const MOST_CLASSES = 10;

let models = [];
let asking = null; // the AbortController of what was asked last; older answers are dropped
let asked = [];

// --- the server -----------------------------------------------------------------------------------------------------

async function fetchJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function loadModels() {
  try {
    models = (await fetchJson("page/model.json")).models;
  } catch {
    models = [];
  }
  if (models.length === 0) setTimeout(loadModels, 2000);
  showModels();
}

async function predict(picture, signal) {
  // The picture's own bytes with its own content type. Returns {answer, took} or {problem}.
  const chosen = $("model").value ? models[Number($("model").value)] : null;
  const labels = (chosen || models[0])?.labels.length ?? MOST_CLASSES;
  const query = new URLSearchParams({ signals: "all", top_k: Math.min(MOST_CLASSES, labels) });
  if (chosen) {
    query.set("model", chosen.name);
    query.set("version", chosen.version);
  }
  const started = performance.now();
  try {
    const response = await fetch(`predict?${query}`, {
      method: "POST",
      body: picture.blob,
      headers: { "content-type": picture.blob.type || "application/octet-stream" },
      signal,
    });
    const took = performance.now() - started;
    const document = await response.json().catch(() => ({}));
    if (response.ok) return { answer: document, took };
    const id = document.request_id || response.headers.get("x-request-id");
    const problem = words.problem({ ...document, status: response.status }, response.headers.get("retry-after"));
    return { problem: { ...problem, id } };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { problem: words.problem({ status: 0 }) };
  }
}

async function ask(pictures) {
  // pictures: one, or two to compare: [{name, blob}]
  asking?.abort();
  const mine = (asking = new AbortController());
  const started = setTimeout(() => busy(true), 150); // an answer that comes at once should not flicker
  const before = asked;
  asked = pictures.map((picture) => ({ ...picture, url: URL.createObjectURL(picture.blob) }));
  let answers;
  try {
    answers = [];
    for (const picture of asked) answers.push(await predict(picture, mine.signal)); // one by one: else each waits for the other, and the times show it
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  } finally {
    clearTimeout(started);
    for (const picture of before) URL.revokeObjectURL(picture.url);
  }
  const unknown = answers.some(({ answer }) => answer && !modelOf(answer));
  if (unknown) await loadModels(); // the server has loaded another version since
  const changed = await difference(asked);
  if (asking !== mine) return;
  busy(false);
  show(asked.map((picture, k) => ({ picture, ...answers[k] })), changed);
  pollRecent();
}

const modelOf = (answer) =>
  models.find((m) => m.name === answer.model.name && m.version === answer.model.version && m.sha256 === answer.model.sha256);

// --- asking ---------------------------------------------------------------------------------------------------------

function take(files) {
  const pictures = [...files].slice(0, 2).map((file) => ({ name: file.name || "pasted picture", blob: file }));
  if (pictures.length === 0) {
    say("There is no picture in that.");
    return;
  }
  press(null);
  ask(pictures);
  if (files.length > 2) say(`Only the first two of ${files.length} pictures are compared.`);
}

async function takeExample(example, button) {
  const mode = document.querySelector("input[name=mode]:checked").value;
  const wanted = mode === "both" ? ["clean", "attacked"] : [mode];
  press(button);
  try {
    const pictures = await Promise.all(
      wanted.map(async (kind) => {
        const response = await fetch(`page/${example[kind]}`);
        if (!response.ok) throw new Error(String(response.status));
        return { name: kind === "clean" ? example.name : `${example.name}, attacked`, blob: await response.blob() };
      }),
    );
    await ask(pictures);
  } catch (error) {
    show(wanted.map((kind) => ({ picture: { name: `${example.name}, ${kind}`, url: `page/${example[kind]}` }, problem: words.problem({ status: 0 }) })));
  }
}

function press(button) {
  for (const other of $("thumbs").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
}

async function showExamples() {
  const { examples } = await fetchJson("page/examples.json").catch(() => ({ examples: [] }));
  if (examples.length === 0) return;
  for (const example of examples) {
    const button = h("button", { type: "button", "aria-pressed": "false" },
      h("span", { class: "pair" },
        h("img", { class: "of-clean", src: `page/${example.clean}`, alt: "", width: 32, height: 32 }),
        h("img", { class: "of-attacked", src: `page/${example.attacked}`, alt: "", width: 32, height: 32 })),
      h("span", {}, example.name));
    button.addEventListener("click", () => takeExample(example, button));
    $("thumbs").append(h("li", {}, button));
  }
  const follow = () => { $("thumbs").dataset.mode = document.querySelector("input[name=mode]:checked").value; };
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.addEventListener("change", () => {
      follow();
      $("thumbs").querySelector("[aria-pressed=true]")?.click();
    });
  }
  follow();
  $("examples").hidden = false;
}

$("file").addEventListener("change", () => {
  take($("file").files);
  $("file").value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.target instanceof HTMLInputElement && event.target.type === "text") return;
  event.preventDefault();
  take(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // else the browser leaves the page for the file
  event.dataTransfer.dropEffect = "copy";
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
});

// --- answering ------------------------------------------------------------------------------------------------------

function say(text) {
  $("status").textContent = "";
  requestAnimationFrame(() => { $("status").textContent = text; });
}

function busy(on) {
  $("report").classList.toggle("busy", on);
  $("answer").setAttribute("aria-busy", String(on));
  if (on) say("Asking.");
}

function show(outcomes, changed = null) {
  // outcomes: [{picture, answer, took} or {picture, problem}], one or two; changed: see `difference`.
  const answered = outcomes
    .map((outcome, index) => ({ ...outcome, index, model: outcome.answer && modelOf(outcome.answer) }))
    .filter((outcome) => outcome.answer && outcome.model);
  const two = outcomes.length === 2;
  const report = h("div", { class: "report" });
  const charts = [];
  const plot = (draw, name = "chart") => {
    const host = h("div", { class: name });
    charts.push([host, draw]);
    return host;
  };

  outcomes.forEach((outcome, index) => report.append(outcome.answer ? verdictCard(outcome, index, two) : problemCard(outcome)));
  if (answered.length) {
    const classes = answered.map((outcome) => classesCard(outcome, two));
    if (changed) report.append(differenceCard(changed));
    if (two) report.append(gaugeCard(answered, plot), ...classes);
    else report.append(...classes, gaugeCard(answered, plot));
    const done = answered.map((outcome) => doneCard(outcome, two));
    if (two && answered.length === 1) report.append(...done.splice(0)); // beside its classes
    report.append(omegaCard(answered, plot), ...done);
  }
  $("report").replaceChildren(report);
  for (const [host, draw] of charts) responsive(host, draw);

  const thresholds = (m) => [m.thresholds.suspicious.score, m.thresholds.adversarial.score];
  const told = outcomes.map(({ picture, answer, problem }) =>
    answer ? words.spoken(picture.name, answer, modelOf(answer) ? thresholds(modelOf(answer)) : []) : `${picture.name}: ${problem.title}`,
  );
  say(told.join(" "));
  const top = $("answer").getBoundingClientRect().top;
  if (top < 0 || top > innerHeight * 0.6) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("answer").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  }
}

function preview(picture, facts, size) {
  // The file as the browser shows it, and where it was scaled, about what came out of that.
  const image = h("img", { src: picture.url, alt: `The picture asked about: ${picture.name}` });
  const frame = h("div", { class: "preview" }, image);
  image.addEventListener("error", () => frame.replaceChildren(h("span", { class: "fine" }, "no preview")));
  image.addEventListener("load", () => {
    if (Math.max(image.naturalWidth, image.naturalHeight) <= 4 * size) image.classList.add("coarse");
    if (!facts?.resized) return;
    const { naturalWidth: w, naturalHeight: tall } = image;
    const short = Math.min(w, tall);
    const seen = h("canvas", { width: size, height: size, role: "img", "aria-label": "Roughly what the model saw of it" });
    const pen = seen.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, (w - short) / 2, (tall - short) / 2, short, short, 0, 0, size, size);
    frame.append(h("figure", {}, seen, h("figcaption", {}, `about what the model saw, ${size} × ${size}`)));
  });
  return frame;
}

async function difference(pictures) {
  // Of two pictures of the same size: the largest change of a colour, the share of pixels that changed, and a drawing.
  // Null where there is nothing to compare.
  if (pictures.length !== 2) return null;
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const [a, b] = await Promise.all(pictures.map(({ blob }) => createImageBitmap(blob, options).catch(() => null)));
  if (!a || !b || a.width !== b.width || a.height !== b.height || a.width * a.height > 1 << 20) return null;
  const canvas = h("canvas", { width: a.width, height: a.height, role: "img", "aria-label": "What differs between the two pictures" });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const [first, second] = [a, b].map((bitmap) => {
    pen.clearRect(0, 0, a.width, a.height);
    pen.drawImage(bitmap, 0, 0);
    return pen.getImageData(0, 0, a.width, a.height);
  });
  let [most, pixels] = [0, 0];
  for (let n = 0; n < first.data.length; n += 4) {
    const here = Math.max(...[0, 1, 2].map((k) => Math.abs(first.data[n + k] - second.data[n + k])));
    most = Math.max(most, here);
    pixels += here > 0;
  }
  const times = Math.max(1, Math.floor(127 / Math.max(most, 1)));
  for (let n = 0; n < first.data.length; n += 4) {
    for (const k of [0, 1, 2]) first.data[n + k] = 128 + times * (second.data[n + k] - first.data[n + k]);
    first.data[n + 3] = 255;
  }
  pen.putImageData(first, 0, 0);
  return { canvas, most, share: pixels / (a.width * a.height), times };
}

function differenceCard(changed) {
  return h("section", { class: "card wide difference", "aria-label": "What differs" },
    changed.canvas, h("div", {}, h("h3", {}, "What differs"), h("p", {}, words.difference(changed))));
}

function verdictCard({ picture, answer }, index, two) {
  const { adversarial, image } = answer.results[0];
  const points = [adversarial.thresholds.suspicious, adversarial.thresholds.adversarial];
  const size = modelOf(answer)?.size ?? 32;
  return h("article", { class: `card verdict ${adversarial.verdict}`, "aria-label": picture.name },
    preview(picture, image, size),
    h("div", {},
      h("p", { class: "name" }, two ? key(adversarial.verdict, index) : null, picture.name),
      h("h3", {}, icon(adversarial.verdict), words.VERDICT[adversarial.verdict]),
      h("p", { class: "score" }, "score ", h("b", {}, words.score(adversarial.score, points))),
      h("p", {}, words.meaning(adversarial.verdict, adversarial.target_fpr)),
      adversarial.calibrated ? null : h("p", { class: "caution" }, words.calibration(adversarial, image, size))));
}

function icon(verdict) {
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

function problemCard({ picture, problem }) {
  return h("article", { class: "card problem", role: "alert", "aria-label": `${picture.name}: not answered` },
    h("p", { class: "name" }, picture.name),
    h("h3", {}, problem.title),
    problem.said ? h("p", {}, problem.said) : null,
    problem.id ? h("p", { class: "fine" }, "Request ", h("code", {}, problem.id)) : null,
    problem.again ? h("button", { type: "button", class: "button", onclick: () => ask(asked) }, "Ask again") : null);
}

function classesCard({ picture, answer, index }, two) {
  const { predictions, adversarial } = answer.results[0];
  const rows = predictions.map(({ label, probability }, n) => {
    const bar = h("i", { class: "bar" });
    bar.style.width = `${Math.max(0.4, 100 * probability)}%`;
    return h("tr", { class: n === 0 ? "best" : null },
      h("th", { scope: "row" }, label), h("td", { class: "number" }, words.percent(probability)), h("td", { class: "track", "aria-hidden": "true" }, bar));
  });
  const title = two ? h("h3", {}, key(adversarial.verdict, index), `Classes: ${picture.name}`) : h("h3", {}, "Classes");
  return h("section", { class: "card classes", "aria-label": `Classes of ${picture.name}` }, title,
    h("table", {},
      h("thead", { class: "unseen" }, h("tr", {}, h("th", { scope: "col" }, "Class"), h("th", { scope: "col" }, "Probability"), h("td", {}))),
      h("tbody", {}, rows.shift(), ...rows)));
}

function legend(answered, text) {
  return h("ul", { class: "legend" }, ...answered.map(({ picture, answer, index }) => {
    const { adversarial } = answer.results[0];
    return h("li", {}, key(kindOf(answered, index), index), text(picture, adversarial, index));
  }));
}

function kindOf(answered, index) {
  // Marks take the colour of their verdict; a second one of the same verdict takes that of the ink.
  const verdict = answered.find((outcome) => outcome.index === index).answer.results[0].adversarial.verdict;
  const same = answered.length === 2 && answered[0].answer.results[0].adversarial.verdict === answered[1].answer.results[0].adversarial.verdict;
  return same && index === 1 ? "ink" : verdict;
}

function gaugeCard(answered, plot) {
  const { adversarial } = answered[0].answer.results[0];
  const points = [adversarial.thresholds.suspicious, adversarial.thresholds.adversarial];
  const thresholds = ["suspicious", "adversarial"].map((name) => ({
    score: adversarial.thresholds[name],
    shown: `${name} above ${adversarial.thresholds[name].toPrecision(3)}`,
    note: `${words.rate(adversarial.target_fpr[name])} of clean pictures`,
  }));
  const marks = answered.map(({ answer, index }) => ({ score: answer.results[0].adversarial.score, kind: kindOf(answered, index), index }));
  const label = `Scores on a scale of log-odds. ${thresholds.map((t) => `${t.shown} (${t.note})`).join("; ")}. ${answered
    .map(({ picture, answer }) => `${picture.name}: ${words.score(answer.results[0].adversarial.score, points)}`).join("; ")}.`;
  return h("section", { class: "card wide", "aria-label": "Adversarial score" },
    h("h3", {}, "Adversarial score"),
    legend(answered, (picture, judged) => `${picture.name}: ${words.score(judged.score, points)}`),
    plot(gauge(marks, thresholds, label)),
    h("p", { class: "fine" },
      "The scale is in log-odds: equal steps multiply the odds. Nearly all scores lie close to 0 or to 1, and so do the thresholds; an even scale would show them as one."));
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
  const away = parts.map((part, n) => values.map((picture) => distance(picture[n], part)));
  const figures = parts.map((part, n) => {
    const label = `${part.name}: ${comparable.map(({ picture }, k) => `${picture.name} is ${away[n][k]} standard deviations from the clean mean`).join("; ")}.`;
    const series = comparable.map(({ index }, k) => ({ kind: kindOf(answered, index), values: values[k][n] }));
    return h("li", {},
      h("p", {}, h("span", {}, part.name),
        h("span", { class: "aways" }, ...comparable.map(({ index }, k) => h("b", { class: kindOf(answered, index) }, `${away[n][k]} σ`)))),
      plot(omega(part, series, range, label), "chart plot"));
  });
  return h("section", { class: "card wide", "aria-label": "Regulation signals" },
    h("h3", {}, "Regulation signals, beside the model’s clean reference"),
    h("ul", { class: "legend" },
      h("li", {}, h("i", { class: "key line" }), `mean of ${model.reference.images.toLocaleString("en")} clean pictures; channels sorted by it`),
      ...comparable.map(({ picture, index }) => h("li", {}, key(kindOf(answered, index), index), picture.name))),
    h("ul", { class: "omegas" }, ...figures),
    h("p", { class: "fine" },
      "Omega is the weight that the network gives each of its filters for this picture. σ is how far a picture lies from the mean, " +
      "averaged over channels, in standard deviations of the clean pictures. The verdict comes from the score alone."));
}

function distance(values, part) {
  const sum = values.reduce((total, value, k) => total + Math.abs(value - part.mean[k]) / Math.max(part.std[k], 1e-6), 0);
  const mean = sum / values.length;
  return mean < 10 ? mean.toFixed(1) : String(Math.round(mean));
}

function doneCard({ picture, answer, took, model, index }, two) {
  const { image, adversarial } = answer.results[0];
  const { decode, queue, inference, total } = answer.timing_ms;
  const stages = [["decode", decode], ["queue", queue], ["inference", inference], ["rest", Math.max(0, total - decode - queue - inference)]];
  const bar = h("div", { class: "stages", "aria-hidden": "true" }, ...stages.map(([name, value]) => {
    const part = h("i", { class: name });
    part.style.flexGrow = String(Math.max(value, 0.001));
    return part;
  }));
  const title = two ? h("h3", {}, key(adversarial.verdict, index), `Done to ${picture.name}`) : null;
  const facts = h("dl", { class: "facts" },
    h("dt", {}, "File"), h("dd", {}, `${image.format}, ${image.width} × ${image.height}, ${bytes(picture.blob.size)}`),
    h("dt", {}, "Prepared"), h("dd", {}, words.preprocessing(image, model.size)),
    h("dt", {}, "Calibrated"), h("dd", {}, words.calibration(adversarial, image, model.size)),
    h("dt", {}, "Model"), h("dd", {}, `${answer.model.name}, version ${answer.model.version}`),
    h("dt", {}, "Request"), h("dd", {}, h("code", {}, answer.request_id)));
  const times = h("div", {},
    bar,
    h("ul", { class: "legend" }, ...stages.map(([name, value]) => h("li", {}, h("i", { class: `key ${name}` }), `${name} ${words.milliseconds(value)}`))),
    h("p", { class: "fine" }, `In the server ${words.milliseconds(total)}; seen from this page ${words.milliseconds(took)}.`));
  if (two) return h("section", { class: "card", "aria-label": `Preparation and times of ${picture.name}` }, title, facts, times);
  return h("div", { class: "split wide" },
    h("section", { class: "card", "aria-label": "Preparation" }, h("h3", {}, "What was done to it"), facts),
    h("section", { class: "card", "aria-label": "Times" }, h("h3", {}, "Where the time went"), times));
}

const bytes = (n) => (n < 10_000 ? `${n.toLocaleString("en")} bytes` : n < 1e6 ? `${Math.round(n / 1000)} kB` : `${(n / 1e6).toFixed(1)} MB`);

// --- the models and the last minutes --------------------------------------------------------------------------------

function showModels() {
  const several = models.length > 1;
  const chosen = $("model").value;
  $("model").hidden = $("model-label").hidden = !several;
  $("model-name").hidden = several;
  if (models.length === 0) {
    $("model-name").textContent = "The model is being loaded.";
    return;
  }
  $("model-name").textContent = `${models[0].name}, version ${models[0].version}`;
  $("model-hash").textContent = models.map((m) => `${m.name} version ${m.version}: sha256 ${m.sha256.slice(0, 12)}`).join(" · ");
  $("model").replaceChildren(
    h("option", { value: "" }, `whichever serves ${models[0].name}`),
    ...models.map((m, k) => h("option", { value: k }, `${m.name}, version ${m.version}`)));
  $("model").value = chosen && models[Number(chosen)] ? chosen : "";
}

$("model").addEventListener("change", () => { if (asked.length) ask(asked); });

let paused = false;
let polling = 0;

async function pollRecent() {
  clearTimeout(polling);
  polling = setTimeout(pollRecent, 1000 * POLL_SECONDS);
  if (paused || document.hidden) return;
  try {
    const { bin_seconds, verdicts, counts } = await fetchJson("page/recent.json");
    const told = words.recent(counts, verdicts, models[0]?.thresholds);
    $("recent-words").textContent = told;
    responsive($("recent-chart"), strip(counts, verdicts, bin_seconds, told));
  } catch {
    $("recent-words").textContent = "The server could not be reached.";
  }
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) pollRecent();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) pollRecent(); });

await loadModels();
showExamples();
pollRecent();
