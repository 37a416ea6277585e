// The visitor's key: asked for where the server wants one, kept for this tab alone, sent with whatever the page asks.

const $ = (id) => document.getElementById(id);
const STORED = "awnet-key";
const FORM = /^awnet_[A-Za-z0-9_-]{43}$/;

let key = stored();
let taken = () => {};

function stored() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return ""; // a browser that stores nothing: the key lasts as long as the page
  }
}

function keep(given) {
  key = given;
  try {
    if (key) sessionStorage.setItem(STORED, key);
    else sessionStorage.removeItem(STORED);
  } catch { /* see above */ }
}

export const headers = (others = {}) => (key ? { ...others, authorization: `Bearer ${key}` } : others);

export function onTaken(callback) {
  // `callback` is called with a new key in use, or with none.
  taken = callback;
}

export function refused(status, detail = "") {
  // The server has answered 401 or 403: ask for a key, or for another one.
  if (status === 401) {
    ask(key ? "The server does not know this key, or not any more." : "");
    keep("");
  } else if (status === 403) {
    ask(`This key is not enough${detail ? `: ${detail}` : ""}.`);
  } else {
    return false;
  }
  offer(false);
  return true;
}

export function known({ key: name, keys }) {
  // The server has answered: as whom it knows the visitor, and whether there are keys at all.
  offer(keys && !name);
  $("key-forget").hidden = !name;
  $("key-name").textContent = name ? `Known as ${name}.` : "";
  for (const link of document.querySelectorAll(".keyless")) link.hidden = keys; // a link takes no key along
}

function offer(on) {
  $("key-use").hidden = !on;
}

function ask(words) {
  const again = !$("key").hidden;
  $("key").hidden = false;
  for (const link of document.querySelectorAll(".keyless")) link.hidden = true;
  $("key-words").textContent = words;
  if (again && words && $("key").contains(document.activeElement)) $("key-value").select();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key-value").value.trim();
  if (!FORM.test(given)) {
    ask("A key begins with awnet_ and has 49 characters.");
    $("key-value").focus();
    return;
  }
  keep(given);
  $("key-words").textContent = "";
  taken().then((accepted) => {
    if (!accepted) {
      $("key-value").focus();
      return;
    }
    $("key-value").value = "";
    $("key").hidden = true;
    $("file").focus();
  });
});
$("key-use").addEventListener("click", () => {
  $("key-use").dataset.chosen = "true";
  ask("");
  $("key-value").focus();
});
document.addEventListener("keydown", (event) => {
  // Escape closes the form where the server does not insist on a key.
  if (event.key !== "Escape" || $("key").hidden || !$("key-use").dataset.chosen) return;
  event.preventDefault();
  delete $("key-use").dataset.chosen;
  $("key").hidden = true;
  offer(true);
  $("key-use").focus();
});
$("key-forget").addEventListener("click", () => {
  keep("");
  taken();
});
