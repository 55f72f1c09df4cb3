"""Pairs of adapters, in folders ``a`` and ``b``, that belong to different bases or change them."""

from __future__ import annotations

import json

import tlora
from tests.helpers.foreign import foreign
from tests.helpers.models import tiny_batch, tiny_model


def untrained(folder, name, seed):
    """An adapter with fingerprints of its base."""
    model = tiny_model("llama", seed=seed)
    known = tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    tlora.save_initial(tlora.attach(model, None, tlora.allocate(known.sensitivity, 2)), folder / name)


def named(folder, name, base):
    """An adapter that names its base, as other trainers do."""
    foreign(tiny_model("llama"), folder / name)
    file = folder / name / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


def pair(write_first, write_second):
    return lambda folder: (write_first(folder, "a"), write_second(folder, "b"))


def plain(folder, name):
    foreign(tiny_model("llama"), folder / name)


def other(base="llama", **config):
    sizes = config.pop("sizes", {})
    return pair(plain, lambda folder, name: foreign(tiny_model(base, **sizes), folder / name, **config))


BASES = {
    "other weights": (pair(lambda f, n: untrained(f, n, 0), lambda f, n: untrained(f, n, 1)), {}, "another weight"),
    "other names": (pair(lambda f, n: named(f, n, "one"), lambda f, n: named(f, n, "two")), {}, "names one"),
    "other sizes": (other(sizes={"hidden_size": 64}), {}, r"q_proj is \(32, 32\)"),
    "DoRA": (other(use_dora=True), {}, "use_dora"),
    "PiSSA": (other(init_lora_weights="pissa"), {}, "pissa"),
    "OLoRA": (other(init_lora_weights="olora"), {}, "olora"),
}
"""What `combine` and `interference` refuse alike."""
