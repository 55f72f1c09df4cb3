"""Every family of language models that transformers has: calibrated as by autograd, or refused in a sentence."""

from __future__ import annotations

import pytest
import torch

import tlora
from tests.helpers.families import NOT_BUILT, batches, cases, judge, tiny_model
from tests.helpers.results import same

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BUILT = [case for case in cases() if case not in NOT_BUILT]


@pytest.mark.parametrize(("head", "family"), BUILT)
def test_each_family_is_calibrated_as_by_autograd_or_refused_in_a_sentence(head: str, family: str) -> None:
    outcomes = judge(head, family)
    assert {k: o for k, o in outcomes.items() if o.kind not in ("exact", "refused")} == {}


@pytest.mark.parametrize(("head", "family"), BUILT)
def test_checkpointed_blocks_give_the_same_numbers(head: str, family: str) -> None:
    """To the last bit, also which modules share an input, and the refusals too."""
    model = tiny_model(head, family)
    for padding in ("right", "alone"):
        outcomes: list[object] = []
        for checkpointing in (False, True):
            options = {"gradient": True, "fisher": True, "gradient_checkpointing": checkpointing, "progress": False}
            try:
                outcomes.append(tlora.calibrate(model, batches(model, head, padding), **options))
            except (RuntimeError, TypeError, ValueError) as error:
                outcomes.append((type(error), str(error)))
        assert same(*outcomes), padding


@pytest.mark.parametrize(("head", "family"), list(NOT_BUILT))
def test_what_is_not_built_cannot_be_built_small(head: str, family: str) -> None:
    """So that nobody need take the list's word for it; all others are built, or their tests fail."""
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in tiny_model(head, family).parameters())
    except Exception:
        return
    assert parameters > 100e6
