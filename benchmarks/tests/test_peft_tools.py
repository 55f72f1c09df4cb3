"""The tables beside PEFT's tools: at equal task loss, and the page is that of the store."""

import numpy as np
import pytest

from benchmarks.lab.store import Store
from benchmarks.quality import peft_tools
from benchmarks.quality.pages import fill_blocks


@pytest.mark.skipif(not peft_tools.STORE.path.exists(), reason="nothing was measured yet")
def test_the_page_is_of_the_store():
    text = peft_tools.PAGE.read_text()
    assert fill_blocks(text, "peft_tools", peft_tools.TABLES) == text, (
        "run python -m benchmarks.quality.peft_tools --table"
    )


SCALES = np.array([0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("loss", "losses", "scale"),
    [
        (1.0, [4.0, 2.0, 1.0], 1.0),
        (0.5, [4.0, 2.0, 1.0], 1.0),  # lower than at any scale
        (1.5, [4.0, 2.0, 1.0], 0.75),
        (3.0, [4.0, 2.0, 1.0], 0.25),
        (1.5, [4.0, 1.0, 2.0], 1.0),  # already higher at the full scale
        (9.0, [4.0, 2.0, 1.0], 1.0),
    ],
)
def test_the_scale_of_equal_loss_is_the_first_from_above(loss, losses, scale):
    assert peft_tools.scale_for(loss, SCALES, np.array(losses)) == scale


def test_other_text_is_compared_at_equal_task_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(peft_tools, "STORE", Store(tmp_path / "runs.jsonl"))
    for variant in peft_tools.VARIANTS:
        scale = variant.get("scale", 0.0)
        task, other = 4 - 2 * scale, 1 + scale  # both linear in the scale
        if variant["what"] == "intruders":
            task, other = 3.0, 1.75  # the task as at a scale of 0.5, where other text has 1.5
        losses = {"task": [task] * 3, "prose": [other] * 2, "code": [other] * 2}
        key = peft_tools.cell_key("smart_home", "lora", variant)
        peft_tools.STORE.append({"key": key, "losses": losses})
    first, *_ = peft_tools.intruder_table().splitlines()[2:]
    cells = [cell.strip() for cell in first.split("|")[3:-1]]
    assert cells == ["0.75", "3.000", "+0.750", "0.50", "+0.500", "-0.250 (-0.250 to -0.250)"]
