"""Commands on a trained adapter: `tlora evaluate`, `tlora report`, and the model card that `tlora run` leaves."""

from pathlib import Path

import pytest

import tlora
import viz
from tests.helpers.commands import QUICK, RUN, done, invoke, next_command
from tests.helpers.reported import Page
from tlora.cli import pipeline

pytestmark = pytest.mark.usefixtures("workplace")


def csv_of(path: Path, rows: list[str], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


@pytest.mark.usefixtures("no_pictures")
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


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``tlora run`` leaves, without its pictures."""
    monkeypatch.setattr(pipeline, "_draw", lambda *_: "")
    done(f"{RUN} {QUICK} --seed 3 --output out")
    return Path("out")


def test_report_is_the_library_s_page_of_the_folder(adapter):
    result = done("report out")
    page = (adapter / "report.html").read_bytes()
    assert next_command(result.stdout) == "python -m webbrowser out/report.html"
    assert "reporting on out" in result.stderr
    quiet = done("report out --output pages/one.html --quiet")
    assert quiet.stderr == ""
    assert Path("pages/one.html").read_bytes() == page
    assert viz.report("out", "two.html").read_bytes() == page


def test_page_has_all_that_the_command_knows(adapter):
    done("report out")
    page = Page((adapter / "report.html").read_text(encoding="utf-8"))
    keys = [section.attributes["id"] for section in page.all("section")]
    assert keys == ["data", "spectra", "sensitivity", "allocation", "training", "rank-use", "reproduce", "missing"]
    line = f"tlora {RUN} {QUICK} --seed 3 --rows variance --output out"
    (shown,) = [e.text for e in page.section("reproduce").all("code") if e.text.startswith("tlora run")]
    assert sorted(shown.split()) == sorted(line.split())
    assert ["seed", "3"] in page.table("data", "Model and data")


@pytest.mark.parametrize("folder", ["llama", "nowhere"])
def test_folder_that_is_no_adapter_is_refused_in_one_sentence(folder):
    result = invoke(f"report {folder}")
    assert result.exit_code == 2
    assert "holds no adapter (there is no adapter_config.json)" in result.stderr
    assert "Traceback" not in result.stderr


def test_run_leaves_a_model_card_with_the_picture_of_the_allocation():
    done(f"{RUN} {QUICK} --output out")
    text = Path("out/README.md").read_text(encoding="utf-8")
    assert text == viz.card("out")
    assert "](pictures/allocation.png)" in text
    assert "tlora run" in text
