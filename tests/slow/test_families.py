"""Every family of language models that transformers has: calibrated as by autograd, or refused in a sentence."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.families import NOT_BUILT, cases, judge, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BUILT = [case for case in cases() if case not in NOT_BUILT]


@pytest.mark.parametrize(("head", "family"), BUILT)
def test_each_family_is_calibrated_as_by_autograd_or_refused_in_a_sentence(head: str, family: str) -> None:
    outcomes = judge(head, family)
    assert {k: o for k, o in outcomes.items() if o.kind not in ("exact", "refused")} == {}


@pytest.mark.parametrize(("head", "family"), list(NOT_BUILT))
def test_what_is_not_built_cannot_be_built_small(head: str, family: str) -> None:
    """So that nobody need take the list's word for it; all others are built, or their tests fail."""
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in tiny_model(head, family).parameters())
    except Exception:
        return
    assert parameters > 100e6
