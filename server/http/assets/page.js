// The page: what was asked, what was answered, and how both are shown.

import { element as h, responsive, strip } from "./charts.js";
import * as key from "./key.js";
import { difference, showReport } from "./report.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const POLL_SECONDS = 5;
const MOST_CLASSES = 10;

let models = [];
let defaultMode = "auto";
let visitor = { answers: "exact", signals: true }; // how much the server tells this visitor
let locked = false; // it wants a key
let asking = null; // the AbortController of what was asked last; older answers are dropped
let asked = [];

// --- the server -----------------------------------------------------------------------------------------------------

async function fetchJson(path) {
  const response = await fetch(path, { headers: key.headers() });
  if (response.ok) return response.json();
  const { detail } = await response.json().catch(() => ({}));
  locked = key.refused(response.status, detail);
  throw new Error(`${path}: ${response.status}`);
}

let loading = 0;

async function loadModels() {
  clearTimeout(loading);
  try {
    ({ models, default_mode: defaultMode, caller: visitor } = await fetchJson("page/model.json"));
    locked = false;
    key.known(visitor);
  } catch {
    models = [];
  }
  if (models.length === 0 && !locked) loading = setTimeout(loadModels, 2000);
  showModels();
  showModes();
}

// The model that is to answer, as far as that is known: any version that serves may, and mostly it is the newest.
const chosenModel = () => models[Number($("model").value || 0)];

async function predict(image, signal) {
  // The image's own bytes with its own content type. Returns {answer, took} or {problem}.
  const chosen = $("model").value ? models[Number($("model").value)] : null;
  const labels = chosenModel()?.labels.length ?? MOST_CLASSES;
  const query = new URLSearchParams();
  if (visitor.signals) query.set("signals", "all");
  if (visitor.answers !== "verdict") query.set("top_k", Math.min(MOST_CLASSES, labels));
  if (chosen) {
    query.set("model", chosen.name);
    query.set("version", chosen.version);
  }
  const mode = chosenMode();
  if (mode) query.set("mode", mode);
  const started = performance.now();
  try {
    const response = await fetch(`predict?${query}`, {
      method: "POST",
      body: image.blob,
      headers: key.headers({ "content-type": image.blob.type || "application/octet-stream" }),
      signal,
    });
    const took = performance.now() - started;
    const document = await response.json().catch(() => ({}));
    if (response.ok) return { answer: document, took };
    key.refused(response.status, document.detail);
    const id = document.request_id || response.headers.get("x-request-id");
    const problem = words.problem({ ...document, status: response.status }, response.headers.get("retry-after"));
    return { problem: { ...problem, id } };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { problem: words.problem({ status: 0 }) };
  }
}

async function ask(images) {
  // images: one, or two to compare: [{name, blob}]
  asking?.abort();
  const mine = (asking = new AbortController());
  const started = setTimeout(() => busy(true), 150); // an answer that comes at once should not flicker
  const before = asked;
  asked = images.map((image) => ({ ...image, url: URL.createObjectURL(image.blob) }));
  let answers;
  try {
    answers = [];
    for (const image of asked) answers.push(await predict(image, mine.signal)); // one by one: else each waits for the other, and the times show it
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  } finally {
    clearTimeout(started);
    for (const image of before) URL.revokeObjectURL(image.url);
  }
  const unknown = answers.some(({ answer }) => answer && !modelOf(answer));
  if (unknown) await loadModels(); // the server has loaded another version since
  const changed = await difference(asked);
  if (asking !== mine) return;
  busy(false);
  show(asked.map((image, k) => ({ image, ...answers[k] })), changed);
  pollRecent();
}

const modelOf = (answer) =>
  models.find((m) => m.name === answer.model.name && m.version === answer.model.version && m.sha256 === answer.model.sha256);

// --- asking ---------------------------------------------------------------------------------------------------------

function take(files) {
  const images = [...files].slice(0, 2).map((file) => ({ name: file.name || "pasted image", blob: file }));
  if (images.length === 0) {
    say("There is no image in that.");
    return;
  }
  press(null);
  ask(images);
  if (files.length > 2) say(`Only the first two of ${files.length} images are compared.`);
}

async function takeExample(example, button) {
  const twin = document.querySelector("input[name=twin]:checked").value;
  const wanted = twin === "both" ? ["clean", "attacked"] : [twin];
  press(button);
  let images;
  try {
    images = await Promise.all(wanted.map(async (kind) => {
      const response = await fetch(`page/${example[kind]}`);
      if (!response.ok) throw new Error(String(response.status));
      return { name: kind === "clean" ? example.name : `${example.name}, attacked`, blob: await response.blob() };
    }));
  } catch {
    const problem = words.problem({ status: 0 });
    show([{ image: { name: example.name }, problem }], null, () => takeExample(example, button));
    return;
  }
  if (button.getAttribute("aria-pressed") === "true") await ask(images); // else another was taken meanwhile
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
  const follow = () => { $("thumbs").dataset.twin = document.querySelector("input[name=twin]:checked").value; };
  for (const radio of document.querySelectorAll("input[name=twin]")) {
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

function show(outcomes, changed = null, again = () => ask(asked)) {
  // outcomes: [{image, answer, took} or {image, problem}], one or two.
  const known = outcomes.map((outcome) => ({ ...outcome, model: outcome.answer && modelOf(outcome.answer) }));
  showReport($("report"), known, changed, again);
  say(known.map(({ image, answer, problem }) => (answer ? words.spoken(image.name, answer) : `${image.name}: ${problem.title}`)).join(" "));
  const { top } = $("answer").getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.6) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("answer").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  }
}

// --- the models and the last minutes --------------------------------------------------------------------------------

function showModels() {
  const several = models.length > 1;
  const chosen = $("model").value;
  $("model").hidden = $("model-label").hidden = !several;
  $("model-name").hidden = several;
  if (models.length === 0) {
    $("model-name").textContent = locked ? "" : "The model is being loaded.";
    return;
  }
  $("model-name").textContent = `${models[0].name}, version ${models[0].version}`;
  $("model-hash").textContent = models.map((m) => `${m.name} version ${m.version}: sha256 ${m.sha256.slice(0, 12)}`).join(" · ");
  $("model").replaceChildren(
    h("option", { value: "" }, `whichever serves ${models[0].name}`),
    ...models.map((m, k) => h("option", { value: k }, `${m.name}, version ${m.version}`)));
  $("model").value = chosen && models[Number(chosen)] ? chosen : "";
}

const chosenMode = () => document.querySelector("input[name=mode]:checked")?.value;

function showModes() {
  // A choice only where the model has one; what was chosen stays chosen as long as it is there.
  const modes = chosenModel()?.modes ?? [];
  const before = chosenMode();
  const chosen = modes.includes(before) ? before : defaultMode;
  $("modes").hidden = modes.length < 2;
  $("mode").replaceChildren(...(modes.length < 2 ? [] : modes).map((mode) => {
    const radio = h("input", { type: "radio", name: "mode", value: mode });
    radio.checked = mode === chosen;
    radio.addEventListener("change", () => {
      $("mode-words").textContent = words.MODE[mode];
      if (asked.length) ask(asked);
    });
    return h("label", {}, radio, h("span", {}, mode));
  }));
  $("mode-words").textContent = words.MODE[chosen];
}

$("model").addEventListener("change", () => {
  showModes();
  if (asked.length) ask(asked);
});

let paused = false;
let polling = 0;

async function pollRecent() {
  clearTimeout(polling);
  if (locked) {
    $("recent-words").textContent = "Not told without a key.";
    return;
  }
  polling = setTimeout(pollRecent, 1000 * POLL_SECONDS);
  if (paused || document.hidden) return;
  try {
    const { bin_seconds, verdicts, counts } = await fetchJson("page/recent.json");
    const told = words.recent(counts, verdicts, models[0]?.thresholds);
    $("recent-words").textContent = told;
    responsive($("recent-chart"), strip(counts, verdicts, bin_seconds, told));
  } catch {
    $("recent-words").textContent = locked ? "Not told without a key." : "The server could not be reached.";
  }
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) pollRecent();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) pollRecent(); });

key.onTaken(async () => {
  await loadModels();
  pollRecent();
  if (!locked && asked.length) ask(asked);
  return !locked;
});
await loadModels();
showExamples();
pollRecent();
