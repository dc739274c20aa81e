// Two plots of the runs that the gallery's filter leaves: a score against f, and the seconds of each stage.
const INK = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999933"]; // told apart by all eyes
const methods = [...new Set(data.runs.map(run => run.method))];
const inkOf = run => INK[methods.indexOf(run.method) % INK.length];
const words = (x, y, string, anchor = "start", kind = "") => svg("text", { x, y, "text-anchor": anchor, class: kind }, string);
const described = (string, node) => { put(node, svg("title", {}, string)); return node; };

// About five round values from low to high.
function ticks(low, high) {
  const rough = (high - low || 1) / 5, ten = 10 ** Math.floor(Math.log10(rough));
  const one = [1, 2, 5, 10].find(k => k * ten >= rough) * ten;
  const found = [];
  for (let x = Math.ceil(low / one - 1e-9) * one; x <= high + one * 1e-9; x += one) found.push(Number(x.toPrecision(10)));
  return found;
}

function scatter(runs, score) {
  const k = data.scores.indexOf(score), W = 560, H = 320, left = 62, right = 96, top = 14, bottom = 46;
  const points = runs.filter(run => run.scores[k][1]).map(run => {
    const [mean, low, high] = run.intervals[k] ?? [run.scores[k][0], null, null];
    return { run, mean, low: low ?? mean, high: high ?? mean, f: run.density[1] ? run.density[0] : null };
  });
  const plot = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${score} against f` });
  if (!points.length) return [plot, ""];
  let [low, high] = [Math.min(...points.map(p => p.low)), Math.max(...points.map(p => p.high))];
  const pad = (high - low) * .06 || Math.abs(high) * .05 || .1;
  [low, high] = [low - pad, high + pad];
  const x = f => left + f * (W - left - right), y = v => top + (high - v) / (high - low) * (H - top - bottom);
  for (const v of ticks(low, high)) {
    plot.append(svg("line", { x1: left, x2: W - 12, y1: y(v), y2: y(v), class: "grid" }), words(left - 8, y(v) + 4, String(v), "end"));
  }
  for (const f of [0, .25, .5, .75, 1]) plot.append(words(x(f), H - bottom + 18, String(f), "middle"));
  plot.append(words((left + W - right) / 2, H - 6, "f, share of the volume that attention kept", "middle", "axis"));
  const beside = points.filter(p => p.f === null);
  if (beside.length) plot.append(words(W - 48, H - bottom + 18, "no windows", "middle"));
  const taken = new Map(); // runs of one f are drawn side by side
  for (const p of points) {
    const place = p.f === null ? "none" : p.f.toFixed(2), n = taken.get(place) ?? 0;
    taken.set(place, n + 1);
    p.n = n;
    p.place = place;
  }
  for (const p of points) {
    const shift = (p.n - (taken.get(p.place) - 1) / 2) * Math.min(9, 74 / taken.get(p.place));
    const at = (p.f === null ? W - 48 : x(p.f)) + shift, ink = inkOf(p.run);
    plot.append(described(`${p.run.label} (${p.run.id}): ${digits(p.mean, 4)} [${digits(p.low, 4)}, ${digits(p.high, 4)}]`,
      svg("g", { stroke: ink, fill: ink, class: "point" },
        svg("line", { x1: at, x2: at, y1: y(p.low), y2: y(p.high), "stroke-width": 1.5 }),
        svg("circle", { cx: at, cy: y(p.mean), r: 4, class: p.f === null ? "hollow" : "" }))));
  }
  const seen = methods.filter(method => points.some(p => p.run.method === method));
  return [plot, legend(seen.map(method => [method, INK[methods.indexOf(method) % INK.length]]))];
}

function bars(runs) {
  const timed = runs.filter(run => run.total[1]), one = 24, label = 250, W = 760, top = 6;
  const stages = data.stages.map((name, i) => ({ name, i })).filter(({ i }) => timed.some(run => run.seconds[i][0] > 0));
  const most = Math.max(...timed.map(run => run.total[0]), 1e-9), H = top + timed.length * one + 44;
  const plot = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Seconds of each stage, mean of a clip" });
  const x = s => label + s / most * (W - label - 60);
  for (const s of ticks(0, most)) {
    plot.append(svg("line", { x1: x(s), x2: x(s), y1: top, y2: H - 38, class: "grid" }), words(x(s), H - 22, String(s), "middle"));
  }
  timed.forEach((run, row) => {
    const y = top + row * one;
    const short = run.label.length > 40 ? `${run.label.slice(0, 39)}…` : run.label;
    plot.append(described(run.label, words(label - 8, y + 15, short, "end")));
    let sum = 0;
    for (const { name, i } of stages) {
      const share = run.seconds[i][0] * run.seconds[i][1] / run.total[1]; // a stage that some clips lack is 0 s in them
      plot.append(described(`${name}: ${digits(share)} s`, svg("rect", { x: x(sum), y: y + 3, width: Math.max(x(sum + share) - x(sum), 0), height: one - 7, fill: INK[i % INK.length] })));
      sum += share;
    }
    plot.append(words(x(sum) + 6, y + 15, digits(run.total[0])));
  });
  plot.append(words((label + W - 60) / 2, H - 4, "seconds per clip", "middle", "axis"));
  return [plot, legend(stages.map(({ name, i }) => [name, INK[i % INK.length]]))];
}

function legend(entries) {
  return h("p", { className: "legend" }, entries.map(([name, ink]) => {
    const key = h("i", {});
    key.style.background = ink;
    return h("span", {}, key, name);
  }));
}

const plotted = h("select", { "aria-label": "Score that is plotted", autocomplete: "off" }, data.scores.map(name => h("option", { value: name }, name)));
if ($("score").value && $("score").value !== "all") plotted.value = $("score").value;

function drawPlots() {
  const runs = data.runs.filter(runShown), figures = [];
  if (data.scores.length) {
    const [plot, key] = scatter(runs, plotted.value);
    figures.push(h("figure", {}, h("figcaption", {}, plotted, " against f"), plot, key, h("small", {},
      "Dots: means over prompts; bars: their 95 % bootstrap intervals. All runs share what is hard about a prompt, so a difference of two runs is surer than their bars say.")));
  }
  const [plot, key] = bars(runs);
  figures.push(h("figure", { className: "broad" }, h("figcaption", {}, "Seconds by stage"), plot, key));
  show($("plots"), ...figures);
}

plotted.onchange = drawPlots;
document.addEventListener("runsfiltered", drawPlots);
drawPlots();
