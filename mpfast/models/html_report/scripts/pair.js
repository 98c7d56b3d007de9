// Two layers side by side: their spectra in one chart, and their figures.

const rowCalled = (name) => rows.find((row) => plain(row.name) === name);

/** Take a layer as A, and go on to the choice of B. */
function comparePair(row) {
  byId("pair-a").value = plain(row.name);
  drawPair();
  byId("pair").scrollIntoView();
  byId("pair-b").focus({ preventScroll: true });
}

function drawPair() {
  const pair = ["pair-a", "pair-b"].map((id) => rowCalled(byId(id).value));
  const [place, table] = [byId("pair-chart"), byId("pair-table")];
  if (!pair.every(Boolean)) {
    place.replaceChildren(element("p", { class: "note" }, "Choose two layers by their whole names."));
    table.replaceChildren();
    return;
  }
  const spectra = pair.flatMap(spectraOf);
  const width = Math.max(260, Math.min(900, place.clientWidth));
  place.replaceChildren(
    spectra.length === 2
      ? spectrumChart(spectra, { width, scaled: byId("pair-scaled").checked })
      : element("p", { class: "note" }, "The distribution of one of them is not known."),
  );
  const headings = ["figure", "A", "B", "B over A"];
  const lines = columns.slice(1).map((column, at) => {
    return tableLine(column.heading, [...pair.map((row) => plain(row.cells[at])), ratio(pair, column)], headings);
  });
  table.replaceChildren(tableOf("Figures of two layers", headings, lines));
}

function ratio(pair, column) {
  const [a, b] = pair.map((row) => valueOf(row, column.field));
  return typeof a === "number" && typeof b === "number" && a !== 0 ? significant(b / a, 3) : "";
}

/** The first two layers of one type: most alike, and so most worth a comparison. */
function alike() {
  const first = new Map();
  for (const row of rows) {
    if (first.has(row.place[0])) return [first.get(row.place[0]), row];
    first.set(row.place[0], row);
  }
  return rows;
}

function fillPair() {
  if (!isAnalysis || rows.length < 2) return;
  byId("pair").hidden = false;
  byId("pair-names").append(...rows.map((row) => element("option", { value: plain(row.name) })));
  const [a, b] = alike();
  byId("pair-a").value = plain(a.name);
  byId("pair-b").value = plain(b.name);
  for (const id of ["pair-a", "pair-b", "pair-scaled"]) byId(id).addEventListener("input", drawPair);
  drawPair();
}
