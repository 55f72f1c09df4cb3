"""SmolLM2-135M as a mixture of equal experts."""

import pytest
import torch

import tlora
from tests.helpers.experts import check_pooled, upcycle

pytestmark = [pytest.mark.slow, pytest.mark.packaged]


@pytest.mark.parametrize("experts", [4, 8])
def test_smollm2_upcycled_computes_what_it_computed(experts):
    dense, tokenizer = tlora.load_model("smollm2-135m", dtype="float32", device="cpu")
    batch = tlora.load_task("notebooks/data/smart_home", tokenizer).calibration(4)[0]
    mixture = upcycle(dense, experts)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(mixture(**inputs).logits[real], dense(**inputs).logits[real], rtol=1e-3, atol=1e-3)
    options = {"gradient": True, "progress": False}
    blocks = r"model\.layers\.(0|29)\.mlp\."
    whole = tlora.calibrate(dense, [batch], target_modules=blocks + ".*", **options)
    routed = tlora.calibrate(mixture, [batch], target_modules=blocks + r"experts\..*", **options)
    assert len(routed.names) == 2 * 2 * experts
    check_pooled(routed, whole, experts, 2)
