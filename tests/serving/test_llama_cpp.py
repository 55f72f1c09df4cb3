"""llama.cpp itself serves a GGUF adapter of every architecture: log-probabilities against those of PEFT.

Installed and run by `make serving`; skipped where xllamacpp is missing.
"""

from __future__ import annotations

import pytest
import torch

import tlora
from tests.helpers.gguf_models import FAMILIES, adapted_of, model_of, tensors_of, write_model
from tests.helpers.llama_cpp import llama_cpp_answers
from tests.helpers.models import VOCABULARY

pytestmark = pytest.mark.serving
pytest.importorskip("xllamacpp")

PROMPT = (5, 9, 33, 12, 40, 7, 22, 18, 50)


def answer(model, adapter) -> dict:
    """Four tokens, with the log-probabilities of all tokens at each."""
    (found,) = llama_cpp_answers(model, adapter, [PROMPT], tokens=4, top=VOCABULARY)
    return found


def difference(model, served) -> float:
    """Largest difference of a log-probability, over all tokens and steps."""
    ids = torch.tensor([[*PROMPT, *served["tokens"][:-1]]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, len(PROMPT) - 1 :].log_softmax(-1)
    steps = served["likeliest"]
    assert len(steps) == len(expected)
    return max(abs(p - expected[n, token].item()) for n, step in enumerate(steps) for token, p in step.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_was_trained(family, tmp_path):
    """As exactly as the merged model there: activations in float16 make more of some models than of others."""
    base, adapted, merged = model_of(family), adapted_of(family), tlora.merge(adapted_of(family))
    write_model(tmp_path / "base.gguf", base, family, tensors_of(base, family))
    write_model(tmp_path / "merged.gguf", merged, family, tensors_of(merged, family))
    file = tlora.export(adapted, tmp_path / "adapter.gguf", engine="llama.cpp")
    noise = difference(adapted, answer(tmp_path / "merged.gguf", None))
    served = answer(tmp_path / "base.gguf", file)
    assert noise < 0.02
    assert difference(adapted, served) < max(2 * noise, 1e-3)
    assert difference(base, served) > 1  # and it is no adapter that does nothing
