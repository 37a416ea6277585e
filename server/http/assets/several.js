// Three images or more: a strip of them with their verdicts, as tabs; the one that is selected is shown below it.

import { element as h } from "./charts.js";
import { thumbnail } from "./pixels.js";
import { icon } from "./report.js";
import * as words from "./words.js";

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export function stripOf(images, panel, choose) {
  // {element, update(k, outcome), select(k), focus()}; `choose` is called with the place of the image that is selected.
  let selected = 0;
  const tabs = images.map((image, k) => {
    const canvas = h("canvas", { width: 1, height: 1, "aria-hidden": "true" });
    thumbnail(image.blob, canvas);
    return h("button", { type: "button", role: "tab", id: `tab-${k}`, "aria-controls": panel.id, onclick: () => select(k) },
      canvas, h("span", { class: "said" }, "waiting"), h("span", { class: "label" }), h("span", { class: "file" }, image.name));
  });
  const element = h("div", { class: "strip", role: "tablist", "aria-label": "The images that were asked about" }, ...tabs);

  function select(k, focus = false) {
    selected = k;
    tabs.forEach((tab, n) => {
      tab.setAttribute("aria-selected", String(n === k));
      tab.tabIndex = n === k ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", tabs[k].id);
    if (focus) tabs[k].focus();
    tabs[k].scrollIntoView({ block: "nearest", inline: "nearest" });
    choose(k);
  }

  element.addEventListener("keydown", (event) => {
    const last = tabs.length - 1;
    const to = event.key === "Home" ? 0 : event.key === "End" ? last : STEPS[event.key] && selected + STEPS[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select((to + tabs.length) % tabs.length, true);
  });

  function update(k, { answer, problem }) {
    const [, said, label] = tabs[k].children;
    const result = answer?.results[0];
    const verdict = result?.adversarial.verdict;
    tabs[k].className = verdict ?? (problem ? "unanswered" : "");
    said.replaceChildren(...(verdict ? [icon(verdict), words.VERDICT[verdict]] : [problem ? "No answer" : "waiting"]));
    label.textContent = result ? words.named(result, false) : "";
  }

  return { element, update, select, focus: () => tabs[selected].focus() };
}
