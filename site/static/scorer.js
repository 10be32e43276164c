// How results of the search are ordered: pages of the book before the names of its functions.
// Sphinx puts this into its own script, in the place of its default, whose numbers stand below.
var Scorer = {
  score: ([docname, title, anchor, descr, score]) => {
    if (docname.startsWith("api/metalit.as_written")) return score - 20; // the article's version
    if (docname.startsWith("api/")) return score - 8;
    if (docname.startsWith("guides/")) return score + 4;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
