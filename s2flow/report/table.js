// The table of runs, sorted by any column; notes; and the recipes side by side.
const number = (pair, clips, n = 3) => {
  if (!pair[1]) return [null, "—"];
  return [pair[0], [pair[0].toFixed(n), pair[1] < clips ? h("small", {}, ` of ${pair[1]}`) : null]];
};

const columns = [
  { name: "run", of: run => [run.label, run.label] },
  { name: "id", of: run => [run.id, h("code", {}, run.id)] },
  { name: "clips", of: run => [run.clips, String(run.clips)] },
  { name: "f", of: run => number(run.density, 0) },
  ...data.scores.map((name, i) => ({ name, of: run => number(run.scores[i], run.clips) })),
  ...data.stages.map((name, i) => ({ name: `${name} s`, of: run => number(run.seconds[i], run.clips, 2) })),
  { name: "all s", of: run => number(run.total, 0, 2) },
];
const order = { column: null, up: true };

function drawTable() {
  const shownRuns = data.runs.filter(runShown);
  if (order.column) {
    const value = run => order.column.of(run)[0];
    shownRuns.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what was not measured comes last
      return (order.up ? 1 : -1) * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
  }
  const head = columns.map(column => {
    const button = h("button", { title: "Sort by this column" }, column.name.replaceAll("_", "_\u200b"));
    button.onclick = () => {
      Object.assign(order, { column, up: order.column === column ? !order.up : true });
      drawTable();
      [...$("table").querySelectorAll("th button")][columns.indexOf(column)].focus();
    };
    const sorted = order.column === column ? (order.up ? "ascending" : "descending") : "none";
    return h("th", { scope: "col", "aria-sort": sorted }, button);
  });
  const body = shownRuns.map(run => h("tr", {}, columns.map(column => h("td", {}, column.of(run)[1]))));
  show($("table"), h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

function drawRecipes() {
  const names = [...new Set(data.runs.flatMap(run => Object.keys(run.recipe)))];
  const head = h("tr", {}, h("th", {}), data.runs.map(run => h("th", {}, run.label)));
  const body = names.map(name => h("tr", { className: data.differ.includes(name) ? "differs" : "" },
    h("td", {}, name), data.runs.map(run => h("td", {}, run.recipe[name] ?? "—"))));
  put($("recipes"), h("div", { className: "wide" }, h("table", {}, head, body)));
}

$("about").textContent = data.about;
put($("notes"), ...data.notes.map(note => h("li", { className: "note" }, note)));
document.addEventListener("runsfiltered", drawTable);
drawTable();
drawRecipes();
