"""What is suggested before training: counts by PEFT, bits by the task's own loss, halves that are alike."""

import json
import math

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.commands import done
from tests.helpers.jobs import PAIRS, task
from tests.helpers.models import tiny_model, tiny_tokenizer
from tlora import suggestion
from tlora.suggestion import suggest


def of(rows) -> tlora.Task:
    return tlora.load_task({"train": Dataset.from_list(rows)}, tiny_tokenizer(), validation=0, test=0)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_bits_are_the_loss_of_all_answers(family):
    model, data = tiny_model(family), task(family)
    if family == "t5":
        data = tlora.load_task(
            {"train": Dataset.from_list(PAIRS[:20])}, tiny_tokenizer(), architecture="seq2seq", test=0, validation=0
        )
    found = suggest(model, data, samples=20, ranks=(1, 2), progress=False)
    labels = 20 if family == "bert" else sum(label != -100 for row in data.train for label in row["labels"])
    assert found.labels == labels
    assert found.bits == pytest.approx(labels * data.evaluate(model, "train")["loss"] / math.log(2), rel=1e-4)
    assert found.bits_low < found.bits < found.bits_high


def test_what_is_trained_is_what_peft_trains():
    found = suggest(tiny_model("llama"), task(), samples=4, ranks=(2, 1, 64), progress=False)
    assert found.ranks == [1, 2, 64]
    for rank, both, alone in zip(found.ranks[:2], *(found.trainable[kind] for kind in ("A and B", "B")), strict=False):
        peft = get_peft_model(tiny_model("llama"), LoraConfig(r=rank, target_modules="all-linear"))
        names = dict(peft.named_parameters())
        assert both == sum(p.numel() for p in names.values() if p.requires_grad)
        assert alone == sum(p.numel() for n, p in names.items() if "lora_B" in n)
    largest = sum(min(t.d_out, t.d_in) * (t.d_out + t.d_in) for t in tlora.target_modules(tiny_model("llama")).values())
    assert found.trainable["A and B"][2] == largest  # no module has more rank than its matrix
    gradient, parameters = (sum(shares) for shares in zip(*found.projections.values(), strict=True))
    assert (gradient, parameters) == pytest.approx((1, 1))
    frame = found.to_frame()
    assert frame["filled"].tolist() == pytest.approx([found.bits / (2 * n) for n in found.trainable["A and B"]])
    assert frame["captured"].between(frame["captured_low"], frame["captured_high"]).tolist() == [True, True, False]
    assert (frame["captured"][:2] <= frame["best"][:2]).all()


def test_the_smallest_rank_that_holds_the_answers(monkeypatch):
    model, data = tiny_model("llama"), task()
    found = suggest(model, data, samples=4, ranks=(1, 2, 4, 16), progress=False)
    assert (found.enough, found.rank) == (1, 4)  # 8 or, as here, the nearest below is where to begin
    assert "LoRA of rank 1 holds" in found.sentences()[0]
    # as if a parameter held so little that rank 1 is a little short, and rank 2 more than enough
    monkeypatch.setattr(suggestion, "BITS_A_PARAMETER", 0.9 * found.bits / found.trainable["A and B"][0])
    assert suggest(model, data, samples=4, ranks=(1, 2, 16), progress=False).enough == 2
    monkeypatch.setattr(suggestion, "BITS_A_PARAMETER", 0.5 * found.bits / found.trainable["A and B"][2])
    assert suggest(model, data, samples=4, ranks=(16, 32), progress=False).rank == 16
    most = suggest(model, data, samples=4, ranks=(1, 2, 4), progress=False)
    assert (most.enough, most.rank) == (None, 4)
    assert most.sentences()[0].startswith("Rank 4, or full fine-tuning: ")


def test_halves_of_the_same_rows_are_alike_and_others_are_not():
    same = suggest(tiny_model("llama"), of(PAIRS[:1] * 8), samples=8, ranks=(1, 2), progress=False)
    assert (same.kendall, same.overlap) == pytest.approx((1, 1), abs=1e-4)
    assert same.samples == 4
    assert "4 calibration samples: two halves of 4 order" in same.sentences()[2]
    other = suggest(tiny_model("llama"), of(PAIRS), samples=8, ranks=(1, 2, 4), progress=False)
    assert other.overlap < 0.8
    assert other.samples is None
    assert other.sentences()[2].startswith("More than 8 calibration samples: ")


def test_a_projection_that_carries_little_gradient_is_the_first_to_go():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data *= 1e-3  # nothing of the values gets out
    found = suggest(model, task(), samples=4, ranks=(1, 2), progress=False)
    assert found.projections["v_proj"][0] < 1e-3
    assert "If some must go, " in found.sentences()[1]
    assert any(f"If some must go, {name}:" in found.sentences()[1] for name in ("q_proj", "k_proj", "v_proj"))


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match=r"tlora\.load_task\(\.\.\.\)"):
        suggest(tiny_model("llama"), [{}])
    for given, words in (
        ({"samples": 3}, "samples=3: give four or more"),
        ({"samples": 21}, "training split of .* has 20"),
        ({"ranks": (0,)}, "ranks"),
        ({"ranks": (64, 17)}, r"ranks=\[17, 64\] are beyond the smallest module: give one of 16 or less"),
        ({"confidence": 1.5}, "confidence"),
    ):
        with pytest.raises(ValueError, match=words):
            suggest(tiny_model("llama"), task(), **({"samples": 4} | given), progress=False)


@pytest.mark.usefixtures("workplace")
def test_the_command_says_it_in_sentences_and_ends_with_the_next():
    line = "suggest --model llama --task pairs.jsonl --samples 6 -q"
    said = done(line).stdout
    assert "calibration samples: two halves of 3" in said
    assert "next  tlora run --model llama --task pairs.jsonl --output adapter" in said
    found = json.loads(done(f"{line} --json").stdout)
    assert found["rank"] == 8
    assert all(sentence in said for sentence in found["sentences"])
    assert [row["rank"] for row in found["ranks"]][:4] == [1, 2, 4, 8]
