// The verdicts of the last minutes, everybody's, asked for again and again until that is paused.

import { responsive, strip } from "./charts.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const POLL_SECONDS = 5;

export function watchRecent(fetchJson, thresholds) {
  // `thresholds` gives those of the model, {} where none is known yet, null while a key is asked for. Returns what asks
  // at once.
  let paused = false;
  let polling = 0;

  async function poll() {
    clearTimeout(polling);
    if (!thresholds()) {
      $("recent-words").textContent = "Not told without a key.";
      return;
    }
    polling = setTimeout(poll, 1000 * POLL_SECONDS);
    if (paused || document.hidden) return;
    try {
      const { bin_seconds, verdicts, counts } = await fetchJson("page/recent.json");
      const told = words.recent(counts, verdicts, thresholds());
      $("recent-words").textContent = told;
      responsive($("recent-chart"), strip(counts, verdicts, bin_seconds, told));
    } catch {
      $("recent-words").textContent = thresholds() ? "The server could not be reached." : "Not told without a key.";
    }
  }

  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    if (!paused) poll();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  return poll;
}
