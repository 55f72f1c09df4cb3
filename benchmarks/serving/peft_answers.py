"""Greedy answers of PEFT or transformers, of whatever version the Python has that runs this; nothing of tlora is used.

    python benchmarks/serving/peft_answers.py < job.json > answers.json

The job holds ``base`` (folder), ``adapter`` (folder or null), ``prompts`` (lists of tokens), ``tokens``, ``top`` and
``ends``; the answers are, by prompt, the tokens and for each the log-probabilities of the
likeliest. A refusal is ``{"refused": why}``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    job = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(job["base"]).float().eval()
    if job["adapter"]:
        try:
            model = PeftModel.from_pretrained(model, job["adapter"]).eval()
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            print(json.dumps({"refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"}))
            return
    print(json.dumps([answer(model, prompt, job) for prompt in job["prompts"]]))


@torch.no_grad()
def answer(model: Any, prompt: list[int], job: dict[str, Any]) -> dict[str, Any]:
    """One token after the other."""
    ids, likeliest, past, new = list(prompt), [], None, prompt
    for _ in range(job["tokens"]):
        out = model(input_ids=torch.tensor([new]), past_key_values=past, use_cache=True)
        found = out.logits[0, -1].float().log_softmax(-1).topk(job["top"])
        likeliest.append(dict(zip(found.indices.tolist(), found.values.tolist(), strict=True)))
        past, new = out.past_key_values, [int(found.indices[0])]
        ids += new
        if ids[-1] in job["ends"]:
            break
    return {"tokens": ids[len(prompt) :], "likeliest": likeliest}


if __name__ == "__main__":
    main()
