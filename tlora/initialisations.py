"""Initialisations of PEFT that look at data: EVA, CorDA, LoRA-GA, each fed the samples that TLoRA calibrates on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, EvaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import cast_adapter_dtype

from tlora.adapters.attach import shared_config
from tlora.job import Job
from tlora.models.targets import target_modules

Lora = Callable[..., PeftModel]
"""From a job and further arguments of `peft.LoraConfig` to the adapted model."""


def eva(lora: Lora, job: Job) -> PeftModel:
    """Directions of the inputs' largest variance, ranks given to where they explain most (PEFT's defaults).

    All tokens count, as in TLoRA: where few are labelled, PEFT advises against its mask of labels, and goes round for
    ever where no batch has enough tokens left.

    Raises
    ------
    ValueError
        If no batch has as many tokens as vectors are computed.

    References
    ----------
    EVA, arXiv 2410.07170.
    """
    settings = EvaConfig(use_label_mask=False)
    # Factors have no values until the vectors are there, which is how PEFT wants it.
    adapted = lora(job, init_lora_weights="eva", eva_config=settings, low_cpu_mem_usage=True)
    batches = _on_device(job)
    tokens, wanted = max(int(batch["attention_mask"].sum()) for batch in batches), round(settings.rho * job.rank)
    if tokens < wanted:
        raise ValueError(f"EVA takes {wanted} tokens a batch at rank {job.rank}, there are {tokens}: take a lower rank")
    state = job.once(
        ("eva", job.rank),
        lambda: get_eva_state_dict(adapted, batches, show_progress_bar=False),
        seeded=False,
    )
    initialize_lora_eva_weights(adapted, eva_state_dict=dict(state))  # it takes out what it has used
    cast_adapter_dtype(adapted, adapted.active_adapter)  # from the base's type, as PEFT does for all others
    return adapted


def corda(lora: Lora, job: Job) -> PeftModel:
    """Singular vectors of ``W C``, taken out of ``W`` (the instruction-previewed mode).

    PEFT's hooks ignore masks, so samples come one by one, without padding.

    References
    ----------
    CorDA, arXiv 2406.05223.
    """
    settings = CordaConfig(corda_method="ipm")
    names = list(target_modules(job.model))
    config = LoraConfig(r=job.rank, init_lora_weights="corda", corda_config=settings, **shared_config(job.model, names))
    found = job.once(("corda", job.rank), lambda: _corda_vectors(job, names, config), seeded=False)
    for name, vectors in found.items():
        job.model.get_submodule(name).eigens = vectors  # where PEFT looks for them, and takes them away again
    return lora(job, init_lora_weights="corda", corda_config=settings)


def _corda_vectors(job: Job, names: list[str], config: LoraConfig) -> dict[str, Any]:
    @torch.no_grad()
    def run_model() -> None:
        for batch in _on_device(job, batch_size=1):
            job.model(**batch)

    preprocess_corda(job.model, config, run_model)
    return {name: job.model.get_submodule(name).eigens for name in names}


def lora_ga(lora: Lora, job: Job) -> PeftModel:
    """Singular vectors of the mean gradient, in ``A`` and in ``B``, and what they make taken off ``W``.

    As PEFT has it: ``B`` holds the singular values as well, where the authors' code scales unit vectors of both by one
    number, so that ``B`` starts much smaller here.

    References
    ----------
    LoRA-GA, arXiv 2407.05000.
    """
    settings = LoraGAConfig()
    names = list(target_modules(job.model))
    kind: Any = "lora_ga"  # which PEFT's own annotation forgets
    config = LoraConfig(r=job.rank, init_lora_weights=kind, lora_ga_config=settings, **shared_config(job.model, names))

    def backward() -> None:
        for batch in _on_device(job):
            job.model(**batch).loss.backward()

    with warnings.catch_warnings():
        # PEFT counts backward passes by hooks, and the first layer's inputs need no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        preprocess_loraga(job.model, config, backward)
    return lora(job, init_lora_weights="lora_ga", lora_ga_config=settings)


def _on_device(job: Job, batch_size: int = 8) -> list[dict[str, torch.Tensor]]:
    device = job.model.device
    return [{name: value.to(device) for name, value in batch.items()} for batch in job.batches(batch_size)]
