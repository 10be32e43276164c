// The page that is read is in view in the contents beside it, which the theme leaves where they were on the page before.
const show = () => requestAnimationFrame(() => {
  const link = document.querySelector(".bd-docs-nav a.current");
  if (!link?.checkVisibility()) return; // on a phone they are not there yet
  const place = link.closest("dialog, .bd-sidebar-primary"), [box, line] = [place, link].map((part) => part.getBoundingClientRect());
  if (line.top < box.top || line.bottom > Math.min(box.bottom, innerHeight)) place.scrollTop += line.top - box.top - box.height / 3;
});

addEventListener("DOMContentLoaded", show);
addEventListener("click", (event) => event.target.closest?.(".primary-toggle") && show(), true);
