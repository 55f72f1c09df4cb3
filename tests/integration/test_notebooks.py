"""The notebooks as they are stored: read by people on a page that runs nothing, and compared by git."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from tests.helpers.experts import tiny_mixture
from tests.helpers.models import tiny_tokenizer

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def test_the_map_links_to_all():
    links = re.findall(r"\]\((\w+)\.ipynb\)", (NOTEBOOKS / "README.md").read_text())
    assert set(links) == {path.stem for path in PATHS}


def test_is_valid_small_and_run_from_top_to_bottom(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


def test_stores_no_errors_noise_paths_or_widget_state(notebook):
    assert "widgets" not in notebook.metadata
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {}), "a progress bar"
    text = json.dumps([output for output in outputs(notebook) if "image/png" not in output.get("data", {})])
    assert not re.search(r"/(tmp|home|root)/|site-packages|\\\\Users", text)
    assert not [cell for cell in code(notebook) if cell.metadata.get("execution")]


def test_the_cells_for_a_mixture_run_on_a_tiny_one(tmp_path, monkeypatch):
    tiny_mixture(moe_intermediate_size=32, max_position_embeddings=512).save_pretrained(tmp_path / "mixture")
    tiny_tokenizer().save_pretrained(tmp_path / "mixture")
    monkeypatch.setenv("TLORA_NOTEBOOK_STEPS", "6")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    cells = {cell.id: cell.source for cell in code(nbformat.read(NOTEBOOKS / "gpu_llama.ipynb", as_version=4))}
    given = {"GIB": 2**30}
    mixture = [name for name in cells if name.startswith("mixture")]
    with plt.rc_context({"backend": "Agg"}):
        for name in ("machine", "memory", *mixture):
            exec(cells[name], given)
            if name == "mixture-name":
                given["MIXTURE"] = str(tmp_path / "mixture")
    plt.close("all")
    assert given["run"].ranks["model.layers.1.mlp.experts.down_proj"] > 0
    assert "experts do 90 % of the work" in given["use"].headline


def test_the_smart_home_files_are_what_their_script_writes(tmp_path):
    shutil.copy(NOTEBOOKS / "data" / "smart_home.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "smart_home.py"], check=True)
    for split in ("train.jsonl", "test.jsonl"):
        stored = (NOTEBOOKS / "data" / "smart_home" / split).read_text()
        assert stored == (tmp_path / "smart_home" / split).read_text()


def test_the_smart_home_test_asks_for_pairs_that_training_does_not_name():
    folder = NOTEBOOKS / "data" / "smart_home"
    rows = {s: [json.loads(r) for r in (folder / f"{s}.jsonl").read_text().splitlines()] for s in ("train", "test")}
    pairs = {split: {tuple(re.split("[.=]", row["completion"])[:2]) for row in rows[split]} for split in rows}
    assert (len(rows["train"]), len(rows["test"])) == (240, 100)
    assert len(pairs["test"]) == 16
    assert not pairs["test"] & pairs["train"]
    for part in (0, 1):  # each room and each device is trained on
        assert {pair[part] for pair in pairs["test"]} <= {pair[part] for pair in pairs["train"]}
    for row in rows["train"] + rows["test"]:
        assert all(word in row["prompt"] for word in re.split("[.=]", row["completion"])[:2])
