// The table of layers: filtered, put in order and grouped, and no more of it in the page than is read at once.

const PAGE = 200;
// Groups of longer tables begin folded on a phone.
const LONG = 50;

const view = { words: [], place: null, group: "block", sort: 0, down: false, limit: PAGE, folded: new Set(), open: new Set() };

const GROUPS = {
  none: ["nothing", () => ["", ""]],
  block: ["block", (row) => [String(row.place[1]), groupOfBlock(row.place[1])]],
  type: ["layer type", (row) => [String(row.place[0]), named(data.heat.labels[row.place[0]])]],
};
const groupOfBlock = (at) => (data.heat.blocks[at] === null ? "without a block" : `block ${blockName(at)}`);

/** The rows that are asked for, in their order. */
function chosenRows() {
  const place = view.place;
  const found = rows.filter(
    (row) =>
      view.words.every((word) => row.key.includes(word)) &&
      (!place || (row.place[0] === place[0] && row.place[1] === place[1])),
  );
  const column = columns[view.sort - 1];
  if (column) {
    const sign = view.down ? -1 : 1;
    const keys = new Map(found.map((row) => [row, orderOf(row, column)]));
    found.sort((a, b) => inOrder(keys.get(a), keys.get(b), sign));
  }
  return found;
}

/** What is not known comes last either way. */
function inOrder(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return a < b ? -sign : a > b ? sign : 0;
}

/** Rows by group, in the order of blocks or types; equal groups are one. */
function grouped(found) {
  if (view.group === "none") return [{ name: "", named: "", rows: found }];
  const groups = new Map();
  for (const row of found) {
    const [name, shown] = GROUPS[view.group][1](row);
    if (!groups.has(name)) groups.set(name, { name, named: shown, rows: [] });
    groups.get(name).rows.push(row);
  }
  return [...groups.values()].sort((a, b) => Number(a.name) - Number(b.name));
}

function drawTable() {
  const found = chosenRows();
  const table = byId("layer-table").querySelector("table");
  let left = view.limit;
  const bodies = [];
  const groups = grouped(found);
  for (const group of groups) {
    if (left <= 0) break;
    const body = element("tbody", { role: "rowgroup" });
    if (group.name) body.append(groupRow(group));
    const shown = view.folded.has(group.name) ? [] : group.rows.slice(0, left);
    body.append(...shown.flatMap(layerRow));
    left -= shown.length || 1;
    bodies.push(body);
  }
  table.replaceChildren(table.tHead, ...bodies);
  drawHead();
  const hidden = found.length - groups.reduce((sum, group) => sum + (view.folded.has(group.name) ? group.rows.length : 0), 0);
  const more = byId("more");
  more.hidden = left > 0 || hidden <= view.limit;
  more.textContent = `Show ${Math.min(5 * PAGE, hidden - view.limit)} more`;
  byId("count").textContent = `${found.length.toLocaleString("en")} of ${counted(rows.length, "row", "rows")}`;
  byId("csv").textContent = found.length < rows.length ? "CSV of these rows" : "CSV";
  const place = byId("place");
  place.hidden = !view.place;
  if (view.place) place.textContent = `${placeName(...view.place)} ✕`;
  byId("fold").hidden = view.group === "none";
  byId("fold").textContent = view.folded.size ? "Unfold all" : "Fold all";
  byId("direction").hidden = !view.sort;
  byId("direction").textContent = view.down ? "▾ downwards" : "▴ upwards";
  byId("sort").value = view.sort;
}

function drawHead() {
  const cells = columns.map((column, at) => {
    const sorted = view.sort === at + 1;
    const mark = element("span", { "aria-hidden": "true" }, sorted ? (view.down ? " ▾" : " ▴") : "");
    const made = button(column.heading, () => sortBy(at + 1), { title: column.meaning, "data-sort": at });
    made.append(mark);
    const order = sorted ? (view.down ? "descending" : "ascending") : null;
    return element("th", { role: "columnheader", scope: "col", "aria-sort": order }, made);
  });
  const table = byId("layer-table").querySelector("table");
  const focused = document.activeElement?.dataset?.sort;
  table.tHead.replaceChildren(element("tr", { role: "row" }, ...cells));
  if (focused !== undefined) table.tHead.querySelector(`[data-sort="${focused}"]`)?.focus();
}

/** Numbers go downwards first, names upwards; the same column once more turns its order. */
function sortBy(sort) {
  view.down = view.sort === sort ? !view.down : sort > 1;
  view.sort = sort;
  view.limit = PAGE;
  drawTable();
}

/** Show the layers of a cell of the map; those that are summed up are in the table of experts. */
function showPlace(type, block) {
  if (!rows.some((row) => row.place[0] === type && row.place[1] === block)) {
    byId("experts").scrollIntoView();
    byId("experts").querySelector(".scroll").focus({ preventScroll: true });
    return;
  }
  Object.assign(view, { place: [type, block], limit: PAGE, folded: new Set() });
  drawTable();
  byId("layers").scrollIntoView();
  byId("place").focus({ preventScroll: true });
}

/** Open or close what was pressed, and keep the keyboard there. */
function toggled(set, key, selector) {
  if (!set.delete(key)) set.add(key);
  drawTable();
  byId("layer-table").querySelector(selector)?.focus({ preventScroll: true });
}

function pressed(event) {
  const line = event.target.closest("tr.group, tr.opens");
  const found = line?.querySelector("th button");
  if (!found || String(getSelection())) return;
  if (line.matches(".group")) toggled(view.folded, found.dataset.group, `[data-group="${found.dataset.group}"]`);
  else toggled(view.open, Number(found.dataset.row), `[data-row="${found.dataset.row}"]`);
}

function fillTable() {
  const blocks = new Set(rows.map((row) => row.place[1]));
  view.group = blocks.size > 1 && rows.length > 1.5 * blocks.size ? "block" : "none";
  options(byId("group"), Object.entries(GROUPS).map(([name, [text]]) => [name, text]), view.group);
  options(byId("sort"), [[0, "order of the model"], ...columns.map((column, at) => [at + 1, column.heading])], 0);
  byId("layer-table").querySelector("table").addEventListener("click", pressed);
  const changed = (id, type, change) =>
    byId(id).addEventListener(type, () => {
      change(byId(id).value);
      view.limit = PAGE;
      drawTable();
    });
  changed("filter", "input", (text) => {
    Object.assign(view, { words: text.toLowerCase().split(/\s+/).filter(Boolean), folded: new Set() });
  });
  changed("group", "change", (name) => Object.assign(view, { group: name, folded: new Set() }));
  changed("sort", "change", (at) => Object.assign(view, { sort: Number(at), down: Number(at) > 1 }));
  changed("direction", "click", () => (view.down = !view.down));
  changed("place", "click", () => (view.place = null));
  const fold = () => (view.folded = new Set(grouped(chosenRows()).map((group) => group.name)));
  changed("fold", "click", () => (view.folded.size ? view.folded.clear() : fold()));
  byId("more").addEventListener("click", () => {
    view.limit += 5 * PAGE;
    drawTable();
  });
  if (view.group !== "none" && rows.length > LONG && matchMedia("(max-width: 40rem)").matches) fold();
  drawTable();
}
