// Rows of clips: a prompt and a seed, then the LR clip and the clip of each run. Rows are filled when they
// come near the view and emptied when they leave it, so that a page of thousands of clips stays light.
const rows = data.rows;
const chosen = new Map(); // "row/cell" -> { row, cell, name }, in the order of choice

// -- which runs are shown: those whose value is ticked in every group ----------------------------

const groups = [{ name: "method", of: run => run.method }];
for (const knob of data.knobs) groups.push({ name: knob, of: run => run.recipe[knob] ?? "—" });
groups.push({ name: "run", of: run => `${run.label} · ${run.id}` });
const unticked = new Map(groups.map(group => [group.name, new Set()]));
let lowShown = true;
const runShown = run => groups.every(group => !unticked.get(group.name).has(group.of(run)));
const cellShown = cell => (cell.run === null ? lowShown : runShown(data.runs[cell.run]));

function tickBox(text, on, changed) {
  const box = h("input", { type: "checkbox", checked: on, autocomplete: "off" });
  box.onchange = () => { changed(box.checked); filterRuns(); };
  return h("label", {}, box, h("span", { dir: "auto" }, text));
}

function drawKnobs() {
  const sets = groups.map(group => {
    const values = [...new Set(data.runs.map(group.of))];
    if (values.length < 2) return null;
    values.sort((a, b) => (group.name === "run" ? 0 : a - b || a.localeCompare(b, "en", { numeric: true })));
    const off = unticked.get(group.name);
    const boxes = values.map(value => tickBox(value, !off.has(value), on => (on ? off.delete(value) : off.add(value))));
    return h("fieldset", { className: group.name === "run" ? "runs" : "" }, h("legend", {}, group.name), boxes);
  });
  if (rows.some(row => row.cells.some(cell => cell.run === null))) {
    sets.unshift(h("fieldset", {}, h("legend", {}, "LR"), tickBox("LR clips", lowShown, on => { lowShown = on; })));
  }
  show($("knobs"), sets);
}

function filterRuns() {
  const kept = data.runs.filter(runShown).length;
  $("kept").textContent = kept < data.runs.length ? `(${kept} of ${data.runs.length} shown)` : "";
  articles.forEach(article => { if (article.filled) fill(article); });
  document.dispatchEvent(new Event("runsfiltered"));
}

// -- rows ----------------------------------------------------------------------------------------

const articles = rows.map((row, index) => {
  const strip = h("div", { className: "strip", tabIndex: -1 });
  const all = h("button", { className: "quiet", title: "Compare the clips of this row" }, "Compare row");
  const article = h("article", {}, h("h2", {}, h("span", { dir: "auto" }, row.prompt), h("small", {}, `seed ${row.seed}`), all), strip);
  if (row.original !== null) article.firstChild.append(h("small", { dir: "auto" }, `for: ${row.original}`));
  all.onclick = () => {
    row.cells.forEach((cell, i) => { if (cell.src && cellShown(cell)) choose(index, i, true); });
    go("compare");
  };
  strip.onscroll = () => scrollAll(strip);
  return Object.assign(article, { row, index, strip, filled: false });
});

function fill(article) {
  empty(article);
  article.filled = true;
  put(article.strip, article.row.cells.map((cell, i) => (cellShown(cell) ? figure(article, cell, i) : null)));
  article.strip.style.minHeight = "0";
  article.strip.scrollLeft = sideways;
}

function empty(article) {
  if (article.filled) article.strip.style.minHeight = `${article.strip.offsetHeight}px`; // nothing below moves
  article.filled = false;
  article.strip.querySelectorAll(".screen").forEach(unwatch);
  article.strip.replaceChildren();
}

const near = new IntersectionObserver(entries => entries.forEach(({ target, isIntersecting }) => {
  if (isIntersecting && !target.filled) fill(target);
  else if (!isIntersecting && target.filled && !target.contains(document.activeElement)) empty(target);
}), { rootMargin: "500px" });

let sideways = 0; // all rows scroll sideways together
function scrollAll(strip) {
  if (strip.scrollLeft === sideways || !strip.childElementCount) return;
  sideways = strip.scrollLeft;
  articles.forEach(other => { if (other.filled && other.strip !== strip) other.strip.scrollLeft = sideways; });
}

function figure(article, cell, i) {
  const label = labelOf(cell), run = runOf(cell);
  const node = h("figure", {}), caption = h("figcaption", {}, h("b", { dir: "auto" }, label));
  if (cell.src) {
    const slot = slotFor(cell, label);
    const pick = h("button", { className: "pick", "aria-pressed": "false" }, "Compare");
    pick.key = `${article.index}/${i}`;
    pick.onclick = () => choose(article.index, i, !chosen.has(pick.key));
    slot.onclick = pick.onclick;
    const more = h("button", {}, "Details");
    more.onclick = () => details(article.row, cell);
    put(node, slot);
    watch(slot);
    if (run) put(caption, h("code", {}, run.id));
    put(caption, scoreLine(cell), h("div", { className: "buttons" }, pick, more));
  }
  if (cell.note) put(node, h("div", { className: "gap note" }, cell.note));
  else if (!cell.src) put(node, h("div", { className: "gap" }, "not made"));
  put(node, caption);
  markChosen(node);
  return node;
}

function scoreLine(cell) {
  if (!cell.scores) return null;
  const wanted = $("score").value;
  const names = wanted === "all" ? data.scores : data.scores.filter(name => name === wanted);
  const pairs = names.map(name => [name, digits(cell.scores[data.scores.indexOf(name)])]);
  if (cell.f !== null) pairs.push(["f", digits(cell.f)]);
  pairs.push(["seconds", digits(cell.total)]);
  return h("dl", {}, pairs.map(([name, value]) => h("div", { title: name }, h("dt", {}, name), h("dd", {}, value))));
}

function details(row, cell) {
  const run = runOf(cell), close = h("button", {}, "Close");
  const list = pairs => h("dl", { className: "facts" }, pairs.map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", { dir: "auto" }, v))));
  const parts = [h("h2", { dir: "auto" }, labelOf(cell)), h("p", { dir: "auto" }, row.prompt)];
  const about = [["seed", String(row.seed)], ["size", `${cell.width}×${cell.height}`], ["frames", `${cell.frames ?? "—"} at ${cell.fps ?? "—"} a second`], ["file", cell.file]];
  if (run) {
    about.unshift(["run", run.id]);
    if (cell.outcome) about.push(["outcome", String(cell.outcome)]);
    about.push(["device", String(cell.device)], ["commit", String(cell.commit)]);
  }
  parts.push(list(about));
  if (run) {
    parts.push(h("h3", {}, "Scores"), list(data.scores.map((name, i) => [name, digits(cell.scores[i], 4)])));
    const seconds = data.stages.map((stage, i) => [stage, digits(cell.seconds[i])]);
    parts.push(h("h3", {}, "Seconds"), list([...seconds, ["all", digits(cell.total)], ["f (realised)", digits(cell.f)]]));
    parts.push(h("h3", {}, "Recipe"), list(Object.entries(run.recipe)));
  }
  close.onclick = () => $("details").close();
  show($("details"), ...parts, close);
  $("details").showModal();
}

// -- choosing for comparison ---------------------------------------------------------------------

function choose(rowIndex, cellIndex, on) {
  const key = `${rowIndex}/${cellIndex}`;
  if (on) chosen.set(key, { key, row: rows[rowIndex], cell: rows[rowIndex].cells[cellIndex] });
  else chosen.delete(key);
  articles.forEach(article => { if (article.filled) article.strip.querySelectorAll("figure").forEach(markChosen); });
  $("chosen").textContent = chosen.size ? `(${chosen.size})` : "";
  document.dispatchEvent(new Event("chosenchanged"));
}

function markChosen(node) {
  const pick = node.querySelector(".pick");
  if (!pick) return;
  pick.setAttribute("aria-pressed", String(chosen.has(pick.key)));
  node.classList.toggle("chosen", chosen.has(pick.key));
}

// -- the bar above the rows ----------------------------------------------------------------------

function filterPrompts() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  articles.forEach(article => {
    const text = `${article.row.prompt} seed ${article.row.seed}`.toLowerCase();
    article.hidden = !words.every(word => text.includes(word));
  });
  const left = articles.filter(article => !article.hidden).length;
  $("count").textContent = left < rows.length ? `${left} of ${rows.length} rows` : `${rows.length} row${rows.length === 1 ? "" : "s"}`;
}

put($("score"), h("option", { value: "all" }, "all"), ...data.scores.map(name => h("option", { value: name }, name)), h("option", { value: "" }, "none"));
$("score").value = data.scores.length < 5 ? "all" : data.scores.includes("world_agreement") ? "world_agreement" : data.scores[0];
$("score").onchange = filterRuns;
$("search").oninput = filterPrompts;
const resize = () => {
  document.documentElement.style.setProperty("--width", `${$("size").value}px`);
  articles.forEach(article => { if (!article.filled) article.strip.style.minHeight = ""; });
};
$("size").oninput = resize;
$("reset").onclick = () => {
  unticked.forEach(set => set.clear());
  lowShown = true;
  drawKnobs();
  filterRuns();
};
put($("rows"), ...articles);
drawKnobs();
filterPrompts();
articles.forEach(article => near.observe(article));
