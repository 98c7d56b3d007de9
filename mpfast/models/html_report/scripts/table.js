// The table of layers: filtered, put in order and grouped, and no more of it in the page than is read at once.

const PAGE = 120;
// Groups of longer tables begin folded on a phone.
const LONG = 50;

// What is asked for: words of names, a [type, block], a group, the number of a column from 1 on and its direction; how
// many rows at most; which groups are folded and which rows open.
const view = {
  words: [],
  place: null,
  group: "block",
  sort: 0,
  down: false,
  limit: PAGE,
  folded: new Set(),
  open: new Set(),
};

// What rows can be grouped by: its name, the number of a row's group, and what is said of a group.
const GROUPS = {
  none: ["nothing", () => 0, () => ""],
  block: ["block", (row) => row.place[1], groupOfBlock],
  type: ["layer type", (row) => row.place[0], (at) => named(data.heat.labels[at])],
};

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

/** Rows by group, in the order of blocks or types. */
function grouped(found) {
  const [, groupOf] = GROUPS[view.group];
  const groups = new Map();
  for (const row of found) {
    const at = groupOf(row);
    if (!groups.has(at)) groups.set(at, { at, rows: [] });
    groups.get(at).rows.push(row);
  }
  return [...groups.values()].sort((a, b) => a.at - b.at);
}

function drawTable() {
  const found = chosenRows();
  const table = byId("layer-table").querySelector("table");
  const bodies = [];
  let [left, waiting] = [view.limit, 0];
  for (const group of grouped(found)) {
    const wanted = view.folded.has(group.at) ? [] : group.rows;
    const shown = wanted.slice(0, Math.max(0, left));
    waiting += left > 0 ? wanted.length - shown.length : wanted.length || 1;
    if (left > 0) {
      const heading = view.group === "none" ? [] : [groupRow(group)];
      bodies.push(element("tbody", { role: "rowgroup" }, ...heading, ...shown.flatMap(layerRow)));
    }
    left -= shown.length || 1;
  }
  table.replaceChildren(table.tHead, ...bodies);
  drawHead();
  drawControls(found.length, waiting);
}

/** Say how many rows there are, how many more of them can be shown, and what the buttons do. */
function drawControls(count, waiting) {
  byId("more").hidden = !waiting;
  byId("more").textContent = `Show ${Math.min(5 * PAGE, waiting)} more`;
  byId("count").textContent = `${count.toLocaleString("en")} of ${counted(rows.length, "row", "rows")}`;
  byId("csv").textContent = count < rows.length ? "CSV of these rows" : "CSV";
  byId("place").hidden = !view.place;
  if (view.place) byId("place").textContent = `${placeName(...view.place)} ✕`;
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
  // Whoever selects the text of a line does not mean to open it.
  if (!found || (!event.target.closest("button") && String(getSelection()))) return;
  const [set, name] = line.matches(".group") ? [view.folded, "group"] : [view.open, "row"];
  toggled(set, Number(found.dataset[name]), `[data-${name}="${found.dataset[name]}"]`);
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
  const fold = () => (view.folded = new Set(grouped(chosenRows()).map((group) => group.at)));
  changed("fold", "click", () => (view.folded.size ? view.folded.clear() : fold()));
  byId("more").addEventListener("click", () => {
    view.limit += 5 * PAGE;
    drawTable();
  });
  if (view.group !== "none" && rows.length > LONG && matchMedia("(max-width: 40rem)").matches) fold();
  drawTable();
}
