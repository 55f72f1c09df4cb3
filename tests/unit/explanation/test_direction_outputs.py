"""Direction outputs against the final norm and the unembedding written out, and SciPy's rank correlation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from transformers.pytorch_utils import Conv1D

import tlora
from tests.helpers.models import singles, tiny_tokenizer
from tests.helpers.subspaces import prepared

NORMS = {
    "llama": "model.norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gemma": "model.norm",
}


def norm_by_hand(family, module, v):
    """Of a vector alone; a bias moves all vectors alike and is left out."""
    scale = module.weight.detach().double().numpy() + (family == "gemma")
    v = v if family in ("llama", "gemma") else v - v.mean()
    return scale * v / np.sqrt((v**2).mean() + getattr(module, "eps", getattr(module, "variance_epsilon", 0)))


@pytest.mark.parametrize("family", NORMS)
def test_tokens_are_those_of_norm_and_unembedding(family):
    model, _, subspaces, _ = prepared(family)
    found = tlora.direction_outputs(model, subspaces, tokenizer=tiny_tokenizer(), ranks=3, k=4)
    assert len(found.names) == 4
    head = model.get_output_embeddings().weight.detach().double().numpy()
    for name in found.names:
        module = model.get_submodule(name)
        w = module.weight.detach().double().numpy()
        w = w.T if isinstance(module, Conv1D) else w
        for k, kind in enumerate(found.kinds):
            for d, a in enumerate(subspaces[kind].basis(name, 3).double().numpy()):
                logits = head @ norm_by_hand(family, model.get_submodule(NORMS[family]), w @ a)
                order = np.argsort(-logits)
                assert found.promoted[name][k, d].tolist() == order[:4].tolist()
                assert found.suppressed[name][k, d].tolist() == order[::-1][:4].tolist()
    row = found.to_frame().iloc[0]
    names = tiny_tokenizer().convert_ids_to_tokens(found.promoted[row.module][0, 0].tolist())
    assert row.promoted.split() == names
    assert found.to_frame()["correlation"].isna().all()


def test_the_correlation_is_that_of_the_model_s_own_change():
    model, _, subspaces, batch = prepared("llama")
    found = tlora.direction_outputs(model, {"g": subspaces["g"]}, batch=batch)
    head, norm = model.lm_head, model.model.norm
    for name in found.names:
        module, outputs = model.get_submodule(name), []
        v = module.weight.detach() @ subspaces["g"].basis(name, 1)[0]
        hook = module.register_forward_hook(lambda module, args, output, seen=outputs: seen.append(output[0]))
        with torch.no_grad():
            before = torch.cat([model(**sample).logits[0] for sample in singles(batch)])
        hook.remove()
        step = 0.1 * torch.cat(outputs).norm(dim=1).mean() / v.norm()
        hook = module.register_forward_hook(lambda module, args, output, added=step * v: output + added)
        with torch.no_grad():
            after = torch.cat([model(**sample).logits[0] for sample in singles(batch)])
            lens = head(norm(v))
        hook.remove()
        expected = scipy.stats.spearmanr((after - before).mean(0), lens).statistic
        assert float(found.correlation[name]) == pytest.approx(expected, abs=1e-3)
    layers = found.by_layer()
    assert layers["layer"].tolist() == [0, 1]
    assert layers["correlation"][0] == pytest.approx(np.mean([float(found.correlation[n]) for n in found.names[:2]]))


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_model_without_such_a_stream_is_refused(family):
    model, _, subspaces, _ = prepared(family)
    with pytest.raises(ValueError, match="residual stream"):
        tlora.direction_outputs(model, subspaces)
