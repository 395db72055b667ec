"use strict";
// The page is complete without this: headings that sort, figures that fill the screen, runs to choose, records that open.
const value = (row, index) => row.cells[index].dataset.sort;
const compare = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "") || 0;
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
};
const sortBy = (heading) => {
  const body = heading.closest("table").tBodies[0];
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const order = descending ? -1 : 1;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a, heading.cellIndex), value(b, heading.cellIndex)];
    return x === "" || y === "" ? compare(x, y) : order * compare(x, y); // empty cells stay last
  });
  heading.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows);
};
document.querySelectorAll(".sortable thead th").forEach((heading) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sortBy(heading));
  heading.append(button);
});

const zoom = document.createElement("dialog");
zoom.className = "zoom";
zoom.addEventListener("click", () => zoom.close());
document.body.append(zoom);
const close = document.createElement("button");
close.type = "button";
close.textContent = "Close";
document.querySelectorAll(".drawing").forEach((drawing) => {
  drawing.parentElement.classList.add("zoomable");
  drawing.tabIndex = 0;
  drawing.setAttribute("role", "button");
  drawing.setAttribute("aria-label", `Enlarge: ${drawing.querySelector("svg").getAttribute("aria-label")}`);
  const show = () => {
    const svg = drawing.querySelector("svg");
    zoom.setAttribute("aria-label", svg.getAttribute("aria-label"));
    zoom.replaceChildren(close, svg.cloneNode(true));
    zoom.showModal();
  };
  drawing.addEventListener("click", show);
  drawing.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    show();
  });
});

// Runs side by side: the chosen columns, and of the settings those that differ among them.
const chooseRuns = (table) => {
  const runs = [...table.tHead.rows[0].cells].slice(1);
  if (runs.length < 2) return;
  const chooser = document.createElement("fieldset");
  chooser.className = "chooser";
  const legend = document.createElement("legend");
  legend.textContent = "Runs to compare";
  const told = document.createElement("output");
  const boxes = runs.map((run) => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, autocomplete: "off" });
    const label = document.createElement("label");
    label.append(box, run.textContent);
    chooser.append(label);
    return box;
  });
  const show = () => {
    const chosen = boxes.flatMap((box, index) => (box.checked ? [index + 1] : []));
    const enough = chosen.length > 1;
    for (const row of table.rows)
      [...row.cells].forEach((cell, index) => (cell.hidden = index > 0 && !chosen.includes(index)));
    const settings = [...table.querySelectorAll("tr.setting")];
    settings.forEach((row) => {
      row.hidden = enough && new Set(chosen.map((index) => row.cells[index].textContent)).size === 1;
    });
    const differing = settings.filter((row) => !row.hidden).length;
    told.textContent = enough
      ? `${chosen.length} runs, ${differing} ${differing === 1 ? "setting differs" : "settings differ"}`
      : "Choose two runs or more.";
  };
  chooser.addEventListener("change", show);
  chooser.prepend(legend);
  chooser.append(told);
  table.closest(".scroll").before(chooser);
  show();
};
document.querySelectorAll("#table-compare table").forEach(chooseRuns);

const openTarget = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const record = target && target.closest("details");
  if (record) record.open = true;
};
window.addEventListener("hashchange", openTarget);
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
openTarget();
