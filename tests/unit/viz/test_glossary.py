"""The glossary explains every label of the map and its tables."""

from tests.helpers.results import calibration, subspaces
from viz.glossary import GLOSSARY, SAME, explanations
from viz.widgets.panels.map import CURVES, map_tabs
from viz.widgets.panels.view import BY_RANK
from viz.widgets.results import Results
from viz.widgets.workbench import Workbench


def test_every_tab_cost_and_curve_has_a_sentence():
    tabs = map_tabs(calibration().sensitivity, Results(), {name: [] for name in CURVES}, trains=True)
    costs = [row[0] for row in Workbench(calibration(), subspaces(), rank=2).widget.current["costs"]]
    curves = [words for name, words in BY_RANK.items() if name != "overlap"]
    labels = [tab["title"] for tab in tabs] + costs + curves
    assert [label for label in labels if label.lower() not in explanations()] == []


def test_other_labels_are_of_known_words():
    assert set(SAME.values()) <= set(GLOSSARY)
    assert all(word == word.lower() and sentence.endswith(".") for word, sentence in explanations().items())
