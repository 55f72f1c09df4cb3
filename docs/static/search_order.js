// The order of search results: a title that contains the whole query comes first; how-to before notebooks and the changelog.
var Scorer = {
  places: { howto: 6, concepts: 4, faq: 4, notebooks: -4, changelog: -12, contributing: -12 },
  score: ([page, , , , score]) => score + (Scorer.places[page.split("/")[0]] || 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 60,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
