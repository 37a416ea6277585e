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

// Why no threshold speaks for an image, by the reason that the server gives.
const WHY = {
  resized: "It was scaled to what the model takes, and scaling changes the fine detail that the detector looks at.",
  lossy: "JPEG and WebP change the fine detail that the detector looks at.",
  "colour palette": "Its file holds a palette, so neighbouring colours were merged before.",
  "1-bit image": "Its file holds black and white alone.",
  "colour profile": "Its colours had to be converted by the profile in its file.",
  "few colours": "It has fewer colours than photographs: a drawing, a screenshot, text or an even area.",
  "more colours than reference images have": "Nearly every pixel has a colour of its own, as in noise.",
  "grey levels without any gap": "Its grey levels are more even than those of photographs.",
  "grey levels are missing": "Some grey levels are missing, as after stretching the contrast.",
  "grey levels are spread evenly": "Its grey levels are spread evenly, as in noise.",
  "grey levels are used unevenly": "Some grey levels are used far more than their neighbours, as after posterising or equalising.",
  "hardly any pixel differs from its neighbours": "It is very smooth, as after blurring, denoising or scaling up.",
  "most pixels differ from all their neighbours": "Nearly every pixel stands alone, as in noise.",
  "no pixel stands out": "It has hardly any edge.",
  "single pixels stand out": "Single pixels stand out, as by salt-and-pepper noise or in line drawings.",
  "no pixel's colour stands out": "Its colours are very even.",
  "the colour of single pixels stands out": "The colours of single pixels stand out, as by a sensor's noise.",
  "less fine detail than reference images have": "It is soft: blurred, strongly compressed or scaled up.",
  "more fine detail than reference images have": "It is full of fine detail: sharpened, noisy or scaled down without smoothing.",
  "less fine detail in colour than reference images have": "It has hardly any colour: a grey picture, or one whose colours were compressed.",
  "fine detail in colour, as of noise": "Its colours are noisy, as in the dark.",
};

export function calibration({ calibrated, domain, why }) {
  const of = domain ? `: it is one of the domain “${domain}” that they were set on` : "";
  return calibrated
    ? `The thresholds speak for this image${of}.`
    : `The thresholds were not set on images like this one (${why}): take the verdict as a hint.${WHY[why] ? ` ${WHY[why]}` : ""}`;
}

export const bytes = (n) => (n < 10_000 ? `${n.toLocaleString("en")} bytes` : n < 1e6 ? `${Math.round(n / 1000)} kB` : `${(n / 1e6).toFixed(1)} MB`);

const sized = ([width, height]) => `${width} × ${height}`;

export function shrunk({ from, to }) {
  return (
    `The server takes no file as large as this one, so this page sent a smaller copy, a JPEG of ${sized(to)} in place of ${sized(from)}. ` +
    "The verdict is about the copy: shrinking takes fine detail away, and with it most of what an attack adds."
  );
}

export const original = ({ from }, size) => `${sized(from)}, ${bytes(size)}; a smaller copy was sent`;

export function named(result, withShare = true) {
  // The class, for the first line of a verdict.
  const best = result.predictions[0];
  return best ? [best.label, withShare && likely(best)].filter(Boolean).join(" ") : "no class";
}

export const found = (result) => `${named(result)}, ${result.adversarial.verdict}`;

export function redTeam({ attack, eps, step, steps, surrogates, label, fooled }) {
  // How an example's twin was made, as terms and what there is to say.
  const onto = surrogates.join(" and ");
  return [
    ["Attack", `${attack}: ${steps} steps of gradient ascent on the loss, each of at most ${step} of 255 levels`],
    ["Budget", `eps ${eps}/255: no colour of any pixel is further than ${eps} levels from the original`],
    ["Made on", `${onto}, which had no part in the training of this model: the attacker has not seen it (transfer)`],
    ["There", ...fooled.map(([name, before, after]) => `${name}: ${before} → ${after}${before === label ? "" : ` (it is ${label})`}`)],
  ];
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

// Title, and what to do.
const SMALLER = "Take a smaller one, or save it again with less quality.";
const EXPORT = "Open it in a program that shows images and export it as PNG or JPEG.";
const LATER = "Wait a moment, then ask again.";
const OPERATOR = "Ask again; if it stays, tell whoever runs the server, with the id below.";
const ERRORS = {
  "unsupported-media": ["That is not a PNG, JPEG or WebP image.", EXPORT],
  "undecodable-image": ["The image is broken: it is cut short or damaged.", `Fetch it anew, or: ${EXPORT}`],
  "image-too-large": ["The image has too many pixels.", SMALLER],
  "image-too-small": ["The image is too small.", "Take a larger one: there is too little in it to judge."],
  "image-rejected": ["The server does not answer images like this one.", "That is the policy of whoever runs it: take another image, or ask them."],
  "animated-image": ["The image is animated: there is no telling which of its frames is meant.", "Save the frame that you mean as an image of its own."],
  "body-too-large": ["The file is too large.", SMALLER],
  "missing-image": ["The file is empty.", "Choose it anew: it may not have been downloaded yet."],
  "unknown-model": ["The chosen model is no longer there.", "Choose another at the top of the page."],
  "unknown-mode": ["The model that answers has no such operating mode.", "Choose another mode."],
  "rate-limited": ["Too many questions in a short time.", LATER],
  "repeated-queries": ["Nearly the same image was asked about too often.", "Wait, or ask about other images: attacks ask like this."],
  "queue-share-taken": ["Too many of your images are waiting already.", LATER],
  "too-many-connections-of-client": ["Too many connections from your address.", "Close other tabs of this page, then ask again."],
  "not-ready": ["The model is still being loaded.", LATER],
  "queue-full": ["The server has its hands full.", LATER],
  "deadline-exceeded": ["The answer took too long.", "Ask again, or take a smaller image."],
  "engine-unavailable": ["What runs the model cannot be reached.", OPERATOR],
  "engine-fault": ["The model failed on this image. That is never called clean.", OPERATOR],
  internal: ["Something went wrong in the server.", OPERATOR],
};
const BY_STATUS = {
  401: ["The server wants a key that it knows.", "Enter one above; the image is asked about again then."],
  403: ["This key does not allow that.", "Use another key."],
  413: ["The file is too large.", SMALLER],
  429: ["Too many questions in a short time.", LATER],
  503: ["The server cannot answer now.", LATER],
  504: ["The answer took too long.", LATER],
};
const OFFLINE = ["This device is offline.", "Connect it, then ask again."];
const GONE = ["The server could not be reached.", "See whether it still runs and whether this device reaches it, then ask again."];
export const STOPPED = { title: "Not asked about.", todo: "It was stopped before.", said: "", again: true };
const HEIC = ["HEIC photos are not taken.", "Export it as JPEG; on an iPhone, Settings, Camera, Formats, “Most Compatible” takes JPEG from now on."];

export function problem(document, retryAfter, { name = "", type = "", online = true } = {}) {
  // A problem document (RFC 9457), or {status: 0} where no answer came, to a title, what to do, further sentences, and
  // whether asking again can help. The file's name and type tell a photo that no browser opens.
  if (document.status === 0) {
    const [title, todo] = online ? GONE : OFFLINE;
    return { title, todo, said: "", again: true };
  }
  const slug = String(document.type || "").replace("urn:awnet:problem:", "");
  const heic = slug === "unsupported-media" && (/\.hei[cf]$/i.test(name) || /hei[cf]/.test(type));
  const [title, todo] = heic ? HEIC : (ERRORS[slug] ?? BY_STATUS[document.status] ?? [document.title || `The server answered ${document.status}.`, OPERATOR]);
  const again = [429, 503, 504].includes(document.status);
  const wait = again && retryAfter ? `Try again in ${retryAfter === "1" ? "a second" : `${retryAfter} seconds`}.` : "";
  return { title, todo: wait ? (todo === LATER ? wait : `${todo} ${wait}`) : todo, said: document.detail ? `The server said: ${document.detail}.` : "", again };
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

export function counted(outcomes) {
  // Of several images, for a screen reader.
  const all = outcomes.map(({ answer, problem }) => answer?.results[0].adversarial.verdict ?? (problem ? "not answered" : "waiting"));
  const kinds = [...new Set(all)].map((kind) => `${all.filter((other) => other === kind).length} ${kind}`);
  return `${all.length} images: ${kinds.join(", ")}.`;
}

export function recent(bins, names, thresholds) {
  const sums = names.map((_, k) => bins.reduce((sum, bin) => sum + bin[k], 0));
  const all = sums.reduce((a, b) => a + b, 0);
  if (all === 0) return "No image was judged in the last five minutes.";
  const of = Object.fromEntries(names.map((name, k) => [name, sums[k]]));
  const flagged = (of.suspicious + of.adversarial) / all;
  const expected = thresholds?.suspicious
    ? [` (${rate(thresholds.suspicious.fpr)} expected if all are clean)`, ` (${rate(thresholds.adversarial.fpr)})`]
    : ["", ""];
  return (
    `${all} ${all === 1 ? "image" : "images"}: ${percent(flagged)} at least suspicious${expected[0]}, ` +
    `${percent(of.adversarial / all)} adversarial${expected[1]}.`
  );
}
