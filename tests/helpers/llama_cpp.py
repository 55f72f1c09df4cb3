"""Greedy answers of llama.cpp, through xllamacpp, with keys and values kept in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def llama_cpp_answers(
    model: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], tokens: int, top: int
) -> list[dict[str, Any]]:
    """To each prompt so many tokens, and the log-probabilities of the likeliest ``top`` at each step."""
    with _server(model, adapter) as server:
        return [_answer(server, prompt, tokens, top) for prompt in prompts]


@contextlib.contextmanager
def _server(model: Path, adapter: Path | None) -> Iterator[Any]:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 1024, 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.warmup, parameters.verbosity = False, 0
    if adapter is not None:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(parameters)
    try:
        yield server
    finally:
        del server


def _answer(server: Any, prompt: Sequence[int], tokens: int, top: int) -> dict[str, Any]:
    asked = {"prompt": list(prompt), "n_predict": tokens, "temperature": 0, "n_probs": top, "cache_prompt": False}
    steps = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    likeliest = [{t["id"]: t["logprob"] for t in step["top_logprobs"]} for step in steps]
    return {"tokens": [step["id"] for step in steps], "likeliest": likeliest}
