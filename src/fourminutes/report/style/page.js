"use strict";
// The page is complete without this: headings that sort, figures that fill the screen, records that open when linked to.
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
document.querySelectorAll("thead th").forEach((heading) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sortBy(heading));
  heading.append(button);
});

const zoom = document.createElement("dialog");
zoom.className = "zoom";
zoom.setAttribute("aria-label", "Figure");
zoom.addEventListener("click", () => zoom.close());
document.body.append(zoom);
document.querySelectorAll(".drawing").forEach((drawing) => {
  drawing.parentElement.classList.add("zoomable");
  drawing.tabIndex = 0;
  drawing.setAttribute("role", "button");
  drawing.setAttribute("aria-label", `Enlarge: ${drawing.querySelector("svg").getAttribute("aria-label")}`);
  const show = () => {
    zoom.replaceChildren(drawing.querySelector("svg").cloneNode(true));
    zoom.showModal();
  };
  drawing.addEventListener("click", show);
  drawing.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    show();
  });
});

const openTarget = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
window.addEventListener("hashchange", openTarget);
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
openTarget();
