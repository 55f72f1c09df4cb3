"""The page on PEFT's board shows what `tlora.estimate` computes, and what it says about PEFT is so."""

import math

from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer

import tlora
from benchmarks.quality import board
from benchmarks.quality.pages import fill_blocks
from tests.helpers.models import tiny_model


def test_the_tables_are_what_is_estimated():
    text = board.PAGE.read_text()
    assert fill_blocks(text, "board", board.TABLES) == text, "run python -m benchmarks.quality.board --table"


def test_the_numbers_in_the_sentences_are_those_of_the_tables():
    text, peaks = board.PAGE.read_text(), board.peaks(board.Case("q, v"))
    lora, frozen, miss = board.BOARD["LoRA"], board.BOARD["LoRA-FA"], board.BOARD["MiSS"]
    measured = (lora[board.JANUARY].peak - frozen[board.JANUARY].peak) / 1e9
    estimated = (peaks["training A and B"] - peaks["training B"]) / 1e9
    assert f"{measured:.2f} GB measured, {estimated:.2f} estimated" in text
    assert f"LoRA-FA's rose by {(frozen[board.JULY].peak - frozen[board.JANUARY].peak) / 1e9:.2f} GB" in text
    below = (lora[board.JULY].peak - miss[board.JULY].peak) / 1e9
    assert f"{miss[board.JULY].accuracy:.3f} at {miss[board.JULY].peak / 1e9:.2f} GB, {below:.2f} below LoRA" in text
    share = frozen[board.JULY].accuracy
    assert f"error is {math.sqrt(share * (1 - share) / board.QUESTIONS):.3f}" in text
    all_layers = board.peaks(board.Case("all linear layers"))
    ratio = (all_layers["training A and B"] - all_layers["training B"]) / 1e9 / estimated
    assert f"{ratio:.1f} times as much with all linear layers" in text


def test_the_config_has_the_parameters_that_the_board_counts():
    with_lora = 3_221_924_864  # num_total_params of lora--llama-3.2-3B-rank32
    estimate = tlora.estimate(board.LLAMA, board.RANK, length=8, target_modules=board.TARGETS["q, v"])
    assert estimate.parameters + estimate.trainable["A and B"] == with_lora


def test_in_the_boards_order_a_is_trainable_in_the_steps():
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(tiny_model("llama"), config)
    create_lorafa_optimizer(adapted, r=2, lora_alpha=8, lr=1e-4)
    a = [parameter for name, parameter in adapted.named_parameters() if "lora_A" in name]
    assert a
    assert not any(parameter.requires_grad for parameter in a)
    with adapted.disable_adapter():
        pass
    assert all(parameter.requires_grad for parameter in a)
