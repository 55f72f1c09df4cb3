"""What taking an answer apart costs compared with plain passes: 16 points, and every layer left out once.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.attribution

Processor time, measured in turns: the contributions of all modules to each token of one answer at 16 points, compared
with forward and backward passes of as many copies of the sample as the answer has tokens (limit: 20); and the scores of
the answer without each layer, compared with forward passes of the sample (limit: 20). The adapter is random: its values
do not change how long it takes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional

import tlora
from benchmarks.speed.stopwatch import now
from tlora.explanation.attribute import PreparedAnswer, leave_out
from tlora.explanation.gated_adapter import GatedAdapter

POINTS, TOKENS, LIMIT = 16, 8, 20


def random_adapter(model: Any) -> PeftModel:
    """An adapter of rank 8 on all projections, with a small update."""
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.01
    return adapted


def main() -> None:
    """Print both ratios, the median over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="notebooks/data/smart_home")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model, tokenizer = tlora.load_model(args.model)
    task = tlora.load_task(args.data, tokenizer)
    gated = GatedAdapter(random_adapter(model), "attribute")
    answers = (PreparedAnswer.from_row(gated, task, row) for row in task.test)
    prepared = next(one for one in answers if len(one.positions) == TOKENS)
    answer = prepared.answer
    layers: dict[str, list[str]] = {}
    for name in gated.ranks:
        layers.setdefault(name.split(".")[2], []).append(name)
    variants = [leave_out(gated, names) for names in layers.values()]

    def plain(copies: int, backward: bool) -> None:
        """A pass with gradients of the activations alone, and logits of the answer's tokens."""
        ids = answer.inputs["input_ids"].repeat(copies, 1)
        with torch.set_grad_enabled(backward):
            embedded = gated.model.get_input_embeddings()(ids).requires_grad_(backward)
            logits = gated.peft(inputs_embeds=embedded, logits_to_keep=torch.tensor(answer.columns)).logits
            if backward:
                functional.cross_entropy(logits.flatten(0, 1), answer.targets.repeat(copies)).backward()

    work: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        f"{POINTS} points, {TOKENS} tokens": (
            lambda: gated.contributions(answer, POINTS),
            lambda: plain(TOKENS, backward=True),
        ),
        f"{len(layers)} layers left out": (lambda: gated.switched(answer, variants), lambda: plain(1, backward=False)),
    }
    print(f"{args.model}, {len(prepared.tokens)} tokens, {torch.get_num_threads()} threads")
    for name, (measured, reference) in work.items():
        ratios = [seconds(measured, 1) / seconds(reference, 5) for _ in range(args.rounds)]
        found = statistics.median(ratios)
        print(f"{name}: {found:.1f} plain passes ({min(ratios):.1f} to {max(ratios):.1f}), limit {LIMIT}")


def seconds(work: Callable[[], object], times: int) -> float:
    """Processor time of one call."""
    started = now("cpu")
    for _ in range(times):
        work()
    return (now("cpu") - started) / times


if __name__ == "__main__":
    main()
