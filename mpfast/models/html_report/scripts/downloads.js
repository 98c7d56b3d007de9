// The analysis as files, without a server.

// How cells begin from which spreadsheets compute: an apostrophe marks them as text.
const COMPUTED = /^[=+\-@\t\r\n']/;

function csvCell(value, name) {
  if (Array.isArray(value)) return csvCell(value.join(name.endsWith("shape") ? "x" : "; "), "");
  if (typeof value !== "string") return value === null ? "" : String(value);
  const text = COMPUTED.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The rows that the table shows, in its order, with all that is known of them in numbers and words. */
function csvText() {
  const names = data.table.fields.filter((name) => name !== "histogram");
  const lines = chosenRows().map((row) => names.map((name) => csvCell(valueOf(row, name), name)).join(","));
  return [names.join(","), ...lines, ""].join("\n");
}

/** The whole record, as mpfast reads it. */
function jsonText() {
  const layers = rows.map((row) =>
    JSON.stringify(Object.fromEntries(data.table.fields.map((name, at) => [name, row.values[at]]))),
  );
  return data.document.replace(/\[\]\}$/, () => `[\n${layers.join(",\n")}\n]}\n`);
}

function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function fillDownloads() {
  const stem = isAnalysis ? "analysis" : "comparison";
  byId("csv").addEventListener("click", () => save(`${stem}.csv`, "text/csv;charset=utf-8", csvText()));
  byId("json").addEventListener("click", () => save(`${stem}.json`, "application/json", jsonText()));
  byId("json").textContent = "JSON of all rows";
}
