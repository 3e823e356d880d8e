"use strict";
const root = document.documentElement;
const isDark = () =>
  (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
});
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, heads = [...head.parentElement.children], column = heads.indexOf(head);
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
    };
    const compare = (a, b) => {
      if (a === "–" || b === "–") return (a === "–") - (b === "–"); // absent values stay last
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return ascending ? order : -order;
    };
    const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)));
    body.append(...rows);
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // no clipboard here: select the text instead
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
const fit = () => { // what is wider than its box: a short table is stacked, all else scrolls and is marked
  for (const box of document.querySelectorAll(".scroll")) {
    const table = box.querySelector("table:has([data-label])");
    const wide = () => box.scrollWidth > box.clientWidth + 1;
    box.classList.remove("more");
    table?.classList.remove("stacked");
    table?.classList.toggle("stacked", wide());
    box.classList.toggle("more", wide());
  }
};
fit();
addEventListener("resize", fit);
for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", fit);
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
