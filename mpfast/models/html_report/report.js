"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

const fixed = (digits) => (value) => (value === null ? "" : Number(value).toFixed(digits));
const significant = (value) => (value === null ? "" : String(Number(Number(value).toPrecision(5))));
const percent = (value) => (value === null ? "" : (100 * value).toFixed(1) + "%");

// Build an element; text is always text, never markup.
function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "path", "line", "text", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function summary() {
  document.getElementById("source").textContent = data.source;
  const totals = data.summary;
  const found = data.levels.filter((level) => totals.verdicts[level]);
  const verdicts = found.map((level) => `${totals.verdicts[level]} ${level}`).join(", ");
  const figures = {
    matrices: totals.layers,
    "million entries": (totals.entries / 1e6).toFixed(1),
    spikes: totals.spikes,
    signals: totals.signals,
    "noise bulks": verdicts || "none fitted",
    "seconds": totals.seconds.toFixed(2),
  };
  const list = document.getElementById("summary");
  for (const [name, value] of Object.entries(figures)) {
    list.append(element("div", {}, element("dt", {}, name), element("dd", {}, String(value))));
  }
}

// The layer table.

const columns = [
  ["layer", (row) => row.name, (row) => row.name + (row.warnings.length ? " !" : "")],
  ["shape", (row) => row.shape[0] * row.shape[1], (row) => row.shape.join("x")],
  ["sigma+", (row) => row.sigma, (row) => significant(row.sigma) + (row.error > 0 ? " ±" + row.error.toPrecision(2) : "")],
  ["spikes", (row) => row.spikes, (row) => String(row.spikes)],
  ["signals", (row) => row.signals, (row) => (row.strict < row.signals ? `${row.strict}–${row.signals}` : String(row.signals))],
  ["uneven", (row) => row.unevenness, (row) => percent(row.unevenness)],
  ["KS", (row) => row.ks_scaled, (row) => fixed(3)(row.ks) + (row.ks === row.ks_scaled ? "" : "→" + fixed(3)(row.ks_scaled))],
  ["noise", (row) => data.levels.indexOf(row.verdict), (row) => row.verdict],
  ["share", (row) => row.share, (row) => percent(row.share)],
  ["effective rank", (row) => row.effective, (row) => fixed(0)(row.effective)],
  ["hill_alpha", (row) => row.hill_alpha, (row) => fixed(2)(row.hill_alpha)],
  ["stable rank", (row) => row.stable, (row) => fixed(1)(row.stable)],
];
let sorted = { column: null, downwards: false };

function layerTable() {
  const table = document.getElementById("layers");
  const heading = element("tr");
  columns.forEach(([name, value], at) => {
    const mark = sorted.column === at ? (sorted.downwards ? " ▾" : " ▴") : "";
    const cell = element("th", { scope: "col", tabindex: "0" }, name + mark);
    const sort = () => {
      sorted = { column: at, downwards: sorted.column === at ? !sorted.downwards : at > 0 };
      layerTable();
    };
    cell.addEventListener("click", sort);
    cell.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    heading.append(cell);
  });
  table.tHead.replaceChildren(heading);

  const wanted = document.getElementById("filter").value.toLowerCase();
  const rows = data.layers.filter((row) => row.name.toLowerCase().includes(wanted));
  if (sorted.column !== null) {
    const value = columns[sorted.column][1];
    const order = (a, b) => (a === null) - (b === null) || (a < b ? -1 : a > b ? 1 : 0) * (sorted.downwards ? -1 : 1);
    rows.sort((a, b) => order(value(a), value(b)));
  }
  table.tBodies[0].replaceChildren(...rows.map(layerRow));
}

function layerRow(row) {
  const made = element("tr", { class: "layer", tabindex: "0" });
  for (const [name, , text] of columns) {
    made.append(element("td", name === "noise" ? { title: row.sentence } : {}, text(row)));
  }
  const toggle = () => {
    const next = made.nextSibling;
    if (next && !next.classList.contains("layer")) return next.remove();
    const cell = element("td", { class: "chart", colspan: String(columns.length) });
    cell.append(element("p", {}, row.sentence), chart(row), ...row.warnings.map((text) => element("p", {}, "! " + text)));
    made.after(element("tr", {}, cell));
  };
  made.addEventListener("click", toggle);
  made.addEventListener("keydown", (event) => event.key === "Enter" && toggle());
  return made;
}

// Density of the singular values, the fitted law, its edge, and the spikes.
function chart(row) {
  const found = row.histogram;
  if (!found) return element("p", {}, "no distribution is known");
  const [width, height, left, bottom] = [700, 260, 10, 24];
  const step = (found.high - found.low) / found.shares.length;
  const spikes = found.spikes.filter((s) => s > row.threshold);
  const end = row.end;
  const densities = found.shares.map((share) => share / step);
  const top = 1.08 * Math.max(...densities, ...(row.law ? row.law[1] : []), 1e-30);
  const x = (s) => left + ((width - 2 * left) * s) / end;
  const y = (density) => (height - bottom) * (1 - Math.min(density / top, 1));
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.append(element("title", {}, `Singular values of ${row.name}`));
  densities.forEach((density, at) => {
    const from = x(found.low + at * step);
    const box = { x: from, y: y(density), width: x(found.low + (at + 1) * step) - from, height: height - bottom - y(density) };
    svg.append(element("rect", { class: "found", ...box }));
  });
  if (row.law) {
    const points = row.law[0].map((s, at) => `${x(s).toFixed(1)} ${y(row.law[1][at]).toFixed(1)}`);
    svg.append(element("path", { class: "law", d: "M" + points.join("L") }));
  }
  svg.append(element("line", { class: "edge", x1: x(row.sigma), x2: x(row.sigma), y1: 0, y2: height - bottom }));
  for (const s of spikes.filter((s) => s <= end)) {
    svg.append(element("line", { class: "spike", x1: x(s), x2: x(s), y1: height - bottom - 14, y2: height - bottom }));
  }
  svg.append(element("line", { class: "axis", x1: 0, x2: width, y1: height - bottom, y2: height - bottom }));
  for (let tick = 0; tick <= 5; ++tick) {
    const s = (end * tick) / 5;
    const anchor = tick === 0 ? "start" : tick === 5 ? "end" : "middle";
    svg.append(element("text", { x: x(s), y: height - 7, "text-anchor": anchor }, String(Number(s.toPrecision(3)))));
  }
  svg.append(element("text", { x: x(row.sigma) + 4, y: 12 }, "sigma+"));
  if (row.beyond) svg.append(element("text", { x: width - 4, y: 28, "text-anchor": "end" }, `${row.beyond} more to the right →`));
  return svg;
}

// Experts, summed up.

function quartiles(found, text) {
  const [lowest, first, median, third, highest] = found.map(text);
  return `${median} (${first}–${third}; ${lowest}–${highest})`;
}

function experts() {
  const table = document.getElementById("experts");
  document.getElementById("fence").textContent = data.fence;
  const heading = ["experts", "of", "shape", "sigma+", "signals", "KS", "noise", "outlying"];
  table.tHead.append(element("tr", {}, ...heading.map((name) => element("th", { scope: "col" }, name))));
  for (const row of data.experts) {
    const found = data.levels.filter((level) => row.verdicts[level]).map((level) => `${row.verdicts[level]} ${level}`);
    const outlying = row.outliers.map(([expert, measure, value]) => `${expert} (${measure} ${significant(value)})`);
    const texts = [
      row.name + (row.warnings.length ? " !" : ""),
      String(row.experts),
      row.shape.join("x"),
      quartiles(row.quartiles["sigma+"], significant),
      quartiles(row.quartiles.signals, significant),
      quartiles(row.quartiles.KS, fixed(3)),
      found.join(", "),
      outlying.join(", "),
    ];
    const title = row.warnings.length ? { title: row.warnings.join("\n") } : {};
    table.tBodies[0].append(element("tr", title, ...texts.map((text) => element("td", {}, text))));
  }
}

// The heat map: one row per layer type, one column per depth.

const measures = {
  "signals over rank": (row) => row.signals / Math.min(...row.shape),
  "energy in the fitted noise": (row) => row.share ?? null,
  "effective rank over rank": (row) => (row.effective == null ? null : row.effective / Math.min(...row.shape)),
  "unevenness": (row) => row.unevenness ?? null,
  "sigma+": (row) => row.sigma,
  "hill_alpha": (row) => row.hill_alpha ?? null,
  "KS": (row) => row.ks,
};

function heatMap() {
  const value = measures[document.getElementById("measure").value];
  const deep = [...data.layers, ...data.experts].filter((row) => row.depth !== null && value(row) !== null);
  const depths = [...new Set(deep.map((row) => row.depth))].sort((a, b) => a - b);
  const types = [...new Set(deep.map((row) => row.type))];
  const values = deep.map(value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const table = element("table");
  table.append(element("tr", {}, element("th", {}, "layer type"), ...depths.map((depth) => element("th", {}, String(depth)))));
  for (const type of types) {
    const line = element("tr", {}, element("td", {}, type));
    for (const depth of depths) {
      const row = deep.find((other) => other.type === type && other.depth === depth);
      const cell = element("td");
      if (row) {
        const share = high > low ? (value(row) - low) / (high - low) : 0.5;
        cell.textContent = Number(value(row).toPrecision(2));
        cell.title = row.name;
        cell.style.background = `hsl(${230 - 190 * share} 65% 55% / .55)`;
      }
      line.append(cell);
    }
    table.append(line);
  }
  const place = document.getElementById("heat");
  place.replaceChildren(types.length ? table : element("p", { class: "note" }, "No layer carries a number in its name."));
}

// The budget preview.

function budget() {
  const at = Number(document.getElementById("sparsity").value);
  document.getElementById("sparsity-value").textContent = percent(data.budget.steps[at]);
  const shares = data.budget.methods[document.getElementById("budget-method").value][at];
  const table = element("table");
  data.budget.names.forEach((name, row) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = 12 * shares[row] + "rem";
    const cell = element("td", {}, bar);
    cell.style.textAlign = "left";
    table.append(element("tr", {}, element("td", {}, name), element("td", {}, percent(shares[row])), cell));
  });
  document.getElementById("budget").replaceChildren(table);
}

function skipped() {
  const table = document.getElementById("skipped");
  const heading = ["tensor", "shape", "type", "reason"].map((name) => element("th", {}, name));
  table.tHead.append(element("tr", {}, ...heading));
  for (const [name, shape, dtype, reason] of data.skipped) {
    const cells = [name, shape.join("x") || "scalar", dtype, reason].map((text) => element("td", {}, text));
    table.tBodies[0].append(element("tr", {}, ...cells));
  }
}

function options(id, names, changed) {
  const select = document.getElementById(id);
  select.append(...names.map((name) => element("option", {}, name)));
  select.addEventListener("change", changed);
}

summary();
options("measure", Object.keys(measures), heatMap);
heatMap();
if (data.experts.length) {
  experts();
} else {
  document.getElementById("experts-section").remove();
}
if (data.budget) {
  const slider = document.getElementById("sparsity");
  slider.max = data.budget.steps.length - 1;
  slider.addEventListener("input", budget);
  options("budget-method", Object.keys(data.budget.methods), budget);
  budget();
} else {
  document.getElementById("budget-section").remove();
}
document.getElementById("filter").addEventListener("input", layerTable);
document.getElementById("normal").textContent = data.normal;
layerTable();
skipped();
