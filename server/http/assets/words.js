// Every sentence that depends on an answer. Nothing here touches the document.

export function score(value, thresholds = []) {
  // Three digits that count: of the score, or near 1 of what is missing to 1. In full where they would carry it
  // across a threshold.
  const missing = value > 0.5 ? 1 - value : value;
  if (missing <= 0) return String(value);
  const digits = Math.max(2, Math.min(12, 2 - Math.floor(Math.log10(missing))));
  const rounded = value.toFixed(digits);
  return thresholds.some((t) => Number(rounded) > t !== value > t) ? String(value) : rounded;
}

// Whoever is not told numbers is told one of five levels, or nothing.
const inWords = (level) => level?.replace("-", " ") ?? "";

export function scored({ score: value, score_level: level, thresholds }) {
  return value === undefined ? inWords(level) : score(value, [thresholds.suspicious, thresholds.adversarial]);
}

export function likely({ probability, probability_level: level }) {
  return probability === undefined ? inWords(level) : percent(probability);
}

export function percent(share) {
  if (share > 0 && share < 0.001) return `<\u00a00.1\u00a0%`;
  return `${(100 * share).toFixed(share >= 0.9995 || share === 0 ? 0 : 1)}\u00a0%`;
}

export function rate(share) {
  return `${Number((100 * share).toPrecision(2))}\u00a0%`;
}

export function milliseconds(value) {
  return `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : Math.round(value)}\u00a0ms`;
}

export const VERDICT = { clean: "Clean", suspicious: "Suspicious", adversarial: "Adversarial" };

// Who says the class in each operating mode, in one line.
export const MODE = {
  auto: "Both branches say the class, weighted by what the detector makes of the image.",
  robust: "The adversarial branch alone says the class: there is no detector to fool, and clean images are misnamed more often.",
  natural: "The natural branch alone says the class: an attack on it is flagged at best.",
};

export function meaning({ verdict, target_fpr: targets, calibrated }) {
  // How many clean images are flagged too is known of the thresholds' own kinds of images alone.
  const among = (name, words) => (calibrated && targets ? ` Of clean images, about 1 in ${Math.round(1 / targets[name])} ${words}.` : "");
  switch (verdict) {
    case "clean":
      return "No known trick was seen. That is no proof: an attacker who knows this detector can get past it.";
    case "suspicious":
      return `Worth a second look.${among("suspicious", "scores this high or higher")}`;
    default:
      return (
        "It looks like an image made to fool a classifier: do not rely on its class." +
        among("adversarial", "is flagged like this too")
      );
  }
}

export function calibration({ calibrated, domain, why }) {
  const of = domain ? `: it is one of the domain “${domain}” that they were set on` : "";
  return calibrated
    ? `The thresholds speak for this image${of}.`
    : `The thresholds were not set on images like this one (${why}): take the verdict as a hint.`;
}

export function chance({ probability, prior }) {
  // P(attacked), and what it depends on.
  return `If ${rate(prior)} of all images were attacked, ${percent(probability)} of those that score like this one would be.`;
}

export function noClass({ decision, adversarial }) {
  // Why a policy leaves the class out.
  return decision === "withheld"
    ? `No class: this server gives none to an image whose verdict is ${adversarial.verdict}.`
    : "No class: this server gives none to an image that no threshold speaks for.";
}

export function preprocessing(facts, size) {
  const { width, height, resized, format } = facts;
  if (!resized) {
    return format === "JPEG"
      ? `Already ${size} × ${size}: neither cropped nor scaled.`
      : `Already ${size} × ${size}: its pixels went in untouched.`;
  }
  const short = Math.min(width, height);
  const cropped = width === height ? "" : `Cropped to the centre square of ${short} × ${short}, then `;
  const scaled = `scaled ${short > size ? "down" : "up"} to ${size} × ${size}.`;
  return cropped ? cropped + scaled : scaled.replace("s", "S");
}

const ERRORS = {
  "unsupported-media": "That is not a PNG, JPEG or WebP image.",
  "undecodable-image": "The image is broken: it is cut short or damaged.",
  "image-too-large": "The image has too many pixels.",
  "image-too-small": "The image is too small.",
  "image-rejected": "The server does not answer images like this one.",
  "animated-image": "The image is animated: there is no telling which of its frames is meant.",
  "body-too-large": "The file is too large.",
  "missing-image": "The file is empty.",
  "unknown-model": "The chosen model is no longer there.",
  "unknown-mode": "The model that answers has no such operating mode.",
  "not-ready": "The model is still being loaded.",
  "queue-full": "The server has its hands full.",
  "deadline-exceeded": "The answer took too long.",
  "engine-unavailable": "What runs the model cannot be reached.",
  "engine-fault": "The model failed on this image. That is never called clean.",
  internal: "Something went wrong in the server.",
};
const BY_STATUS = {
  401: "The server wants a key that it knows.",
  403: "This key does not allow that.",
  429: "Too many questions in a short time.",
};

export function problem(document, retryAfter) {
  // A problem document (RFC 9457), or {status: 0} where no answer came, to a title, further sentences, and whether
  // asking again can help.
  if (document.status === 0) {
    return { title: "The server could not be reached.", said: "", again: true };
  }
  const slug = String(document.type || "").replace("urn:awnet:problem:", "");
  const title = ERRORS[slug] || BY_STATUS[document.status] || document.title || `The server answered ${document.status}.`;
  const detail = document.detail ? `The server said: ${document.detail}.` : "";
  const again = [429, 503, 504].includes(document.status);
  const wait = again && retryAfter ? ` Try again in ${retryAfter === "1" ? "a second" : `${retryAfter} seconds`}.` : "";
  return { title, said: detail + wait, again };
}

export function difference({ most, share, times }) {
  if (most === 0) return "The two images are the same, pixel for pixel.";
  return `${percent(share)} of the pixels differ, none by more than ${most} of 255 levels in any colour. Shown ${times} times stronger; grey is unchanged.`;
}

export function spoken(name, answer) {
  const { adversarial, predictions: [best] } = answer.results[0];
  const given = [adversarial.verdict, scored(adversarial) && `score ${scored(adversarial)}`].filter(Boolean).join(", ");
  const class_ = best ? ["most likely " + best.label, likely(best)].filter(Boolean).join(", ") : "no class";
  return `${name}: ${given}; ${class_}.`;
}

export function recent(bins, names, thresholds) {
  const sums = names.map((_, k) => bins.reduce((sum, bin) => sum + bin[k], 0));
  const all = sums.reduce((a, b) => a + b, 0);
  if (all === 0) return "No image was judged in the last five minutes.";
  const of = Object.fromEntries(names.map((name, k) => [name, sums[k]]));
  const flagged = (of.suspicious + of.adversarial) / all;
  const expected = thresholds
    ? [` (${rate(thresholds.suspicious.fpr)} expected if all are clean)`, ` (${rate(thresholds.adversarial.fpr)})`]
    : ["", ""];
  return (
    `${all} ${all === 1 ? "image" : "images"}: ${percent(flagged)} at least suspicious${expected[0]}, ` +
    `${percent(of.adversarial / all)} adversarial${expected[1]}.`
  );
}
