// What the page is about.

const data = JSON.parse(byId("data").textContent);
// All that was written to JSON but the layers.
const record = JSON.parse(data.document);
const rows = data.table.rows;
const field = Object.fromEntries(data.table.fields.map((name, at) => [name, at]));
const columns = data.table.columns;
const isAnalysis = data.of === "analysis";

const valueOf = (row, name) => (name in field ? row.values[field[name]] : null);

rows.forEach((row, at) => {
  row.at = at;
  row.name = valueOf(row, "name");
  row.key = row.name.toLowerCase();
});

/** Texts that tell more of a row than its figures: sentences and warnings. */
function notesOf(row) {
  if (row.pair) return row.pair.map((side, at) => `${"AB"[at]}: ${side.sentence}`);
  if (data.of === "analyses" && !valueOf(row, "equal")) {
    return [`The page has the spectra of the ${data.spectra} rows that changed most; this is none of them.`];
  }
  if (!isAnalysis) return [];
  return [valueOf(row, "sentence"), ...valueOf(row, "warnings").map((text) => `Warning: ${text}`)];
}

/** What a chart draws of a row: one spectrum, or those of A and B. */
function spectraOf(row) {
  if (row.pair) {
    return row.pair.map((side, at) => side.picture && { ...side.picture, label: "AB"[at] }).filter(Boolean);
  }
  const [histogram, threshold] = [valueOf(row, "histogram"), valueOf(row, "threshold")];
  if (!row.picture || !histogram) return [];
  const spikes = histogram.spikes.filter((s) => s > threshold);
  return [{ ...histogram, ...row.picture, spikes, threshold, edge: valueOf(row, "sigma_plus"), label: row.name }];
}

/** What a column is sorted by: a number, or a text. */
function orderOf(row, column) {
  const value = valueOf(row, column.field);
  if (column.field === "shape") return value.reduce((size, extent) => size * extent, 1);
  if (column.field === "verdict") return data.levels.indexOf(value);
  if (Array.isArray(value)) return value.join(" ");
  return value === "inf" ? Infinity : value === "-inf" ? -Infinity : value;
}
