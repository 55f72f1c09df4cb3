"""The report: what the page is made of, and that its numbers are those of the results."""

import ast
import dataclasses
import re

import pandas as pd
import pytest

from tests.helpers.reported import Page, results_of, run_of, save, walked
from tests.helpers.results import stability_of_allocation
from viz import report

SECTIONS = ["data", "spectra", "alignment", "sensitivity", "allocation", "training", "rank-use", "reproduce"]


def value(text: str) -> float:
    """The number that a cell shows: percent as a share, thousands and units taken off."""
    number = re.match(r"[-\u2212+]?[\d,.]+(e[-\u2212]?\d+)?", text)[0]
    parsed = float(number.replace("\u2212", "-").replace(",", ""))
    return parsed / 100 if "%" in text else parsed


def facts(page, section, caption):
    return {row[0]: row[1] for row in page.table(section, caption)}


def test_nothing_is_fetched_and_nothing_runs(html, page):
    sources = [e.attributes[key] for e in page.all() for key in ("src", "srcset", "href", "data", "poster", "action")
               if key in e.attributes]  # fmt: skip
    assert sources
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert not {e.tag for e in page.all()} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert not [name for e in page.all() for name in e.attributes if name.startswith("on")]
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    policy = next(e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "http:" not in html
    assert "https:" not in html


def test_structure(page):
    assert page.all("html")[0].attributes["lang"] == "en"
    assert page.all("title")[0].text == "family_relationships on smollm2-135m · TLoRA report"
    assert [h.text for h in page.all("h1")] == ["family_relationships on smollm2-135m"]
    headings = [e.tag for e in page.all() if re.fullmatch("h[1-6]", e.tag)]
    assert headings == ["h1"] + ["h2"] * (len(headings) - 1)
    names = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(names) == len(set(names))
    links = [e.attributes["href"] for e in page.all("a")]
    assert links == ["#" + s.attributes["id"] for s in page.all("section")]
    assert all(section.attributes["aria-labelledby"] in names for section in page.all("section"))


def test_pictures_say_what_they_show(page, small):
    ranks = small["allocation"].ranks.values()
    pictures = page.all("img")
    assert len(pictures) == 6
    assert all(len(e.attributes["alt"]) > 30 for e in pictures)
    assert any(f"Ranks from {min(ranks)} to {max(ranks)} instead of 8" in e.attributes["alt"] for e in pictures)
    assert all(int(e.attributes["width"]) > 300 and int(e.attributes["height"]) > 100 for e in pictures)


def test_what_is_wide_scrolls_in_its_box_and_can_be_reached_by_keyboard(page):
    for element in [*page.all("table"), *page.all("img")]:
        box = element.parent
        assert "scroll" in box.attributes["class"].split()
        assert box.attributes["tabindex"] == "0"


def test_tables_have_captions_and_headings_of_rows_and_columns(page):
    for table in page.all("table"):
        assert table.all("caption")[0].text
        rows = table.all("tbody")[0].all("tr")
        assert all(row.all("th")[0].attributes["scope"] == "row" for row in rows)
        widths = {len([c for c in row.all() if c.tag in ("th", "td")]) for row in table.all("tr")}
        assert len(widths) == 1
        assert all(e.attributes.get("scope") == "col" for head in table.all("thead") for e in head.all("th"))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_is_readable_in_both_themes(page):
    """Contrast of at least 4.5 to 1, WCAG 2.1 level AA."""
    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in page.all("style")[0].text.split("prefers-color")
    ]
    for theme in themes[:2]:
        for ink in ("ink", "soft", "accent"):
            for paper in ("paper", "card"):
                low, high = sorted(luminance(theme[name]) for name in (ink, paper))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def test_page_of_a_large_model_is_small(tmp_path):
    path = report(results_of("80 layers", steps=3000).values(), tmp_path / "large.html")
    assert path.stat().st_size < 3e6
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.table("sensitivity", "All 560 modules")) == 561
    assert len(page.table("training", "History")) <= 41


def test_same_results_give_the_same_bytes_whatever_the_user_has_set(small, html, tmp_path):
    import matplotlib.pyplot as plt

    with plt.style.context("dark_background"):
        before, figures = plt.rcParams.copy(), plt.get_fignums()
        again = report(small.values(), tmp_path / "again.html").read_text(encoding="utf-8")
        assert plt.rcParams.copy() == before
    assert plt.get_fignums() == figures
    assert again == html


def test_versions_and_seeds(page, small):
    assert facts(page, "reproduce", "Versions") == small["run"].meta.versions
    _, *rows = page.table("reproduce", "Where the results come from")
    assert rows == [["sensitivity", "", "5"], ["spectrum", "", "5"], ["allocation", "", "5"], ["run", "7", "300"]]


def calls(code: str) -> dict[str, dict[str, object]]:
    """The calls in a snippet with their literal arguments: positional ones by their number."""
    found = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = dict(enumerate(node.args)) | {keyword.arg: keyword.value for keyword in node.keywords}
            made = ast.Name | ast.Attribute | ast.Call
            found[node.func.attr] = {k: ast.literal_eval(v) for k, v in given.items() if not isinstance(v, made)}
    return found


def test_snippet_repeats_what_was_recorded(real):
    code = real.section("reproduce").all("code")[0]
    allocation = walked()["allocation"]
    found = calls("".join(code.children))
    assert found["load_task"] == {0: "family_relationships"}
    assert found["calibration"] == {0: 4}
    assert found["calibrate"] == {"gradient": True}
    assert found["allocate"] == {"rank": 3, "max_rank": 8, "exclude_modules": allocation.options.exclude_modules}
    assert found["edit"] == {0: allocation.edits}
    assert found["train"] == {"learning_rate": 0.01, "epochs": 1, "batch_size": 2, "max_steps": 4, "seed": 0}


def test_snippet_begins_anew_where_a_run_was_resumed(page):
    code = "".join(page.section("reproduce").all("code")[0].children)
    assert calls(code)["train"] == {"learning_rate": 0.001, "epochs": 1, "batch_size": 4, "seed": 7}


def test_command_is_shown_where_there_was_one(small, tmp_path):
    line = "tlora run --task 'a b' --output demo"
    run = small["run"]
    recipe = run.meta.recipe | {
        "command": line,
        "data": {"task": "a b", "train_samples": 300, "test_samples": 1300, "max_length": None},
    }
    marked = dataclasses.replace(run, meta=dataclasses.replace(run.meta, recipe=recipe))
    page = Page(report([marked], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert line in [e.text for e in page.section("reproduce").all("code")]
    assert "load_task" not in page.section("reproduce").text
    told = facts(page, "data", "Model and data")
    assert told["test samples"] == "1,300"
    assert told["training"] == "300 samples"
    assert "max length" not in told


@pytest.mark.parametrize(
    ("kept", "sections"),
    [
        ("sensitivity", ["data", "sensitivity", "reproduce"]),
        ("spectrum", ["data", "spectra", "reproduce"]),
        ("allocation", ["data", "allocation", "reproduce"]),
        ("run", ["data", "training", "rank-use", "reproduce"]),
    ],
)
def test_what_is_missing_is_left_out_and_the_page_says_how_to_get_it(small, tmp_path, kept, sections):
    page = Page(report(small[kept], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [e.attributes["id"] for e in page.all("section")] == [*sections, "missing"]
    told = page.section("missing").text
    ways = {
        "sensitivity": 'calibration.sensitivity.save("adapter/tlora/sensitivity")',
        "spectrum": 'calibration.spectrum().save("adapter/tlora/spectrum")',
        "allocation": 'allocation.save("adapter/tlora/allocation")',
        "run": 'run.save("adapter")',
        "alignment": '.save("adapter/tlora/alignment")',
    }
    assert [name for name, way in ways.items() if way not in told] == [kept]


def test_rank_use_without_places_has_no_picture(small, tmp_path):
    page = Page(report(small["run"], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.section("rank-use").all("img")
    assert len(page.table("rank-use", "All 14 modules")) == 15


def test_allocation_of_another_adapter_is_called_that(small, tmp_path):
    other = small["allocation"].edit({next(iter(small["allocation"].ranks)): 1})
    warning = "This is not the allocation of the adapter"
    assert other.ranks != small["run"].ranks
    page = Page(report([small["run"], other], tmp_path / "a.html").read_text(encoding="utf-8"))
    assert warning in page.section("allocation").text
    page = Page(report([small["run"], small["allocation"]], tmp_path / "b.html").read_text(encoding="utf-8"))
    assert warning not in page.section("allocation").text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interrupted": True, "after": {}}, "Training was interrupted before its last step"),
        ({"diverged": True, "after": {}}, "the loss or a gradient was not finite"),
        ({"before": {}, "after": {}}, "No metrics were taken before and after"),
        ({"trainable_parameters": 10**6}, "of them outside of the allocation"),
        ({"frozen_a": False}, "trained"),
    ],
)
def test_runs_that_are_out_of_the_ordinary(small, tmp_path, changes, words):
    run = dataclasses.replace(small["run"], **changes)
    page = Page(report([run, small["allocation"]], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert words in page.section("training").text


def test_trained_a_counts(small, tmp_path):
    """Where A was trained too, the allocation trains as many parameters as the adapter has."""
    run = dataclasses.replace(small["run"], frozen_a=False)
    page = Page(report([run, small["allocation"]], tmp_path / "page.html").read_text(encoding="utf-8"))
    rows = {row[0]: row[1] for row in page.table("allocation", "Beside uniform LoRA")}
    assert rows["trainable parameters"] == rows["parameters in all"]


def test_run_without_history_and_adapter_without_modules(tmp_path):
    run = run_of(ranks={}, scalings={}, adapter={})
    run = dataclasses.replace(run, history=pd.DataFrame(columns=list(run.columns)).astype("float64"))
    page = Page(report(run, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert facts(page, "training", "Circumstances")["optimiser steps"] == "none was logged"
    assert "rank-use" not in [e.attributes["id"] for e in page.all("section")]


def test_steps_are_those_of_the_run_and_not_those_that_were_logged(small, tmp_path):
    run = small["run"]
    seen = run.module_history.reindex([0]).assign(step=20.0)
    logged = dataclasses.replace(run, history=run.history[run.history["step"] <= 15], module_history=seen)
    page = Page(report(logged, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert facts(page, "training", "Circumstances")["optimiser steps"] == "20"


def test_single_sample_has_no_intervals(small, tmp_path):
    scores = dataclasses.replace(small["sensitivity"], per_sample=small["sensitivity"].per_sample[:1])
    page = Page(report(scores, tmp_path / "page.html").read_text(encoding="utf-8"))
    head, *_ = page.table("sensitivity", "The 14 most sensitive")
    assert head == ["module", "score, nats", "of the total"]
    assert "No intervals: 1 sample gives no spread" in page.section("sensitivity").text


def test_scores_of_zero_are_called_that(small, tmp_path):
    scores = small["sensitivity"]
    scores = dataclasses.replace(scores, per_sample=scores.per_sample * 0)
    section = Page(report(scores, tmp_path / "page.html").read_text(encoding="utf-8")).section("sensitivity")
    assert section.all("img")[0].attributes["alt"].endswith("The loss reaches no module.")
    assert "Every score is zero." in section.text
    assert "nan" not in section.text
    assert "Gini" not in section.text


def test_names_are_text_wherever_they_stand(small, tmp_path):
    evil = "<script>alert(\"1\")</script> & 'co' <img src=x onerror=y>"
    found = [dataclasses.replace(r, meta=dataclasses.replace(r.meta, task=evil, model=evil)) for r in small.values()]
    page = Page(report(found, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert evil in page.all("h1")[0].text
    assert facts(page, "data", "Model and data")["task"] == evil
    assert not page.all("script")
    assert all(e.attributes["src"].startswith("data:") for e in page.all("img"))
    assert calls("".join(page.section("reproduce").all("code")[0].children))["load_task"] == {0: evil}


def test_page_is_written_into_the_folder_or_where_it_is_asked_for(small, tmp_path):
    folder = save({"run": small["run"]}, tmp_path / "adapter")
    assert report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    before = sorted(path.name for path in folder.iterdir())
    assert report(str(folder)).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == before
    other = report(folder, tmp_path / "pages" / "new.html")
    assert other.read_bytes() == first
    assert str(tmp_path) not in first.decode()


def test_folder_and_results_give_the_same_page(small, html, tmp_path):
    assert report(save(small, tmp_path / "adapter")).read_text(encoding="utf-8") == html


def test_folder_that_is_no_adapter_is_refused(tmp_path, small):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no adapter.*name the folder that `tlora run`"):
        report(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds an adapter, and no results beside it"):
        report(tmp_path)
    small["allocation"].save(tmp_path / "tlora" / "allocation")
    assert report(tmp_path).is_file()


def test_damaged_result_is_refused(small, tmp_path):
    folder = save(small, tmp_path / "adapter")
    tensors = folder / "tlora" / "sensitivity.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"sensitivity.*truncated"):
        report(folder)
    assert not (folder / "report.html").exists()


def test_what_no_report_is_made_of_is_refused(small, tmp_path):
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match="pass output"):
        report(small["run"])
    with pytest.raises(IsADirectoryError, match="is a folder: name the file"):
        report(small["run"], tmp_path)
    with pytest.raises(ValueError, match="two results of kind TrainingRun"):
        report([small["run"], small["run"]], path)
    with pytest.raises(ValueError, match="no results to report on"):
        report([], path)
    with pytest.raises(TypeError, match="shows no int: pass results of the kinds Sensitivity, Spectrum"):
        report([3], path)
    with pytest.raises(TypeError, match="shows no AllocationStability"):
        report(stability_of_allocation(), path)
    assert not path.exists()
