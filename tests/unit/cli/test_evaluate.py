"""Data of one's own: what a model that learnt its task perfectly would be given, and rows that cannot be meant."""

from pathlib import Path

import pytest

import tlora
from tests.helpers.commands import QUICK, done, invoke


def csv_of(path: Path, rows: list[str], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_evaluate_tells_of_other_data_than_it_was_trained_on() -> None:
    rows = [f"film {i},{('good', 'bad')[i % 2]}" for i in range(40)]
    csv_of(Path("a.csv"), rows)
    csv_of(Path("b.csv"), [row.replace("bad", "poor") for row in rows])
    done(f"run --model bert --task a.csv {QUICK} --samples 6 --output sorted")
    assert "has changed" not in done("evaluate sorted --task a.csv").stderr
    refused = invoke("evaluate sorted --task b.csv")
    assert (refused.exit_code, "tells bad, good apart" in refused.stderr) == (2, True)
    csv_of(Path("a.csv"), ["one more,good", *rows])
    assert "a.csv has changed since sorted was trained on it" in done("evaluate sorted --task a.csv").stderr
    assert tlora.TrainingRun.load("sorted").meta.recipe["classes"] == ["bad", "good"]
