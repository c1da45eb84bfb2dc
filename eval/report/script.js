"use strict";

const number = (cell) => (cell.dataset.value === undefined ? NaN : Number(cell.dataset.value));

/* Baselines stay in front: each body of a table is sorted by itself. */
function sortBy(table, place, ascending) {
  for (const body of table.tBodies) {
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const [left, right] = [a.cells[place], b.cells[place]];
      const [x, y] = [number(left), number(right)];
      const order =
        Number.isNaN(x) && Number.isNaN(y)
          ? left.textContent.localeCompare(right.textContent, undefined, { numeric: true })
          : Number.isNaN(x) ? Infinity : Number.isNaN(y) ? -Infinity : x - y;
      return Number.isFinite(order) ? (ascending ? order : -order) : order;
    });
    body.append(...rows);
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, place, ascending);
    });
  });
}

for (const section of document.querySelectorAll("section.task")) {
  const filter = section.querySelector(".filter");
  const budget = section.querySelector(".budget");
  const narrow = () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const row of section.querySelectorAll("tbody tr[data-method]")) {
      const named = row.dataset.method.toLowerCase().includes(wanted) || row.dataset.full !== undefined;
      const afforded = budget.value === "" || row.dataset.budget === budget.value || row.dataset.full !== undefined;
      row.hidden = !(named && afforded);
    }
  };
  filter?.addEventListener("input", narrow);
  budget?.addEventListener("input", narrow);

  const curves = (name) => section.querySelectorAll(`.curve[data-curve="${name}"]`);
  for (const button of section.querySelectorAll(".legend button")) {
    const all = () => curves(button.dataset.curve);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      all().forEach((curve) => curve.classList.toggle("hidden", !shown));
    });
    button.addEventListener("pointerenter", () => all().forEach((curve) => curve.classList.add("strong")));
    button.addEventListener("pointerleave", () => all().forEach((curve) => curve.classList.remove("strong")));
  }

  const choices = [...section.querySelectorAll(".choice button")];
  for (const button of choices) {
    button.addEventListener("click", () => {
      choices.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      for (const plot of section.querySelectorAll(".plot [data-axis]")) {
        plot.hidden = plot.dataset.axis !== button.dataset.axis;
      }
    });
  }
}
