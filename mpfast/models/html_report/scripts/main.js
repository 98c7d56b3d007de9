// Fill the page, from top to bottom.

function fillSummary() {
  const sources = Object.entries(data.sources).map(([side, source]) => [side, plain(source)]);
  terms(byId("summary").querySelector(".sources"), sources);
  const facts = byId("summary").querySelector(".facts");
  for (const [name, value] of Object.entries(data.facts)) {
    facts.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  }
  for (const note of document.querySelectorAll("[data-of]")) note.hidden = note.dataset.of !== data.of;
  byId("summary").querySelector(".note").textContent = data.normal;
  if (!isAnalysis) document.querySelector("h1").textContent = "Marchenko-Pastur comparison";
}

/** Links to the sections that have something in them. */
function fillNavigation() {
  const sections = [...document.querySelectorAll("main > section")].filter((section) => !section.hidden);
  const links = sections.map((section) =>
    element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent),
  );
  document.querySelector("nav").append(...links);
}

fillSummary();
fillMap();
fillTable();
fillDownloads();
fillPair();
fillExperts();
fillBudget();
fillSkipped();
fillProvenance();
fillTerms();
fillNavigation();
