// Chosen clips side by side; a loupe that shows the same place of each at native pixels; and the
// difference of two. A page opened from disk may draw videos on a canvas but not read it back, so the
// difference is formed by compositing, |A - B|, and amplified by a filter.
const LENS = 168; // CSS pixels, the side of the loupe
const spot = { u: .5, v: .5 }; // where the loupe is, as shares of width and height
let stageKeys = "";

function drawStage() {
  const keys = [...chosen.keys()].join(" ");
  if (keys === stageKeys) return;
  stageKeys = keys;
  $("stage").querySelectorAll(".screen").forEach(slot => { if (slot.clip) unwatch(slot); });
  const picked = [...chosen.values()];
  if (!picked.length) {
    const start = h("button", {}, "Compare the first row");
    start.onclick = () => articles[0].querySelector("h2 button").click();
    show($("stage"), h("p", { className: "soft" }, "No clip is chosen yet. Choose clips in the gallery, by a click or by their button. "), start);
  } else {
    const several = new Set(picked.map(p => p.row)).size > 1;
    show($("stage"), ...several ? [] : [heading(picked[0].row)], ...picked.map((p, i) => stageFigure(p, i, several)), differenceFigure());
  }
  $("stage").style.setProperty("--columns", Math.min(Math.max(picked.length, 1), 4));
  for (const [id, fallback] of [["first", 0], ["second", 1]]) {
    const before = $(id).value;
    show($(id), ...picked.map((p, i) => h("option", { value: p.key }, `${i + 1}: ${labelOf(p.cell)}`)));
    $(id).value = chosen.has(before) ? before : picked[fallback]?.key ?? "";
  }
  if ($("first").value === $("second").value && picked.length > 1) {
    $("second").value = picked.find(p => p.key !== $("first").value).key;
  }
  showDifference();
}

const heading = row => h("h2", {}, h("span", { dir: "auto" }, row.prompt), h("small", {}, `seed ${row.seed}`));

function stageFigure({ key, row, cell }, i, several) {
  const slot = slotFor(cell, labelOf(cell)), run = runOf(cell);
  slot.key = key;
  const lens = h("canvas", { className: "lens", hidden: true });
  slot.append(lens);
  slot.lens = lens;
  slot.onpointermove = event => {
    const box = slot.getBoundingClientRect();
    spot.u = clamp((event.clientX - box.left) / box.width, 0, 1);
    spot.v = clamp((event.clientY - box.top) / box.height, 0, 1);
  };
  const remove = h("button", {}, "Remove"), more = h("button", {}, "Details");
  remove.onclick = () => choose(...key.split("/").map(Number), false);
  more.onclick = () => details(row, cell);
  watch(slot);
  const caption = h("figcaption", {}, h("b", { dir: "auto" }, `${i + 1}: ${labelOf(cell)}`),
    h("code", {}, run ? run.id : ""), h("small", {}, ` ${cell.width}×${cell.height}`),
    several ? h("p", { dir: "auto" }, `${row.prompt} · seed ${row.seed}`) : null,
    allScores(cell), h("div", { className: "buttons" }, remove, more));
  return h("figure", {}, slot, cell.note ? h("div", { className: "gap note" }, cell.note) : null, caption);
}

function allScores(cell) {
  if (!cell.scores) return null;
  const pairs = data.scores.map((name, i) => [name, digits(cell.scores[i])]);
  pairs.push(["f", digits(cell.f)], ["seconds", digits(cell.total)]);
  return h("dl", {}, pairs.map(([name, value]) => h("div", { title: name }, h("dt", {}, name), h("dd", {}, value))));
}

function differenceFigure() {
  const canvas = h("canvas", { id: "subtracted", role: "img", "aria-label": "Difference of two clips" });
  const caption = h("figcaption", {}, h("b", { id: "of" }), h("small", {}, "Drawn only while both show the same frame."));
  return h("figure", { id: "differing", hidden: true }, h("div", { className: "screen" }, canvas), caption);
}

const slotOf = key => [...$("stage").querySelectorAll(".screen")].find(slot => slot.key === key);

function showDifference() {
  const figure = $("differing");
  if (!figure) return;
  const [a, b] = ["first", "second"].map(id => chosen.get($(id).value));
  figure.hidden = !($("difference").checked && a && b);
  if (figure.hidden) return;
  const canvas = $("subtracted");
  canvas.width = Math.max(a.cell.width, b.cell.width);
  canvas.height = Math.max(a.cell.height, b.cell.height);
  canvas.parentNode.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
  canvas.parentNode.classList.toggle("small", canvas.width < 320);
  $("gained").textContent = $("gain").value;
  canvas.style.filter = `brightness(${$("gain").value})`;
  $("of").textContent = `|${[...chosen.keys()].indexOf(a.key) + 1} − ${[...chosen.keys()].indexOf(b.key) + 1}| × ${$("gain").value}`;
}

function subtract() {
  const [a, b] = ["first", "second"].map(id => clock.screens.get(slotOf($(id).value)));
  if (!a || !b || a.video.readyState < 2 || b.video.readyState < 2) return;
  const apart = Math.abs(a.shown - b.shown), frame = Math.max(frameOf(a.clip), frameOf(b.clip));
  if (a.shown !== null && b.shown !== null && apart > frame / 2) return; // one is a frame ahead for now
  const canvas = $("subtracted"), pen = canvas.getContext("2d");
  pen.globalCompositeOperation = "copy";
  pen.drawImage(a.video, 0, 0, canvas.width, canvas.height);
  pen.globalCompositeOperation = "difference";
  pen.drawImage(b.video, 0, 0, canvas.width, canvas.height);
}

// One pixel of a video becomes `zoom` pixels of the display, whatever size the clip is shown at.
function magnify(slot) {
  const { lens } = slot, screen = clock.screens.get(slot), zoom = Number($("zoom").value);
  lens.hidden = !$("loupe").checked;
  if (lens.hidden || !screen || screen.video.readyState < 2) return;
  const side = Math.round(LENS * devicePixelRatio);
  if (lens.width !== side) lens.width = lens.height = side;
  lens.style.width = lens.style.height = `${side / devicePixelRatio}px`;
  lens.style.left = `${spot.u * 100}%`;
  lens.style.top = `${spot.v * 100}%`;
  const { videoWidth, videoHeight } = screen.video, pen = lens.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.clearRect(0, 0, side, side);
  const left = Math.round(side / 2 - spot.u * videoWidth * zoom), top = Math.round(side / 2 - spot.v * videoHeight * zoom);
  pen.drawImage(screen.video, left, top, videoWidth * zoom, videoHeight * zoom);
}

(function paint() {
  if (!$("compare").hidden) {
    if ($("differing") && !$("differing").hidden) subtract();
    $("stage").querySelectorAll(".screen").forEach(slot => { if (slot.lens) magnify(slot); });
  }
  requestAnimationFrame(paint);
})();

function moveLoupe(dx, dy) {
  spot.u = clamp(spot.u + dx * .02, 0, 1);
  spot.v = clamp(spot.v + dy * .02, 0, 1);
}

for (const id of ["difference", "first", "second"]) $(id).onchange = showDifference;
$("gain").oninput = showDifference;
$("clear").onclick = () => [...chosen.keys()].forEach(key => choose(...key.split("/").map(Number), false));
document.addEventListener("chosenchanged", () => { if (!$("compare").hidden) drawStage(); });
