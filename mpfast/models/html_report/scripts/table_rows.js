// Rows of the table: a layer, what is known of it when it is opened, and the heading of a group.

/** A line of the table; its button opens it, where there is more to tell. */
function layerRow(row) {
  const open = view.open.has(row.at);
  const opens = notesOf(row).length > 0 || spectraOf(row).length > 0;
  const name = [named(row.name)];
  if (isAnalysis && valueOf(row, "warnings").length) name.push(element("span", { class: "mark" }, "\u00a0!"));
  const title = opens
    ? element("button", { type: "button", "data-row": row.at, "aria-expanded": String(open) }, ...name)
    : element("span", {}, ...name);
  const made = element("tr", { role: "row", class: `layer${opens ? " opens" : ""}${open ? " open" : ""}` });
  made.append(element("th", { role: "rowheader", scope: "row" }, title));
  row.cells.forEach((text, at) => {
    const { heading, foremost } = columns[at + 1];
    const told = { role: "cell", class: foremost ? null : "aside", "data-heading": heading };
    made.append(element("td", told, plain(text)));
  });
  return open ? [made, detailRow(row)] : [made];
}

/** What follows an open line: sentences, the chart, and what can be done with the layer. */
function detailRow(row) {
  const told = element("div");
  const width = Math.max(260, Math.min(760, byId("layers").clientWidth - 24));
  if (row.pair && valueOf(row, "other") !== row.name) {
    told.append(element("p", {}, "In B: ", named(valueOf(row, "other"))));
  }
  told.append(...notesOf(row).map((text) => element("p", {}, plain(text))));
  if (spectraOf(row).length) told.append(spectrumChart(spectraOf(row), { width }));
  if (isAnalysis && rows.length > 1) told.append(button("Compare with another layer", () => comparePair(row)));
  const cell = element("td", { role: "cell", colspan: columns.length }, told);
  return element("tr", { role: "row", class: "detail" }, cell);
}

/** The heading of the layers of one block or type, which folds them. */
function groupRow({ at, rows: found }) {
  const title = element(
    "button",
    { type: "button", "data-group": at, "aria-expanded": String(!view.folded.has(at)) },
    GROUPS[view.group][2](at),
    element("span", { class: "note" }, ` ${counted(found.length, "row", "rows")}${standings(found)}`),
  );
  const heading = element("th", { role: "rowheader", scope: "rowgroup", colspan: columns.length }, title);
  return element("tr", { role: "row", class: "group" }, heading);
}

/** How many layers have which verdict, or how many changed. */
function standings(found) {
  if (!isAnalysis) {
    const changed = found.filter((row) => !valueOf(row, "equal")).length;
    return `, ${changed} changed`;
  }
  const counts = new Map();
  for (const row of found) counts.set(valueOf(row, "verdict"), (counts.get(valueOf(row, "verdict")) ?? 0) + 1);
  const told = data.levels.filter((level) => counts.has(level)).map((level) => `${counts.get(level)} ${level}`);
  return `; noise: ${told.join(", ")}`;
}
