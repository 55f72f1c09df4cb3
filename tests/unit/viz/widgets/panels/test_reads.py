"""The panel "Reads": its bytes are the activations, and the text of samples leaves only if asked for."""

from __future__ import annotations

import dataclasses
import json
from base64 import b64decode
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tlora
import viz
from tests.helpers.experts import routed, tiny_mixture
from tests.helpers.models import tiny_batch, tiny_tokenizer
from tests.helpers.reported import page_data
from tests.helpers.results import activations, calibration, subspaces
from tlora.explanation.direction_activations_result import PARTS
from viz.widgets.panels.panel import Context
from viz.widgets.panels.parts import percent
from viz.widgets.panels.reads import PAGE_BYTES, PAGE_DIRECTIONS, ReadsPanel, extent, finding, reading
from viz.widgets.results import Results

NAMES = calibration().names


def bench() -> viz.Workbench:
    return viz.Workbench(calibration(), subspaces(), activations=activations(), rank=2)


def shown(found: Any) -> dict[str, Any]:
    """The part that the browser draws."""
    return ReadsPanel(Context(Results(activations=found), NAMES)).parts()[-1]


@pytest.mark.parametrize("k", [0, 6, 13])
def test_bytes_are_the_values_of_a_module(k: int) -> None:
    found, shown = activations(), reading(activations(), NAMES, k)
    z, need = found.z[NAMES[k]].float(), found.need[NAMES[k]].float()
    levels = np.frombuffer(b64decode(shown["values"]), np.int8).reshape(len(shown["scales"]), -1)
    values = levels * np.array(shown["scales"])[:, None]
    expected = torch.cat([z.flatten(0, 1), need[None]]).numpy()
    assert shown["directions"] == z.shape[1]
    np.testing.assert_allclose(values, expected, atol=np.abs(expected).max() / 250)


def test_the_panel_says_which_tokens_and_how_much_is_constant() -> None:
    found = activations()
    part, tokens = shown(found), found.tokens["input_ids"]
    side = part["sides"]["input_ids"]
    assert [side["texts"][n] for n in side["text"]] == tokens.texts
    assert [PARTS[int(n)] for n in side["part"]] == [PARTS[n] for n in tokens.parts]
    assert side["sample"] == tokens.samples.tolist()
    shares = found.constant_share("module").set_index(["module", "kind"])["constant"]
    for name, row in zip(NAMES, part["constant"], strict=True):
        assert row == pytest.approx([shares[name, kind] for kind in found.kinds], abs=0.006)
    agreement = found.to_frame().groupby(["module", "kind"])["agreement"].mean()
    for name, row in zip(NAMES, part["agreement"], strict=True):
        assert row == pytest.approx([agreement[name, kind] for kind in found.kinds], abs=0.006)
    for name, words in zip(NAMES, part["words"], strict=True):
        furthest = int(found.z[name][0, 0].float().abs().argmax())
        assert words[0] == found.tokens[found.sides[name]].texts[furthest]
        assert 1 < len(words) <= 6
    for row in found.constant_share().itertuples():
        assert f"{row.kind} {percent(row.constant)}" in finding(found)


def test_a_page_holds_what_fits() -> None:
    found = activations()
    long = dataclasses.replace(
        found,
        z={name: z.repeat(1, 1, 4000) for name, z in found.z.items()},
        need={name: need.repeat(4000) for name, need in found.need.items()},
        tokens={
            side: dataclasses.replace(
                tokens,
                ids=tokens.ids.repeat(4000),
                texts=tokens.texts * 4000,
                parts=tokens.parts.repeat(4000),
                samples=torch.arange(4000).repeat_interleave(len(tokens.texts)) * 3 + tokens.samples.repeat(4000),
            )
            for side, tokens in found.tokens.items()
        },
    )
    samples, directions = extent(long, small=True)
    assert directions == PAGE_DIRECTIONS
    assert 0 < samples < 12000
    sizes = [len(b64decode(reading(long, NAMES, k, small=True)["values"])) for k in range(len(NAMES))]
    assert 0.5 * PAGE_BYTES < sum(sizes) <= PAGE_BYTES
    assert extent(found, small=True) == (3, PAGE_DIRECTIONS)
    assert extent(found, small=False) == (3, 8)


def test_the_text_of_samples_is_in_a_page_only_if_asked_for(tmp_path: Path) -> None:
    it = bench()
    texts = [text.strip() for text in activations().tokens["input_ids"].texts]
    plain = it.page(tmp_path / "plain.html").read_text()
    assert not any(f'"{text}"' in plain or f'" {text}"' in plain for text in texts)
    assert all(f" {text}" in it.page(tmp_path / "reads.html", texts=True).read_text() for text in texts)
    it._answer(it.widget, {"call": "page", "args": {"texts": False}, "id": 1}, [])
    without = viz.Workbench(calibration(), subspaces(), rank=2)
    assert [p["name"] for p in without.widget.about["panels"]] == [
        p["name"] for p in it.widget.about["panels"] if p["name"] != "reads"
    ]


def test_the_selected_module_is_read_when_the_browser_asks() -> None:
    it = bench()
    assert it.widget.reading == {}
    it._answer(it.widget, {"call": "read", "args": {"module": 3}, "id": 1}, [])
    assert it.widget.reading == reading(activations(), NAMES, 3)
    json.dumps(it.widget.about)


def test_a_module_that_was_not_read_has_no_values() -> None:
    name, found = NAMES[2], activations()
    parts = {
        field: {n: v for n, v in getattr(found, field).items() if n != name}
        for field in ("z", "deviations", "sides", "targets")
    }
    part = shown(dataclasses.replace(found, **parts))
    assert part["side"][2] is None
    assert part["constant"][2] == [None, None]
    assert (part["words"][2], bool(part["words"][0])) == ([], True)
    assert reading(dataclasses.replace(found, **parts), NAMES, 2) == {"module": 2}


def test_a_session_keeps_the_activations(tmp_path: Path) -> None:
    again = viz.Workbench.load(bench().save(tmp_path / "session"))
    assert again.results.activations is not None
    assert reading(again.results.activations, NAMES, 1) == reading(activations(), NAMES, 1)


@cache
def experts() -> Any:
    """A workbench of a mixture, and what the directions of its experts read."""
    from_ = routed()
    made = tlora.task_subspaces(tiny_mixture(), from_, max_rank=4, kind="fisher", progress=False)
    batch = tiny_batch("llama", lengths=(7, 4, 9), seed=2)
    found = tlora.direction_activations(tiny_mixture(), made, [batch], tokenizer=tiny_tokenizer(), progress=False)
    return viz.Workbench(from_, made, activations=found, rank=2), found


def test_of_a_parameter_each_expert_has_the_values_of_its_tokens(tmp_path: Path) -> None:
    it, found = experts()
    name = "model.layers.1.mlp.experts.down_proj"
    k = it.names.index(name)
    part = ReadsPanel(Context(it.results, it.names, show=lambda **traits: None)).parts()[-1]
    counts = {int(n): len(found.routed[f"{name}[{n}]"]) for n in range(4) if f"{name}[{n}]" in found.routed}
    assert dict(part["experts"][k]) == counts
    assert part["experts"][k][0][1] == max(counts.values())
    assert part["experts"][it.names.index("model.layers.0.self_attn.q_proj")] == []
    frame = found.to_frame()
    for expert in counts:
        module = f"{name}[{expert}]"
        it._answer(it.widget, {"call": "read", "args": {"module": k, "expert": expert}, "id": 1}, [])
        shown = it.widget.reading
        assert (shown["module"], shown["expert"]) == (k, expert)
        assert shown["routed"] == found.routed[module].tolist()
        levels = np.frombuffer(b64decode(shown["values"]), np.int8).reshape(len(shown["scales"]), -1)
        z = found.z[module].float().flatten(0, 1).numpy()
        np.testing.assert_allclose(levels * np.array(shown["scales"])[:, None], z, atol=np.abs(z).max() / 250)
        mean = frame[(frame["module"] == module) & (frame["kind"] == "fisher")]["agreement"].mean()
        assert shown["agreement"][0] == pytest.approx(mean, abs=0.006)
    page = page_data(it.page(tmp_path / "page.html", texts=True))
    first = part["experts"][k][0]
    (panel,) = [panel for panel in page["about"]["panels"] if panel["name"] == "reads"]
    assert panel["parts"][-1]["experts"][k] == [first]
    assert page["readings"][k] == reading(found, it.names, k, small=True, expert=first[0])
