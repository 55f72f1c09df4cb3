"""Ways to train in a given memory: each row is counted again with the arguments it names."""

from functools import cache

import pytest
from transformers import FalconConfig, LlamaConfig

from tests.helpers.models import tiny_config
from tlora.resources.estimate import estimate

WIDE = LlamaConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=4, vocab_size=1000)
WORK = {"samples": 8, "length": 256, "batch_size": 8, "dtype": "bfloat16", "sketch_size": 64}
SHORT = WORK | {"length": 8, "batch_size": 2, "sketch_size": 4}


@cache
def plain():
    """Peak memory of each stage as asked."""
    return estimate(WIDE, 8, **WORK).bytes


@cache
def ways(fraction):
    """Ways to train in this part of the memory that training with a frozen A takes as asked."""
    return estimate(WIDE, 8, **WORK, speed=1e12, memory=fraction * plain()["training B"]).what_fits


@pytest.mark.parametrize("fraction", [0.75, 0.2])
def test_a_row_takes_what_an_estimate_of_its_arguments_says(fraction):
    for row in ways(fraction).query("fits").iloc[:3].itertuples():
        options = {name: getattr(row, name) for name in ("batch_size", "gradient_checkpointing", "optim", "gpus")}
        sizes = estimate(WIDE, 8, **WORK | options).bytes
        form = "whole" if row.covariance == "dense" else "sketched"
        calibration = sizes[f"calibration, covariances {form}"]  # subspaces of sketches take less
        assert 1e9 * row.gigabytes == pytest.approx(sizes[f"training {row.training}"])
        assert calibration <= round(1e9 * row.calibration_gigabytes) <= max(calibration, sizes["subspaces"])
        assert 1e9 * max(row.gigabytes, row.calibration_gigabytes) <= fraction * plain()["training B"]
        assert row.batch_size * row.gradient_accumulation_steps == WORK["batch_size"]


@pytest.mark.parametrize(("fraction", "changed"), [(3, set()), (0.75, {"batch_size"}), (0.2, {"batch_size", "gpus"})])
def test_the_first_row_changes_no_more_than_it_has_to(fraction, changed):
    first = ways(fraction).iloc[0]
    asked = {"batch_size": 8, "bits": 16, "optim": "adamw_torch", "gpus": 1}
    assert first["fits"]
    assert {name for name, value in asked.items() if first[name] != value} == changed


def test_a_base_that_is_too_large_is_quantized_before_it_is_shared():
    llama = LlamaConfig(num_hidden_layers=4)
    memory = 0.9 * estimate(llama, 8, **SHORT).bytes["weights"]
    first = estimate(llama, 8, **SHORT, memory=memory).what_fits.iloc[0]
    assert (first["fits"], first["bits"], first["gpus"], first["batch_size"]) == (True, 4, 1, 2)
    assert "the base is rounded to 4 bits" in first["costs"]


def test_what_fits_comes_first_and_the_rest_by_what_it_lacks():
    frame = ways(0.75)
    fits = frame["fits"].tolist()
    assert fits == sorted(fits, reverse=True)
    lacking = frame[~frame["fits"].astype(bool)]
    # each that does not fit as asked is there as it fits, too
    assert len(set(zip(frame["training"], frame["gradient_checkpointing"], strict=True))) == len(fits) - len(lacking)
    assert lacking[["gigabytes", "calibration_gigabytes"]].max(axis=1).is_monotonic_increasing


def test_all_that_fits_as_asked_is_there_once_and_float32_adapters_come_first():
    frame = ways(3)
    assert frame["training"].tolist() == ["B", "A and B", "B", "A and B", *["A and B, adapter as base"] * 2]
    assert frame["gradient_checkpointing"].tolist() == [False, False, True, True, False, True]


def test_freezing_a_avoids_checkpointing():
    sizes = estimate(WIDE, 8, **WORK | {"sketch_size": 8, "samples": 1}, memory=1e12).what_fits
    training = sizes.set_index(["training", "gradient_checkpointing"])["gigabytes"]
    memory = 0.5e9 * (training["B", False] + training["A and B", False])
    first = estimate(WIDE, 8, **WORK | {"sketch_size": 8, "samples": 1}, memory=memory).what_fits.iloc[0]
    assert first[["training", "gradient_checkpointing", "batch_size"]].tolist() == ["B", False, 8]


def test_accumulated_batches_take_the_operations_of_one():
    frame = ways(0.75).query("training == 'B' and not gradient_checkpointing")
    accumulated, whole = (row for _, row in frame.iterrows())
    assert (accumulated["batch_size"], whole["batch_size"]) == (4, 8)
    assert accumulated["teraflops"] == pytest.approx(whole["teraflops"], rel=0.01)
    assert accumulated["seconds"] == pytest.approx(accumulated["teraflops"])


def test_whole_covariances_are_summed_beside_the_model_if_they_fit_else_on_the_host():
    whole, on_host = (plain()[f"calibration, covariances {form}"] for form in ("whole", "whole on the host"))
    for memory, placement in ((whole, "device"), ((whole + on_host) / 2, "host")):
        first = estimate(WIDE, 8, **WORK, memory=memory).what_fits.iloc[0]
        assert first[["covariance", "statistics", "batch_size"]].tolist() == ["dense", placement, 8]
        assert ("the host's memory" in first["costs"]) == (placement == "host")


@pytest.mark.parametrize(("gpus", "blocks"), [(0, 6), (1, 40)])
def test_covariances_are_sketched_without_another_memory_for_them_or_if_they_would_fill_it(gpus, blocks):
    """Whole ones of 40 blocks take more than the memory that a sketched calibration needs."""
    config = LlamaConfig(**WIDE.to_diff_dict() | {"num_hidden_layers": blocks})
    work = WORK | {"gpus": gpus, "gradient_checkpointing": True}
    sizes = estimate(config, 8, **work).bytes
    memory = max(sizes["calibration, covariances sketched"], sizes["training B"])
    assert memory < sizes["calibration, covariances whole"]
    ways = estimate(config, 8, **work, memory=memory).what_fits.query("training == 'B' and gradient_checkpointing")
    first = ways.iloc[0]
    assert first[["covariance", "statistics", "batch_size"]].tolist() == ["sketch", "device", 8]
    assert "columns of each covariance" in first["costs"]


def test_calibration_checkpoints_as_training_does():
    frame = estimate(WIDE, 8, **WORK).what_fits.set_index(["training", "gradient_checkpointing"])
    assert frame["calibration_gigabytes"]["B", True] < 0.8 * frame["calibration_gigabytes"]["B", False]


def test_lora_starts_without_fisher_matrices():
    frame = estimate(WIDE, 8, **WORK, fisher=True).what_fits
    frozen, lora = (frame[frame["training"] == kind]["calibration_gigabytes"].iloc[0] for kind in ("B", "A and B"))
    assert lora < frozen


def test_the_cpu_is_not_told_to_take_gpus_or_paged_states():
    frame = estimate(WIDE, 8, **SHORT | {"gpus": 0}, memory=1e6).what_fits
    assert set(frame["gpus"]) == {0}
    assert set(frame["optim"]) == {"adamw_torch"}
    assert not frame["fits"].any()


def test_without_memory_all_ways_are_as_asked():
    frame = estimate(WIDE, 8, **SHORT).what_fits
    assert frame[["fits", "most_samples", "most_tokens", "seconds"]].isna().all(axis=None)
    assert (frame["batch_size"] == 2).all()
    assert (frame["training"].iloc[0], frame["gradient_checkpointing"].iloc[0]) == ("B", False)


def test_nothing_fits_into_less_than_the_weights():
    """In a step of a few tokens of a small vocabulary, most bytes may grow with the square of the length."""
    config = tiny_config("t5", num_layers=2, num_heads=8)
    ways = estimate(config, 2, samples=4, length=512, batch_size=8, memory=1e3).what_fits
    assert (ways["most_samples"] == 0).all()
    assert (ways["most_tokens"] == 0).all()


@pytest.mark.parametrize(("multi_query", "labels"), [(True, None), (False, 4)])
def test_the_largest_batch_and_length_fit_and_more_does_not(multi_query, labels):
    """Attention of one key for all queries is a matrix of tokens by tokens."""
    config = FalconConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=500, multi_query=multi_query
    )
    work = {"samples": 4, "batch_size": 2, "length": 32, "labels": labels}
    memory = 4 * estimate(config, 2, **work).bytes["training A and B"]
    for row in estimate(config, 2, **work, memory=memory).what_fits.itertuples():
        options = work | {"gradient_checkpointing": row.gradient_checkpointing}
        for name, size in (("batch_size", row.most_samples), ("length", row.most_tokens)):
            fits, more = (
                estimate(config, 2, **options | {name: count}).bytes[f"training {row.training}"]
                for count in (size, round(1.1 * size + 1))
            )
            assert fits < 1.05 * memory < 1.05 * more
