"""The bundle is of the sources that are here; `make lint` makes it again and compares."""

from tests.helpers.bundle import BUNDLE, GLOSSARY, glossary, head


def test_the_bundle_has_the_digest_of_its_sources():
    assert BUNDLE.read_text("utf-8").startswith(head()), "make bundle"


def test_the_browser_has_the_sentences_of_the_glossary():
    assert GLOSSARY.read_text("utf-8") == glossary(), "make bundle"
