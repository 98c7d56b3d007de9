// How things get into the page, and how numbers and names are written. Text is always text, never markup.

const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** An element of HTML; attributes that are null are left out. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An element of a drawing. */
function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function button(text, pressed, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", pressed);
  return made;
}

/** A text with control and formatting characters, which could disguise it, spelled out. */
function plain(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (mark) => `\\u{${mark.codePointAt(0).toString(16)}}`);
}

/** A name that may break after its dots, and reads left to right whatever stands beside it. */
function named(name) {
  const made = element("bdi");
  for (const [at, part] of plain(name).split(".").entries()) {
    if (at) made.append(".", element("wbr"));
    made.append(part);
  }
  return made;
}

const counted = (count, one, several) => `${count.toLocaleString("en")} ${count === 1 ? one : several}`;

/** A number to so many significant digits, without trailing zeros. */
function significant(value, digits = 4) {
  return typeof value === "number" ? String(Number(value.toPrecision(digits))) : String(value ?? "");
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** A table with a heading over each column, and these lines in it. Roles are said since phones show lines as cards. */
function tableOf(label, headings, lines) {
  const heading = headings.map((text) => element("th", { scope: "col", role: "columnheader" }, text));
  const head = element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heading));
  return element("table", { role: "table", "aria-label": label }, head, element("tbody", { role: "rowgroup" }, ...lines));
}

/** A line of a table: what it is about, and what is said of that below these headings. */
function tableLine(name, texts, headings) {
  const title = element("th", { scope: "row", role: "rowheader" }, name);
  const cells = texts.map((text, at) => element("td", { role: "cell", "data-heading": headings[at + 1] }, text));
  return element("tr", { role: "row" }, title, ...cells);
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
  if (chosen !== undefined) select.value = chosen;
}
