// What global cuts would take of each layer.

function drawBudget() {
  const at = Number(byId("sparsity").value);
  const told = percent(data.budget.steps[at] / 1000);
  byId("sparsity-value").textContent = told;
  byId("sparsity").setAttribute("aria-valuetext", told);
  const shares = data.budget.methods[byId("budget-method").value][at];
  const lines = byId("budget").querySelectorAll("tbody tr");
  lines.forEach((line, row) => {
    line.children[1].textContent = percent(shares[row] / 1000);
    line.style.setProperty("--share", `${shares[row] / 10}%`);
  });
}

function fillBudget() {
  if (!data.budget) return;
  byId("budget").hidden = false;
  const slider = byId("sparsity");
  slider.max = data.budget.steps.length - 1;
  slider.addEventListener("input", drawBudget);
  options(byId("budget-method"), Object.keys(data.budget.methods).map((name) => [name, name]));
  byId("budget-method").addEventListener("change", drawBudget);
  const texts = data.budget.names.map((name) => [named(name), "", element("span", { class: "bar" })]);
  const headings = ["layer", "sparsity", "share of the layer"];
  plainTable(byId("budget").querySelector(".scroll"), "Budget", headings, texts, drawBudget);
}
