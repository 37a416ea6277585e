// The page: what was asked, what was answered, and how both are shown.

import { element as h } from "./charts.js";
import { onFiles } from "./files.js";
import * as key from "./key.js";
import { difference, smaller } from "./pixels.js";
import { watchRecent } from "./recent.js";
import { showReport } from "./report.js";
import { stripOf } from "./several.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const MOST_CLASSES = 10;
const MOST_IMAGES = 24;

let models = [];
let defaultMode = "auto";
let visitor = { answers: "exact", signals: true }; // how much the server tells this visitor
let mostBytes = Infinity; // of a file that it takes
let locked = false; // it wants a key
let gone = false; // nobody answered when it was asked last
let asking = null; // the AbortController of what was asked last; older answers are dropped
let asked = [];

// --- the server -----------------------------------------------------------------------------------------------------

async function fetchJson(path) {
  const response = await fetch(path, { headers: key.headers() }).catch((error) => {
    gone = true;
    throw error;
  });
  gone = false;
  if (response.ok) return response.json();
  const { detail } = await response.json().catch(() => ({}));
  locked = key.refused(response.status, detail);
  throw new Error(`${path}: ${response.status}`);
}

let loading = 0;

async function loadModels() {
  clearTimeout(loading);
  try {
    ({ models, default_mode: defaultMode, caller: visitor, max_body_bytes: mostBytes } = await fetchJson("page/model.json"));
    locked = false;
    key.known(visitor);
  } catch {
    models = [];
  }
  $("drop-locked").hidden = !locked;
  if (models.length === 0 && !locked) loading = setTimeout(loadModels, 2000);
  showModels();
  showModes();
}

// The model that is to answer, as far as that is known: any version that serves may, and mostly it is the newest.
const chosenModel = () => models[Number($("model").value || 0)];

async function predict(image, signal) {
  // Asks about the file as it is, or where that is more than is taken about a smaller copy. Returns {answer, took, copy}
  // or {problem}.
  let copy = image.blob.size > mostBytes ? await smaller(image.blob, mostBytes) : null;
  let told = await send(copy?.blob ?? image.blob, image.name, signal);
  if (!copy && told.status === 413) {
    copy = await smaller(image.blob, Math.min(mostBytes, image.blob.size - 1));
    if (copy) told = await send(copy.blob, image.name, signal);
  }
  return { ...told, copy };
}

async function send(blob, name, signal) {
  // The bytes with their own content type.
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
  const file = { name, type: blob.type, online: navigator.onLine };
  const started = performance.now();
  try {
    const response = await fetch(`predict?${query}`, {
      method: "POST",
      body: blob,
      headers: key.headers({ "content-type": blob.type || "application/octet-stream" }),
      signal,
    });
    const took = performance.now() - started;
    const document = await response.json().catch(() => ({}));
    if (response.ok) return { answer: document, took };
    key.refused(response.status, document.detail);
    const { status } = response;
    const id = document.request_id || response.headers.get("x-request-id");
    const problem = words.problem({ ...document, status }, response.headers.get("retry-after"), file);
    return { problem: { ...problem, id }, status };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { problem: words.problem({ status: 0 }, null, file) };
  }
}

async function ask(images, made = null) {
  // images: [{name, blob}], of which two are compared, and of more each is shown alone; made: how the second was made
  // of the first.
  asking?.abort();
  const mine = (asking = new AbortController());
  const started = setTimeout(() => busy(true), 150); // an answer that comes at once should not flicker
  const before = asked;
  asked = images.map((image) => ({ ...image, url: URL.createObjectURL(image.blob) }));
  asked.made = made;
  const outcomes = asked.map((image) => ({ image }));
  const several = asked.length > 2 ? showSeveral(outcomes) : null;
  if (!several) $("strip").replaceChildren();
  try {
    for (const [k, image] of asked.entries()) { // one by one: else each waits for the other, and the times show it
      outcomes[k] = { image, ...(await predict(image, mine.signal)) };
      if (outcomes[k].answer && !modelOf(outcomes[k].answer)) await loadModels(); // the server has loaded another version since
      several?.(k);
    }
    const changed = await difference(asked);
    if (asking !== mine) return;
    asking = null;
    if (several) say(words.counted(outcomes));
    else show(outcomes, { changed, made });
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    if (several && asking === null) {
      for (const [k, image] of asked.entries()) {
        outcomes[k] = outcomes[k].answer ? outcomes[k] : { image, problem: words.STOPPED };
        several(k);
      }
    }
    return;
  } finally {
    clearTimeout(started);
    if (asking === mine || asking === null) busy(false);
    for (const image of before) URL.revokeObjectURL(image.url);
  }
  pollRecent();
}

let tabs = null; // the strip of several images

function showSeveral(outcomes) {
  // Returns what is to be called with the place of each outcome as it comes.
  let selected = 0;
  const draw = () => {
    const outcome = outcomes[selected];
    if (outcome.answer || outcome.problem) render([outcome], { again: () => askAgain(selected) });
    else $("report").replaceChildren(h("div", { class: "empty" }, h("p", {}, `${outcome.image.name} is waiting for its answer.`)));
  };
  const update = (k) => {
    tabs.update(k, outcomes[k]);
    if (k === selected) draw();
  };
  const askAgain = async (k) => {
    outcomes[k] = { image: outcomes[k].image, ...(await predict(outcomes[k].image)) };
    update(k);
  };
  tabs = stripOf(outcomes.map(({ image }) => image), $("report"), (k) => {
    selected = k;
    draw();
  });
  $("strip").replaceChildren(tabs.element);
  $("report").setAttribute("role", "tabpanel");
  tabs.select(0);
  reveal();
  return update;
}

const modelOf = (answer) =>
  models.find((m) => m.name === answer.model.name && m.version === answer.model.version && m.sha256 === answer.model.sha256);

// --- asking ---------------------------------------------------------------------------------------------------------

function take(files) {
  const images = [...files].slice(0, MOST_IMAGES).map((file) => ({ name: file.name || "pasted image", blob: file }));
  if (images.length === 0) {
    say("There is no image in that.");
    return;
  }
  press(null);
  ask(images);
  if (files.length > MOST_IMAGES) $("limit-words").textContent = `Only the first ${MOST_IMAGES} of ${files.length} images are asked about.`;
  else $("limit-words").textContent = "";
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
    const problem = words.problem({ status: 0 }, null, { online: navigator.onLine });
    $("strip").replaceChildren();
    show([{ image: { name: example.name }, problem }], { again: () => takeExample(example, button) });
    return;
  }
  if (button.getAttribute("aria-pressed") === "true") await ask(images, twin === "both" ? example.made : null); // else another was taken meanwhile
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

onFiles(take);

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

function render(outcomes, { changed = null, made = null, again = () => ask(asked, asked.made) } = {}) {
  // outcomes: [{image, answer, took, copy} or {image, problem}], one or two.
  const known = outcomes.map((outcome) => ({ ...outcome, model: outcome.answer && modelOf(outcome.answer) }));
  showReport($("report"), known, { changed, made, again });
}

function show(outcomes, options) {
  $("report").removeAttribute("aria-labelledby");
  $("report").removeAttribute("role");
  render(outcomes, options);
  say(outcomes.map(({ image, answer, problem }) => (answer ? words.spoken(image.name, answer) : `${image.name}: ${problem.title}`)).join(" "));
  reveal();
}

function reveal() {
  const { top } = $("answer").getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.6) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("answer").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  }
}

document.addEventListener("keydown", (event) => {
  // Escape: stop asking; or from the details back to their image in the strip, or to the choice of one.
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (asking) {
    asking.abort();
    asking = null;
    busy(false);
    say("Stopped.");
  } else if ($("report").contains(document.activeElement) && $("strip").firstChild) {
    tabs.focus();
  } else if ($("answer").contains(document.activeElement)) {
    $("file").focus();
  }
});

// --- the models ----------------------------------------------------------------------------------------------------

function showModels() {
  const several = models.length > 1;
  const chosen = $("model").value;
  $("model").hidden = $("model-label").hidden = !several;
  $("model-name").hidden = several;
  if (models.length === 0) {
    $("model-name").textContent = locked ? "" : gone ? "The server cannot be reached; trying again." : "The model is being loaded.";
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
      if (asked.length) ask(asked, asked.made);
    });
    return h("label", {}, radio, h("span", {}, mode));
  }));
  $("mode-words").textContent = words.MODE[chosen];
}

$("model").addEventListener("change", () => {
  showModes();
  if (asked.length) ask(asked, asked.made);
});

const pollRecent = watchRecent(fetchJson, () => (locked ? null : (models[0]?.thresholds ?? {})));

key.onTaken(async () => {
  await loadModels();
  pollRecent();
  if (!locked && asked.length) ask(asked, asked.made);
  return !locked;
});
await loadModels();
showExamples();
pollRecent();
