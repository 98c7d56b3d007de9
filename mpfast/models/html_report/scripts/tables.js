// Tables that are read from top to bottom: experts, the budget, what was left out; and lists of terms.

/** A table of texts and elements, the first of each line being its name; long ones go on when they are asked to. */
function plainTable(place, label, headings, lines, grown = () => {}) {
  const table = tableOf(label, headings, []);
  const [body] = table.tBodies;
  place.replaceChildren(table);
  const more = button("", () => show());
  const show = () => {
    const from = body.rows.length;
    body.append(...lines.slice(from, from + PAGE).map(([name, ...texts]) => tableLine(name, texts, headings)));
    const left = lines.length - body.rows.length;
    more.textContent = `Show ${Math.min(PAGE, left)} more of ${left.toLocaleString("en")}`;
    more.hidden = !left;
    grown();
  };
  place.after(element("p", {}, more));
  show();
}

function fillExperts() {
  if (!record.experts?.length) return;
  byId("experts").hidden = false;
  byId("fence").textContent = data.fence;
  const headings = ["experts", "of", "shape", "sigma+", "signals", "KS", "noise", "outlying", "warnings"];
  const lines = record.experts.map((found) => [
    named(found.name),
    String(found.experts),
    found.shape.join("x"),
    quartiles(found.sigma_plus, 4),
    quartiles(found.signals, 4),
    quartiles(found.ks, 3),
    data.levels.filter((level) => found.verdicts[level]).map((level) => `${found.verdicts[level]} ${level}`).join(", "),
    found.outliers.map((one) => `${one.expert} (${one.measure} ${significant(one.value)})`).join(", "),
    found.warnings.map(plain).join("; "),
  ]);
  plainTable(byId("experts").querySelector(".scroll"), "Experts", headings, lines);
}

function quartiles({ lowest, first, median, third, highest }, digits) {
  const told = (value) => significant(value, digits);
  return `${told(median)} (${told(first)}–${told(third)}; ${told(lowest)}–${told(highest)})`;
}

function fillSkipped() {
  const skipped = record.skipped ?? [];
  const unmatched = record.unmatched ?? [];
  if (!skipped.length && !unmatched.length) return;
  const section = byId("skipped");
  section.hidden = false;
  const title = isAnalysis ? "Skipped tensors" : "Without a counterpart";
  byId("skipped-heading").textContent = title;
  const [headings, lines] = isAnalysis
    ? [
        ["tensor", "shape", "type", "reason"],
        skipped.map((one) => [named(one.name), one.shape.join("x") || "scalar", plain(one.dtype), plain(one.reason)]),
      ]
    : [["name", "reason"], unmatched.map((one) => [named(one.name), plain(one.reason)])];
  plainTable(section.querySelector(".scroll"), title, headings, lines);
}

/** Pairs of a term and what is said of it. */
function terms(list, pairs) {
  for (const [term, said] of pairs) list.append(element("dt", {}, term), element("dd", {}, said));
}

function fillProvenance() {
  const made = record.provenance;
  if (!made) return;
  byId("provenance").hidden = false;
  const { version, time, options: given, ...others } = made;
  const known = (entries) => Object.entries(entries).filter(([, value]) => value !== null);
  terms(byId("provenance").querySelector("dl"), [
    ["made by", `mpfast ${plain(version)}, ${plain(time)}`],
    ...known(others).map(([name, value]) => [name.replace("_", " "), plain(String(value))]),
    ...known(given).map(([name, value]) => [plain(name), plain(JSON.stringify(value))]),
  ]);
}

function fillTerms() {
  terms(byId("terms").querySelector("dl"), columns.map((column) => [column.heading, column.meaning]));
}
