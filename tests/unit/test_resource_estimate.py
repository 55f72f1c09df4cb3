"""What a model will take, from its config: counts that are published, and memory that processes were seen to hold."""

import os
import subprocess
import sys

import pytest
from transformers import AutoConfig, LlamaConfig, MixtralConfig

import tlora
from tests.helpers.models import FAMILIES, tiny_batch, tiny_config, tiny_model
from tlora.resource_estimate import estimate, matmul_speed

SMALL = {"samples": 4, "length": 16, "batch_size": 2}
MEDIUM = LlamaConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=12, vocab_size=4000
)
WORK = {"samples": 8, "length": 128, "batch_size": 8, "labels": 16}
# Peaks of a process, less what it held before there was a model.
MEASURED = """
import gc, re, sys, torch, tlora
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from tlora.comparison.run import PeakMemory

torch.set_num_threads(1)
folder, what, rank, length, batch_size, labels = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
tiny = AutoConfig.from_pretrained(folder, num_hidden_layers=1, vocab_size=50)
ids = torch.randint(3, 50, (batch_size, length))
some = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
# What libraries take at first use.
tlora.calibrate(AutoModelForCausalLM.from_config(tiny).eval(), [some], progress=False)
gc.collect()
before = int(re.search(r"^VmRSS:\\s+(\\d+) kB$", Path("/proc/self/status").read_text(), re.M)[1]) * 1024
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
model.requires_grad_(False)
ids = torch.randint(3, 4000, (batch_size, length))
targets = ids.masked_fill(torch.arange(length) < length - labels, -100)
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": targets}
if what.startswith("calibration"):
    kept = "sketch" if what.endswith("sketched") else "dense"
    with PeakMemory(torch.device("cpu")) as peak:
        tlora.calibrate(model, [batch], covariance=kept, sketch_size=64, progress=False)
else:
    few = {name: value[:1, -8:] for name, value in batch.items()}
    sensitivity = tlora.calibrate(model, [few], covariance="sketch", sketch_size=8, progress=False).sensitivity
    allocation = tlora.allocate(sensitivity, rank, adapt_ranks=False, adapt_scales=False)
    adapted = tlora.attach(model, None, allocation, freeze_a=what == "training B").train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
    gc.collect()
    from tlora.models.forward import at_labels
    with PeakMemory(torch.device("cpu")) as peak:
        for _ in range(2):
            adapted(**at_labels(adapted, batch)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
print(peak.bytes - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["calibration, covariances whole", "calibration, covariances sketched", "training B", "training A and B"],
)
def test_memory_is_what_a_process_holds(stage, tmp_path):
    MEDIUM.save_pretrained(tmp_path)
    expected = estimate(MEDIUM, 64, **WORK, sketch_size=64).bytes[stage]
    sizes = [str(value) for value in (64, WORK["length"], WORK["batch_size"], WORK["labels"])]
    command = [sys.executable, "-c", MEASURED, tmp_path, stage, *sizes]
    # Tensors that are let go of leave the process at once, and not when the allocator sees fit.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert expected == pytest.approx(int(ran.stdout.splitlines()[-1]), rel=0.15)


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_are_those_of_the_model_and_share_the_inputs_that_it_shares(family):
    model = tiny_model(family)
    calibration = tlora.calibrate(model, [tiny_batch(model)], progress=False)
    found = estimate(tiny_config(family), 2, **SMALL)
    assert found.shared == calibration.shared
    assert found.shapes == calibration.sensitivity.shapes
    assert found.parameters == model.num_parameters()
    whole = sum(4 * len(calibration.covariance[name].dense()) ** 2 for name in set(calibration.shared.values()))
    assert found.bytes["calibration, covariances whole"] > found.bytes["weights"] + whole


def test_where_layers_are_dropped_at_random_a_step_of_all_of_them_is_counted():
    config = tiny_config("opt")
    whole = estimate(config, 2, **SMALL)
    config.layerdrop = 0.5
    assert estimate(config, 2, **SMALL).bytes == whole.bytes


@pytest.mark.parametrize(("rank", "lora", "b"), [(128, 319_815_680, 174_063_616), (32, 79_953_920, 43_515_904)])
def test_counts_of_llama_2_7b_are_the_published_ones(rank, lora, b):
    found = estimate(LlamaConfig(num_hidden_layers=1), rank, **SMALL)
    assert {kind: 32 * count for kind, count in found.trainable.items()} == {"A and B": lora, "B": b}


def test_statistics_of_a_block_of_llama_2_7b():
    """Four distinct inputs, three of 4,096 and one of 11,008; in sketches of 256 columns a thirtieth of that."""
    found = estimate(LlamaConfig(num_hidden_layers=1), 8, **SMALL, sketch_size=256).bytes
    whole, sketched = (found[f"calibration, covariances {kind}"] for kind in ("whole", "sketched"))
    assert whole - sketched == 4 * (3 * 4096**2 + 11008**2 - (3 * 4096 + 11008) * 256 - (4096 + 11008) * 256)
    assert 32 * 4 * (3 * 4096 + 11008) * 256 < 1e9  # all blocks of it in less than a gigabyte


def test_operations_are_counted_by_the_rule_of_thumb():
    """Two a parameter and token forward, two more backward where no weight is trained."""
    config = LlamaConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, vocab_size=50
    )
    found = estimate(config, 1, samples=2, length=8, batch_size=2, labels=8)
    linear = sum(rows * columns for rows, columns in found.shapes.values())
    tokens = 2 * 8
    products = tokens * (2 * linear + 4 * (3 * 256**2 + 1024**2))  # scores; covariances of four inputs a block
    assert found.flops["calibration, covariances whole"] - products == pytest.approx(4 * linear * tokens, rel=0.05)
    assert found.flops["training B"] == pytest.approx(4 * linear * tokens, rel=0.1)


def test_time_and_what_fits():
    config = tiny_config("llama")
    frame = estimate(config, 2, **SMALL).to_frame()
    assert frame["seconds"].isna().all()
    assert frame["fits"].isna().all()
    largest = frame["gigabytes"].max() * 1e9
    frame = estimate(config, 2, **SMALL, speed=1e9, memory=largest - 1).to_frame()
    assert frame["seconds"].tolist() == pytest.approx((1e3 * frame["teraflops"]).tolist())
    assert (~frame["fits"].astype(bool)).sum() == (frame["gigabytes"] * 1e9 == largest).sum()


def test_half_precision_halves_the_weights():
    config = tiny_config("llama")
    single, half = (estimate(config, 2, **SMALL, dtype=dtype).bytes["weights"] for dtype in ("float32", "bfloat16"))
    assert half == pytest.approx(single / 2, rel=0.1)


@pytest.mark.packaged
def test_a_packaged_model_is_estimated_by_name_and_not_loaded(monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    found = estimate("smollm2-135m", **SMALL)
    assert found.parameters == 134_515_008
    assert found.meta.model == "smollm2-135m"


def test_the_config_is_left_as_it_was(tmp_path):
    config = tiny_config("bert")
    before = config.to_dict()
    estimate(config, 2, **SMALL, num_labels=7)
    assert config.to_dict() == before
    config.save_pretrained(tmp_path)
    assert estimate(tmp_path, 2, **SMALL).shapes == estimate(AutoConfig.from_pretrained(tmp_path), 2, **SMALL).shapes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 1000}, "rank=1000 is beyond the matrices of the 14 modules: give at most"),
        ({"length": 0}, "length"),
        ({"labels": 17}, "no more labels than tokens"),
        ({"dtype": "int8"}, "floating-point"),
        ({"sketch_size": 0}, "sketch_size"),
        ({"speed": 0}, "speed must be above 0 and finite, got 0"),
        ({"memory": -1.0}, "memory must be above 0 and finite, got -1"),
        ({"memory": float("inf")}, "memory must be above 0 and finite"),
    ],
)
def test_refuses_what_is_out_of_range(changes, words):
    with pytest.raises(ValueError, match=words):
        estimate(tiny_config("llama"), **({"rank": 2} | SMALL | changes))


@pytest.mark.parametrize(
    ("family", "most", "table"),
    [
        ("bert", 80, "bert.embeddings.position_embeddings"),
        ("roberta", 78, "roberta.embeddings.position_embeddings"),
        ("gpt2", 64, "transformer.wpe"),
        ("opt", 64, "model.decoder.embed_positions"),
    ],
)
def test_samples_are_no_longer_than_positions_were_learnt(family, most, table):
    work = {"samples": 1, "batch_size": 1}
    assert estimate(tiny_config(family), 2, **work, length=most).parameters
    words = f"length={most + 1}: the model reads at most {most} tokens, by {table}: ask for fewer"
    with pytest.raises(ValueError, match=words):
        estimate(tiny_config(family), 2, **work, length=most + 1)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_positions_that_are_computed_have_no_end(family):
    assert estimate(tiny_config(family), 2, samples=1, length=200, batch_size=1).parameters


def test_speed_is_that_of_a_product():
    assert 1e8 < matmul_speed(seconds=0.05) < 1e15


def test_experts_are_counted_in_any_type():
    """Without data torch knows their products for bfloat16 alone; in float32 all that is held is twice as large."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64}
    config = MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    full, short = (estimate(config, 2, **SMALL, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert full.bytes["weights"] == pytest.approx(2 * short.bytes["weights"], rel=0.01)
    whole = [found.bytes["calibration, covariances whole"] - found.bytes["subspaces"] for found in (full, short)]
    assert 1.7 < whole[0] / whole[1] < 2.1
    assert full.flops == short.flops


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_head_of_a_classifier_is_trained_too(family):
    model = tiny_model(family, num_labels=5)
    calibration = tlora.calibrate(model, [tiny_batch(model)], progress=False)
    allocation = tlora.allocate(calibration.sensitivity, 2, adapt_ranks=False, adapt_scales=False)
    found = estimate(tiny_config(family), 2, **SMALL, num_labels=5)
    without = estimate(tiny_config(family), 2, **SMALL, num_labels=2)
    assert found.bytes["training B"] > without.bytes["training B"]
    for freeze_a, kind in ((True, "B"), (False, "A and B")):
        adapted = tlora.attach(model, None, allocation, freeze_a, replace=True)
        assert found.trainable[kind] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_quantised_weights_are_told_to_be_counted_whole():
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.warns(UserWarning, match=r"asks for quantised weights, and the estimate counts them in torch.float32"):
        assert estimate(config, 2, **SMALL).bytes == estimate(tiny_config("llama"), 2, **SMALL).bytes


def test_an_encoder_decoder_may_write_more_than_it_reads():
    few, many = (estimate(tiny_config("t5"), 2, **SMALL, labels=labels) for labels in (4, 40))
    assert many.flops["training B"] > 1.5 * few.flops["training B"]
