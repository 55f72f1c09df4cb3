"""The glossary explains every label of the map."""

from tests.helpers.results import calibration
from viz.glossary import GLOSSARY, SAME, explanations
from viz.widgets.map import CURVES, map_tabs
from viz.widgets.results import Results
from viz.widgets.view import BY_RANK


def test_every_tab_and_curve_has_a_sentence():
    tabs = map_tabs(calibration().sensitivity, Results(), {name: [] for name in CURVES}, trains=True)
    curves = [words for name, words in BY_RANK.items() if name != "overlap"]
    labels = [tab["title"] for tab in tabs] + curves
    assert [label for label in labels if label.lower() not in explanations()] == []


def test_other_labels_are_of_known_words():
    assert set(SAME.values()) <= set(GLOSSARY)
    assert all(word == word.lower() and sentence.endswith(".") for word, sentence in explanations().items())
