"""The page about two adapters shows what the store holds."""

from benchmarks.quality import two_adapters
from benchmarks.quality.pages import digest_text, fill_blocks


def test_the_page_and_the_picture_are_of_the_store():
    text = two_adapters.PAGE.read_text()
    assert fill_blocks(text, "two_adapters", two_adapters.TABLES) == text
    digest = digest_text(two_adapters.STORE.read_text())
    assert b"Description\0" + digest.encode() in two_adapters.PICTURE.read_bytes()


def test_points_are_compared_with_the_own_adapter():
    record = two_adapters.records()[0]
    frame = two_adapters.points(record)
    alone = frame[(frame["own"] == 1) & (frame["other"] == 0)]
    assert list(alone["more"]) == [0, 0]
    assert list(alone["predicted"]) == [0, 0]
    assert set(alone["task"]) == set(record["tasks"])
