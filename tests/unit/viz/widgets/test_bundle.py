"""The bundles are of the sources that are here; `make lint` makes it again, compares, and tests the code itself."""

import json

import pytest

from tests.helpers.bundle import BUNDLES, GLOSSARY, SOURCES, glossary, head
from tlora.numerics.apportionment import apportion, apportion_captured


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda file: file.name)
def test_a_bundle_has_the_digest_of_its_sources(bundle):
    assert bundle.read_text("utf-8").startswith(head()), "make bundle"


def test_the_browser_has_the_sentences_of_the_glossary():
    assert GLOSSARY.read_text("utf-8") == glossary(), "make bundle"


def test_the_numbers_that_the_browser_is_tested_with_are_those_of_python():
    cases = json.loads((SOURCES / "tests" / "apportionments.json").read_text("utf-8"))
    for case in cases:
        share, weights = (apportion_captured, "gains") if "gains" in case else (apportion, "weights")
        found = share(*(case[name] for name in (weights, "budget", "low", "high", "costs")))
        assert found == case["units"], case
    assert {"gains", "weights"} <= {name for case in cases for name in case}
