"""llama.cpp itself serves a GGUF adapter of every architecture: log-probabilities against those of PEFT.

Installed and run by `make serving`; skipped where xllamacpp is missing.
"""

from __future__ import annotations

import pytest
import torch

import tlora
from benchmarks.serving.engines import Questions, llama_cpp_answers
from tests.helpers.gguf_models import FAMILIES, model_of, tensors_of, write_model
from tests.helpers.models import VOCABULARY
from tests.unit.serving.test_llama_cpp import adapted_of

pytestmark = pytest.mark.serving
pytest.importorskip("xllamacpp")

ASKED = Questions(((5, 9, 33, 12, 40, 7, 22, 18, 50),), tokens=4, top=VOCABULARY, ends=())


def difference(model, served) -> float:
    """Largest difference of a log-probability, over all tokens and steps."""
    (answer,) = served
    ids = torch.tensor([[*ASKED.prompts[0], *answer["tokens"][:-1]]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, len(ASKED.prompts[0]) - 1 :].log_softmax(-1)
    steps = answer["likeliest"]
    assert len(steps) == len(expected)
    return max(abs(p - expected[n, token].item()) for n, step in enumerate(steps) for token, p in step.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_was_trained(family, tmp_path):
    """As exactly as the merged model there: activations in float16 make more of some models than of others."""
    base, adapted, merged = model_of(family), adapted_of(family), tlora.merge(adapted_of(family))
    write_model(tmp_path / "base.gguf", base, family, tensors_of(base, family))
    write_model(tmp_path / "merged.gguf", merged, family, tensors_of(merged, family))
    file = tlora.export(adapted, tmp_path / "adapter.gguf", engine="llama.cpp")
    noise = difference(adapted, llama_cpp_answers(tmp_path / "merged.gguf", None, ASKED))
    served = llama_cpp_answers(tmp_path / "base.gguf", file, ASKED)
    assert noise < 0.02
    assert difference(adapted, served) < max(2 * noise, 1e-3)
    assert difference(base, served) > 1  # and it is no adapter that does nothing
