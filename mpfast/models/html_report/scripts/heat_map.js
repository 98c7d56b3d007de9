// The map: a cell per layer type and block, coloured by the mean of a measure, with how many layers that is of.

const map = { measure: 0, upright: false, cells: new Map() };

const blockName = (at) => (data.heat.blocks[at] === null ? "–" : String(data.heat.blocks[at]));
const groupOfBlock = (at) => (data.heat.blocks[at] === null ? "no block" : `block ${blockName(at)}`);
const placeName = (type, block) => `${plain(data.heat.labels[type])}, ${groupOfBlock(block)}`;

const meanOf = (number) => (Array.isArray(number) ? number[0] : number);

/** What a cell says in words. */
function cellText([type, block, count, numbers]) {
  const [name, number] = [data.heat.measures[map.measure].name, numbers[map.measure]];
  if (number === null) return `${placeName(type, block)}: ${name} is not known`;
  const value = `${name} ${significant(meanOf(number))}`;
  if (count === 1) return `${placeName(type, block)}: ${value}`;
  const range = Array.isArray(number) ? `, from ${significant(number[1])} to ${significant(number[2])}` : "";
  return `${placeName(type, block)}: ${value}, the mean of ${count} layers${range}`;
}

/** From a mean to its place on the scale: 0 to 1, or of a measure with a middle, -1 to 1. */
function mapScale() {
  const means = data.heat.cells.map((cell) => meanOf(cell[3][map.measure])).filter((mean) => mean !== null);
  const [low, high] = [Math.min(...means), Math.max(...means)];
  if (!data.heat.measures[map.measure].signed) {
    return { low, high, share: (mean) => (high > low ? (mean - low) / (high - low) : 0.5) };
  }
  const reach = Math.max(Math.abs(low), Math.abs(high));
  return { low: -reach, high: reach, share: (mean) => (reach ? mean / reach : 0) };
}

function mapLegend(scale) {
  const signed = data.heat.measures[map.measure].signed;
  const several = data.heat.cells.some((cell) => cell[2] > 1);
  const bar = element("span", { class: signed ? "scale signed" : "scale", "aria-hidden": "true" });
  const known = Number.isFinite(scale.low);
  const ends = known ? [significant(scale.low, 3), bar, significant(scale.high, 3)] : ["not known of any layer"];
  const middle = known && signed ? ["; pale: no change"] : [];
  byId("map-legend").replaceChildren(
    element("span", {}, ...ends, ...middle),
    element("span", {}, element("span", { class: "cell none", "aria-hidden": "true" }), "no such layer"),
    several ? element("span", {}, "×n: mean of n layers") : "",
  );
}

function mapTable() {
  const scale = mapScale();
  mapLegend(scale);
  map.upright = matchMedia("(max-width: 40rem)").matches && data.heat.types.length <= data.heat.blocks.length;
  const types = data.heat.types.map((_, at) => at);
  const blocks = data.heat.blocks.map((_, at) => at);
  const [downwards, across] = map.upright ? [blocks, types] : [types, blocks];
  const place = (down, right) => (map.upright ? [right, down] : [down, right]);
  const heading = (at, isType, scope) => {
    const text = isType ? element("span", {}, named(data.heat.labels[at])) : blockName(at);
    const title = isType ? plain(data.heat.types[at]) : null;
    return element("th", { scope, role: scope === "col" ? "columnheader" : "rowheader", title }, text);
  };
  const found = new Map(data.heat.cells.map((cell) => [`${cell[0]} ${cell[1]}`, cell]));
  map.cells = new Map();
  const corner = element("th", { scope: "col", role: "columnheader" }, map.upright ? "block" : "layer type");
  const head = element("tr", { role: "row" }, corner, ...across.map((at) => heading(at, map.upright, "col")));
  const body = downwards.map((down, y) => {
    const cells = across.map((right, x) => {
      const cell = found.get(place(down, right).join(" "));
      return mapCell(cell, scale, `${x} ${y}`);
    });
    return element("tr", { role: "row" }, heading(down, !map.upright, "row"), ...cells);
  });
  const by = map.upright ? "block and layer type" : "layer type and block";
  const label = `${data.heat.measures[map.measure].name} by ${by}`;
  const table = element("table", { role: "grid", "aria-label": label, class: map.upright ? "map upright" : "map" });
  table.append(element("thead", { role: "rowgroup" }, head), element("tbody", { role: "rowgroup" }, ...body));
  table.addEventListener("keydown", mapKey);
  table.addEventListener("click", (event) => mapChosen(event.target.closest("td")));
  table.addEventListener("focusin", (event) => mapRead(event.target.closest("td")));
  table.addEventListener("pointerover", (event) => mapRead(event.target.closest("td")));
  byId("map-table").replaceChildren(table);
  const first = table.querySelector("td:not(.none)");
  if (first) first.tabIndex = 0;
}

function mapCell(cell, scale, at) {
  const made = element("td", { role: "gridcell", "data-at": at });
  if (!cell) {
    made.className = "none";
    made.setAttribute("aria-label", "no such layer");
    return made;
  }
  const mean = meanOf(cell[3][map.measure]);
  made.tabIndex = -1;
  if (cell[2] > 1) made.append(element("span", {}, `×${cell[2]}`));
  made.setAttribute("aria-label", cellText(cell));
  if (mean === null) {
    made.className = "unknown";
  } else {
    const share = scale.share(mean);
    made.style.setProperty("--share", `${(100 * Math.abs(share)).toFixed(1)}%`);
    made.className = data.heat.measures[map.measure].signed ? (share < 0 ? "less" : "more") : "cell";
  }
  map.cells.set(at, { made, cell });
  return made;
}

function mapRead(made) {
  const found = made && map.cells.get(made.dataset.at);
  byId("map-readout").textContent = found ? cellText(found.cell) : "";
}

/** Show the layers of a cell in the table. */
function mapChosen(made) {
  const found = made && map.cells.get(made.dataset.at);
  if (found) showPlace(found.cell[0], found.cell[1]);
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function mapKey(event) {
  const made = event.target.closest("td");
  if (!made) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    mapChosen(made);
  }
  const move = MOVES[event.key];
  if (!move) return;
  event.preventDefault();
  // On to the next cell in this direction that has a layer.
  let [x, y] = made.dataset.at.split(" ").map(Number);
  for (let left = data.heat.types.length + data.heat.blocks.length; left; --left) {
    [x, y] = [x + move[0], y + move[1]];
    const next = map.cells.get(`${x} ${y}`);
    if (next) {
      made.tabIndex = -1;
      next.made.tabIndex = 0;
      next.made.focus();
      return;
    }
  }
}

function fillMap() {
  if (!data.heat.cells.length) return;
  byId("map").hidden = false;
  options(byId("measure"), data.heat.measures.map((measure, at) => [at, measure.name]));
  byId("measure").addEventListener("change", () => {
    map.measure = Number(byId("measure").value);
    mapTable();
  });
  matchMedia("(max-width: 40rem)").addEventListener("change", mapTable);
  mapTable();
}
