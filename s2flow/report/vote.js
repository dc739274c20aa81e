// Blind preference: pairs of clips of one prompt and seed by two runs, in random order, sides random,
// nothing said of where they come from until the end. Every vote is kept in localStorage at once, so a
// reload loses nothing; "Save votes" hands out the JSON file that `python -m s2flow.preferences` reads.
const STORED = `s2flow votes ${data.title} ${location.pathname}`;
const CHOICES = { 1: "left", 2: "right", 0: "tie" };
const places = new Map(rows.map(row => [row.key, row]));
let session = stored(), storable = true, shownAt = 0, showing = [];

function stored() {
  try {
    const found = JSON.parse(localStorage.getItem(STORED));
    return found && Array.isArray(found.pairs) && Array.isArray(found.votes) ? found : null;
  } catch {
    return null;
  }
}

function keep() {
  try {
    if (session) localStorage.setItem(STORED, JSON.stringify(session));
    else localStorage.removeItem(STORED);
    storable = true;
  } catch {
    storable = false; // said on the page
  }
}

// mulberry32: a seeded source of numbers in [0, 1), so that a file says how its pairs were drawn
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, random) {
  const mixed = [...list];
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [mixed[i], mixed[j]] = [mixed[j], mixed[i]];
  }
  return mixed;
}

const playable = (row, run) => row.cells.find(cell => cell.run !== null && data.runs[cell.run] === run && cell.src && !cell.note);

// Every two runs equally often, as far as their common clips go; prompts and sides at random.
function drawPairs(runs, count, seed) {
  const random = randomFrom(seed), queues = [];
  runs.forEach((a, i) => runs.slice(i + 1).forEach(b => {
    queues.push(shuffled(rows.filter(row => playable(row, a) && playable(row, b)), random).map(row => ({ row, a, b })));
  }));
  const pairs = [];
  while (pairs.length < count && queues.some(queue => queue.length)) {
    for (const queue of shuffled(queues, random)) {
      if (pairs.length === count || !queue.length) continue;
      const { row, a, b } = queue.pop(), [left, right] = random() < .5 ? [a, b] : [b, a];
      pairs.push({ key: row.key, left: left.id, right: right.id });
    }
  }
  return pairs;
}

// -- before ----------------------------------------------------------------------------------------

function drawStart() {
  const boxes = data.runs.map(run => ({ run, box: h("input", { type: "checkbox", checked: runShown(run), autocomplete: "off" }) }));
  const voter = h("input", { id: "voter", placeholder: "optional", maxLength: 80, autocomplete: "off" });
  const count = h("input", { id: "pairs", type: "number", min: 1, max: 9999, value: 40, autocomplete: "off" });
  const said = h("p", { className: "soft", "aria-live": "polite" }), start = h("button", { id: "start", className: "strong" }, "Start");
  const possible = () => drawPairs(boxes.filter(({ box }) => box.checked).map(({ run }) => run), Infinity, 1).length;
  const say = () => {
    const n = possible();
    start.disabled = !n || !(Number(count.value) >= 1);
    said.textContent = n ? `${n} pair${n === 1 ? "" : "s"} can be drawn from these runs.` : "Tick at least two runs that share a prompt and a seed.";
  };
  boxes.forEach(({ box }) => { box.onchange = say; });
  count.oninput = say;
  start.onclick = () => {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    const runs = boxes.filter(({ box }) => box.checked).map(({ run }) => run);
    session = {
      format: "s2flow votes 1", title: data.title, session: [...crypto.getRandomValues(new Uint8Array(8))].map(b => b.toString(16).padStart(2, "0")).join(""),
      voter: voter.value.trim(), started: new Date().toISOString(), seed, unplayable: 0,
      runs: Object.fromEntries(runs.map(run => [run.id, { label: run.label, method: run.method, recipe: run.recipe }])),
      pairs: drawPairs(runs, Math.floor(Number(count.value)), seed), votes: [],
    };
    keep();
    drawVote();
  };
  const fields = h("div", { className: "fields" }, h("label", {}, "Pairs ", count), h("label", {}, "Your name or initials ", voter));
  const list = h("fieldset", { className: "runs" }, h("legend", {}, "Runs that are compared"),
    boxes.map(({ run, box }) => h("label", {}, box, h("span", { dir: "auto" }, `${run.label} · ${run.id}`))));
  show($("vote"), h("h2", {}, "Blind preference"),
    h("p", { className: "soft" }, "You see two clips of one prompt and seed, in random order and on random sides, and not which run made them. ",
      "Keys: 1 left, 2 right, 0 tie, u undo. Every vote is kept in this browser; at any time you can save them as a file, which python -m s2flow.preferences reads."),
    list, fields, said, start);
  say();
}

// -- during ----------------------------------------------------------------------------------------

function drawVote() {
  showing.forEach(unwatch);
  showing = [];
  const over = () => session.votes.length >= session.pairs.length;
  if (!session) $("transport").hidden = true;
  if (!session) return drawStart();
  while (!over() && !currentPair()) dropPair();
  $("transport").hidden = over();
  if (over()) return drawEnd();
  const { row, cells } = currentPair(), done = session.votes.length, total = session.pairs.length;
  showing = cells.map((cell, i) => slotFor(cell, ["Left clip", "Right clip"][i]));
  const shape = Math.max(...cells.map(cell => cell.height / cell.width));
  showing.forEach(slot => {
    slot.style.aspectRatio = `1 / ${shape}`; // one size, whatever theirs: it would tell
    slot.addEventListener("broken", () => { dropPair(); drawVote(); });
    watch(slot);
  });
  const buttons = [["1", "Left"], ["0", "Tie"], ["2", "Right"]].map(([key, text]) => {
    const button = h("button", { className: "choice" }, `${text} `, h("kbd", {}, key));
    button.onclick = () => vote(key);
    return button;
  });
  show($("vote"), 
    h("div", { className: "bar" }, h("progress", { max: total, value: done, "aria-label": "Pairs voted" }), h("output", { id: "progress" }, `${done} of ${total}`), ...tools()),
    h("h2", { className: "asked" }, h("span", { dir: "auto" }, row.prompt)),
    h("div", { className: "pair" }, h("figure", {}, showing[0]), h("figure", {}, showing[1])),
    h("p", { className: "ask" }, "Which clip is better?"), h("div", { className: "choices" }, buttons), warning());
  shownAt = performance.now();
  setClock({ playing: true }, 0);
}

function currentPair() {
  const pair = session.pairs[session.votes.length], row = places.get(pair.key);
  if (!row) return null;
  const cells = [pair.left, pair.right].map(id => row.cells.find(cell => runOf(cell)?.id === id && cell.src));
  return cells.every(Boolean) ? { pair, row, cells } : null;
}

function dropPair() { // its clips are gone or do not play
  session.pairs.splice(session.votes.length, 1);
  session.unplayable += 1;
  keep();
}

function vote(key) {
  const { pair, row } = currentPair();
  if (!showing.every(slot => slot.classList.contains("ready"))) return; // nothing was seen yet
  session.votes.push({
    prompt: row.prompt, original: row.original, seed: row.seed, left: pair.left, right: pair.right,
    choice: CHOICES[key], seconds: Math.round(performance.now() - shownAt) / 1000, at: new Date().toISOString(),
  });
  keep();
  drawVote();
}

function undo() {
  if (!session || !session.votes.length) return;
  session.votes.pop();
  keep();
  drawVote();
}

function tools() {
  const back = h("button", { id: "undo", disabled: !session.votes.length }, "Undo ", h("kbd", {}, "u"));
  const save = h("button", { id: "save", disabled: !session.votes.length }, "Save votes");
  const over = h("button", { id: "over" }, "Start over");
  back.onclick = undo;
  save.onclick = saveVotes;
  over.onclick = () => {
    if (session.votes.length && !confirm(`Forget ${session.votes.length} vote(s) of this browser? Save them first if you need them.`)) return;
    session = null;
    keep();
    drawVote();
  };
  return [back, save, over];
}

const warning = () => (storable ? null : h("p", { className: "note" }, "This browser keeps nothing: save the votes before you leave the page."));

function saveVotes() {
  const { pairs, ...rest } = session;
  const file = new Blob([JSON.stringify({ ...rest, planned: pairs.length }, null, 1)], { type: "application/json" });
  const name = [session.voter.replace(/[^\p{L}\p{N}]+/gu, "-"), session.started.slice(0, 10), session.session.slice(0, 6)].filter(Boolean).join("_");
  const link = h("a", { href: URL.createObjectURL(file), download: `votes_${name}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// -- after -----------------------------------------------------------------------------------------

function drawEnd() {
  const points = new Map(Object.keys(session.runs).map(id => [id, { won: 0, tied: 0, lost: 0 }]));
  for (const { left, right, choice } of session.votes) {
    for (const [id, side] of [[left, "left"], [right, "right"]]) {
      points.get(id)[choice === "tie" ? "tied" : choice === side ? "won" : "lost"] += 1;
    }
  }
  const head = h("tr", {}, ["run", "id", "won", "tied", "lost"].map(name => h("th", {}, name)));
  const body = [...points].filter(([, p]) => p.won + p.tied + p.lost)
    .sort(([, a], [, b]) => b.won - b.lost - a.won + a.lost)
    .map(([id, p]) => h("tr", {}, h("td", {}, session.runs[id].label), h("td", {}, h("code", {}, id)), h("td", {}, String(p.won)), h("td", {}, String(p.tied)), h("td", {}, String(p.lost))));
  const gone = session.unplayable ? h("p", { className: "note" }, `${session.unplayable} pair(s) could not be shown.`) : null;
  show($("vote"), 
    h("div", { className: "bar" }, h("progress", { max: 1, value: 1 }), h("output", { id: "progress" }, `${session.votes.length} of ${session.pairs.length}`), ...tools()),
    h("h2", {}, "Done. Save the votes: the file is what counts."), h("p", { className: "soft" }, "Win rates with intervals: python -m s2flow.preferences votes.json"), gone,
    h("div", { className: "wide" }, h("table", {}, head, body)), warning());
}

window.addEventListener("storage", event => { // another tab of this page voted
  if (event.key !== STORED) return;
  session = stored();
  if (!$("vote").hidden) drawVote();
});
