// Excerpts of the search begin with the text of a page, and not with its buttons.
addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return; // only the page of the search has it
  const whole = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    const text = page.querySelector("article.bd-article");
    if (text === null) return whole(html, anchor);
    text.querySelectorAll("h1").forEach((title) => title.remove()); // stands above the excerpt
    return whole(`<div role="main">${text.innerHTML}</div>`, anchor);
  };
});
