// What is wider than its place is scrolled by itself, by the arrow keys, too; tables, figures and formulas say so.
const SAYS = ".pst-scrollable-table-container, .cell_output, .cell_output .output, div.math";
const SILENT = "div.highlight pre, .cell_output .output pre";

const look = () => document.querySelectorAll(`.bd-article :is(${SAYS}, ${SILENT})`).forEach((part) => {
  const wide = part.scrollWidth > part.clientWidth + 4 && getComputedStyle(part).overflowX !== "visible";
  part.classList.toggle("is-wide", wide && part.matches(SAYS));
  if (wide && !part.hasAttribute("tabindex")) part.tabIndex = 0;
});

addEventListener("load", () => {
  look();
  window.MathJax?.startup?.promise?.then(look);
  document.addEventListener("toggle", look, true); // what was folded is open
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) look(width = innerWidth);
});
