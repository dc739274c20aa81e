// The page's data, and the few lines by which scripts make elements. Texts become text nodes, never
// markup: a prompt may hold anything.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

// h("p", { className: "x", "aria-label": "y" }, "text", node)
function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  return filled(node, props, children);
}

function svg(tag, props = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function filled(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  return put(node, ...children);
}

// Append what there is: null stands for nothing.
function put(node, ...children) {
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}

function show(node, ...children) {
  node.replaceChildren();
  return put(node, ...children);
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const digits = (x, n = 3) => (x === null || x === undefined ? "—" : Number(x.toPrecision(n)).toString());

// What a clip is called: its run's label, or the LR flow's own.
const labelOf = cell => (cell.run === null ? cell.label : data.runs[cell.run].label);
const runOf = cell => (cell.run === null ? null : data.runs[cell.run]);
