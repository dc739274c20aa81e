// The four views, by the address after #, and the keyboard.
const VIEWS = { gallery: "g", compare: "c", vote: "b", runs: "t" };

function showView() {
  const wanted = location.hash.slice(1), view = wanted in VIEWS ? wanted : "gallery";
  for (const name of Object.keys(VIEWS)) $(name).hidden = name !== view;
  document.querySelectorAll("nav a").forEach(link => {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  $("transport").hidden = view === "runs";
  if (view === "compare") drawStage();
  if (view === "vote") drawVote();
  else { showing.forEach(unwatch); showing = []; }
}

function go(view) {
  location.hash = view;
  showView(); // at once: the browser tells of a new address only later
}

function toggle(id) {
  $(id).checked = !$(id).checked;
  $(id).dispatchEvent(new Event("change"));
}

function faster(way) {
  const speeds = [...$("speed").options].map(option => Number(option.value));
  setClock({ speed: speeds[clamp(speeds.indexOf(clock.speed) + way, 0, speeds.length - 1)] });
}

const KEYS = {
  " ": togglePlay,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Home: () => setClock({ playing: false }, 0),
  "-": () => faster(-1),
  "+": () => faster(1),
  "=": () => faster(1),
  r: () => toggle("loop"),
  s: () => toggle("smooth"),
  "/": () => { go("gallery"); $("search").focus(); },
  "?": () => $("keys").showModal(),
};
const OF_VIEW = {
  compare: { l: () => toggle("loupe"), d: () => toggle("difference") },
  vote: { u: undo, ...Object.fromEntries(Object.keys(CHOICES).map(key => [key, () => session && showing.length && vote(key)])) },
};
const LOUPE = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", event => {
  const at = event.target, typed = at.matches("input:not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (typed) {
    if (event.key === "Escape") at.blur();
    return;
  }
  if (event.key === " " && at.matches("button, a, summary, input")) return; // presses it
  const view = Object.keys(VIEWS).find(name => !$(name).hidden);
  const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let act = OF_VIEW[view]?.[letter] ?? KEYS[letter];
  if (event.shiftKey && LOUPE[event.key]) act = () => moveLoupe(...LOUPE[event.key]);
  for (const [name, key] of Object.entries(VIEWS)) if (!act && key === letter) act = () => go(name);
  if (!act || (event.repeat && OF_VIEW.vote[letter])) return; // a key held down is one vote
  event.preventDefault();
  act();
});

$("help").onclick = () => $("keys").showModal();
window.addEventListener("hashchange", showView);
setClock({ playing: !matchMedia("(prefers-reduced-motion: reduce)").matches }, 0);
showView();
resize();
