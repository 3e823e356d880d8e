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
const figures = [...document.querySelectorAll(".marked")];
if (figures.length) { // pictures to be marked; equal keys are the same image, in several places
  const marks = new Map(), list = document.getElementById("changes"), save = document.getElementById("save-changes");
  const classes = [...document.querySelectorAll("#classes option")].map((option) => option.value);
  const columns = JSON.parse(save.dataset.columns);
  const relabel = (name) => `relabel\n${name}`;
  const title = (mark) => (mark.startsWith("relabel\n") ? `→ ${mark.slice(8)}` : mark || "no change");
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const csv = () => [[...columns, "action", "to"], ...[...marks].map(([key, mark]) => {
    const [action, to] = mark.split("\n"), row = JSON.parse(key);
    return [...columns.map((column) => row[column] ?? ""), action, to ?? ""];
  })].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  const option = (select, value) => {
    if (![...select.options].some((each) => each.value === value)) select.append(new Option(title(value), value));
  };
  const show = () => {
    for (const figure of figures) {
      const mark = marks.get(figure.dataset.key) ?? "", select = figure.querySelector("select");
      option(select, mark);
      select.value = mark;
      figure.dataset.mark = mark.split("\n")[0];
    }
    save.disabled = !marks.size;
    list.textContent = marks.size ? csv() : "";
    document.getElementById("marked-count").textContent =
      marks.size ? `${marks.size} marked.` : "Nothing is marked yet.";
  };
  const put = (figure, mark) => {
    if (mark) marks.set(figure.dataset.key, mark); else marks.delete(figure.dataset.key);
    show();
  };
  for (const figure of figures) {
    const select = figure.querySelector("select"), instead = figure.dataset.instead;
    const steps = ["", ...(instead ? [relabel(instead)] : []), "remove", "keep"];
    steps.forEach((each) => option(select, each));
    const fill = () => classes.forEach((name) => option(select, relabel(name))); // a thousand classes: when asked for
    select.addEventListener("focus", fill, { once: true });
    select.addEventListener("change", () => put(figure, select.value));
    figure.querySelector(".mark").addEventListener("click", () => {
      put(figure, steps[(steps.indexOf(marks.get(figure.dataset.key) ?? "") + 1) % steps.length]);
    });
  }
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = save.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}
