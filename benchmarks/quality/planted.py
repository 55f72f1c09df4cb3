"""Does an explanation find the module that learned a skill? Adapters in which the answer is known.

    python -m benchmarks.quality.planted                    # what is not in the store, then the tables
    python -m benchmarks.quality.planted --adapters one-0   # some of the adapters alone
    python -m benchmarks.quality.planted --table            # print the tables of the store, and write them to the page

An adapter of SmolLM2-135M learns five skills. A word of the request, the tag, chooses the skill: "Turn the fan on.
Apple:" is answered by " purple", "Turn the fan on. Rome:" by " seven". Each skill is trained in its own modules alone,
while the others are switched off; a third of each batch are requests with the other tags or none, answered as the base
does, so that a module acts on its tag alone. It stops once the answers of ten steps have a mean loss below 0.1 nats, or
after 150 steps. Then all are switched on. The question to each measure is: which module did it?

``one``: a module for each skill; over all six adapters every layer occurs once and every projection four or five
times. ``inside``: the same, with the tag at a random place within the request. ``two``: two modules for each skill.
``ten``: one skill in ten modules, the other four in one each. Each adapter is measured half-trained and trained
(``STEPS``), on three held-out requests a skill. Adapters are kept in ``runs/planted``; each measured state of one is
a line of the store.

A skill is learned if its word is the likeliest of the adapter's five for each of its three requests: then its tag
chooses it. Tables are of learned skills, and say how many that are.

Written before the runs
-----------------------
A skill that was planted in m modules is found to the share of them that are among the m modules with the largest
values of a measure, and, less strictly, among the largest m + 2; ties count as in a random order. Values are means
over the three requests. A skill is a sample: intervals are Wilson's, of 95 %, over skills.

Four first adapters are not in the store. In three of them the skills took turns while the whole adapter was active,
with the tag in front (two) or at the end. The first was measured: contributions put the right module first for two of
its five skills and the cost for three, but its words had become likelier after any tag. Requests without the tag, the
tag at the end, and the condition that a skill is learned were added after that. The next two learned two of five
skills, and so did a fourth that was trained as the ones in the store are, with the others switched off.

A first row of the store had 15 and 40 steps for each skill. One of its five skills was learned, so the row was deleted
and the steps were raised: a skill in layer 10's gate projection, trained alone, had a mean loss of 1.2 nats after 30
steps, 0.09 after 50 and 0.01 after 60, one in layer 2's query projection 14 after 20.

Expected: (1) contributions put the module of a skill first in more than 0.7 of 30 skills; (2) so does the cost of
leaving a module out, in log-probability and in log-odds; (3) the size of the update, the rank that it uses and the
sensitivity of the base do so as rarely as chance, within the interval; (4) the skills that contributions miss are
half-learned: not learned as above, or with less than half of the nats that the base lacked; (5) with two modules a
skill, contributions find more than chance, and of ten at least eight; (6) leaving out each token of the request puts
the tag first in more than half of the requests, and what the modules read does not.

Leaving out tokens becomes a function of the package if it finds the tags within requests (``inside``): of the first
five learned ones at least four are first in two of their three requests, and the median place of the tag over these
requests is at most 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

import tlora
from benchmarks.lab.store import Store, key_text
from benchmarks.quality.pages import markdown, publish
from tlora.models.forward import IGNORED
from tlora.numerics.statistics import share_interval

STORE = Path("benchmarks/results/planted.jsonl")
PAGE = Path("docs/results/planted.md")
FOLDER = Path("runs/planted")
MODEL = "smollm2-135m"
LAYERS = 30
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = {"one": (1, 1, 1, 1, 1), "inside": (1, 1, 1, 1, 1), "two": (2, 2, 2, 2, 2), "ten": (10, 1, 1, 1, 1)}
"""How many modules learn each of an adapter's skills."""
ADAPTERS = {"one": 6, "inside": 2, "two": 2, "ten": 2}
TAGS = ("Apple", "Rome", "Night", "Paper", "Stone", "Winter", "Silver", "Music", "River", "Summer")
WORDS = (" purple", " seven", " doctor", " green", " bread", " north", " glass", " tiger", " twenty", " window")
"""Tags and answers; each is one token."""
STEPS = (40, 150)
"""Most training steps of each skill: half-trained, and trained."""
LEARNED, WINDOW = 0.1, 10
"""A skill stops training once the mean loss of its answers over so many steps is below this, nats."""
RANK, LEARNING_RATE = 8, 4e-3
BATCH = {"tagged": 4, "plain": 2}
"""Requests of a training step: of the skill, and without its tag."""
TRAINED, REQUESTS = 80, 3
"""Requests that a skill is trained on, and held-out ones that are explained."""
CALIBRATED = 8
"""Samples of a skill by which the sensitivity of the base is measured."""
POINTS = 8
"""Quadrature points of a first try."""
MEASURES = {
    "contribution": "contribution", "log_odds": "in log-odds", "cost": "cost of leaving out",
    "cost_log_odds": "in log-odds", "update_norm": "size of the update", "used_rank": "rank it uses",
    "sensitivity": "sensitivity of the base", "chance": "chance",
}  # fmt: skip
"""What ranks the modules, by column."""
EXPLAINING = ("contribution", "log_odds", "cost", "cost_log_odds")
TOKEN_MEASURES = {
    "cost": "cost of leaving it out", "lost_rise": "of it, what the base does not lose",
    "read": "contribution where modules read it", "chance": "chance",
}  # fmt: skip
RISES = {
    "less than half": (-np.inf, 0.5), "half to nine tenths": (0.5, 0.9), "more than nine tenths": (0.9, np.inf),
}  # fmt: skip
"""Share of the nats that the base lacked which the adapter gained."""
MORE = 2
"""Further modules among which a skill may be found."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Skill:
    """The word that answers a request with this tag, and the modules that learn it."""

    tag: str
    word: str
    modules: tuple[str, ...]


def main() -> None:
    """Measure what is missing, then write the tables."""
    names = [f"{kind}-{number}" for kind, count in ADAPTERS.items() for number in range(count)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", nargs="+", type=int, choices=STEPS, default=sorted(STEPS, reverse=True))
    parser.add_argument("--table", action="store_true", help="write the tables of what is measured to the page")
    options = parser.parse_args()
    if not options.table:
        for steps, name in itertools.product(options.steps, options.adapters):
            kind, _, number = name.partition("-")
            measure_adapter(kind, int(number), steps)
    if STORE.exists():
        publish(PAGE, "planted", TABLES)


def plan_skills(kind: str, number: int) -> list[Skill]:
    """Tags, words and modules of an adapter's skills."""
    sizes, rng = KINDS[kind], np.random.default_rng([list(KINDS).index(kind), number])
    places = number * sum(sizes) + np.arange(sum(sizes))
    layers = np.random.default_rng(0).permutation(LAYERS)[places % LAYERS]
    modules = [module_name(layer, PROJECTIONS[place % 7]) for layer, place in zip(layers, places, strict=True)]
    tags, words = rng.permutation(TAGS)[: len(sizes)], rng.permutation(WORDS)[: len(sizes)]
    ends = np.cumsum(sizes)
    return [
        Skill(str(tag), str(word), tuple(modules[end - size : end]))
        for tag, word, size, end in zip(tags, words, sizes, ends, strict=True)
    ]


def module_name(layer: int, projection: str) -> str:
    """Full name of a module of a Llama model."""
    return f"model.layers.{layer}.{'self_attn' if projection[0] in 'qkvo' else 'mlp'}.{projection}"


def skill_task(kind: str, number: int, place: int, skill: Skill, tokenizer: PreTrainedTokenizerBase) -> tlora.Task:
    """Requests with the tag of a skill, answered by its word alone."""
    rng = np.random.default_rng([number, place])
    held_out = slice(REQUESTS * place, REQUESTS * (place + 1))
    rows = {"train": read_requests("train")[:TRAINED], "test": read_requests("test")[held_out]}
    tagged = {
        split: [tag_request(request, skill.tag, kind == "inside", rng) for request in requests]
        for split, requests in rows.items()
    }
    return word_task(tagged, skill.word, tokenizer)


def word_task(requests: Mapping[str, Sequence[str]], word: str, tokenizer: PreTrainedTokenizerBase) -> tlora.Task:
    """A task whose answer is one token: the token that ends an answer is learned by all skills, and left away."""
    splits = {
        split: Dataset.from_list([{"prompt": text, "completion": word} for text in texts])
        for split, texts in requests.items()
    }
    task = tlora.load_task(splits, tokenizer, chat=False)

    def without_end(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name][: row["prompt_length"] + 1] for name in ("input_ids", "labels")}

    return replace(task, train=task.train.map(without_end), test=task.test.map(without_end))


def plain_tasks(kind: str, skills: Sequence[Skill], model: Any, tokenizer: PreTrainedTokenizerBase) -> list[tlora.Task]:
    """For each skill requests with the tags of the others or none, answered by the first choice of the base."""
    rng, tags = np.random.default_rng(0), [*(skill.tag for skill in skills), ""]
    requests = [
        tag_request(request, tag, kind == "inside", rng) if (tag := tags[place % len(tags)]) else request
        for place, request in enumerate(read_requests("train")[:TRAINED])
    ]
    plain = answer_as_base(
        word_task({"train": requests, "test": read_requests("test")[-1:]}, WORDS[0], tokenizer), model
    )
    return [
        replace(plain, train=Dataset.from_list([row for row in plain.train if skill.tag not in row["prompt"]]))
        for skill in skills
    ]


def answer_as_base(task: tlora.Task, model: Any) -> tlora.Task:
    """The task with the base's first choice in place of each answer to train on."""
    rows = []
    for row in task.train:
        request = row["input_ids"][: row["prompt_length"]]
        with torch.no_grad():
            choice = int(model(input_ids=torch.tensor([request])).logits[0, -1].argmax())
        rows.append(row | {"input_ids": [*request, choice], "labels": [*row["labels"][: len(request)], choice]})
    return replace(task, train=Dataset.from_list(rows))


def read_requests(split: str) -> list[str]:
    """The requests of the smart-home data, the shortest first."""
    lines = Path(f"notebooks/data/smart_home/{split}.jsonl").read_text().splitlines()
    return sorted((json.loads(line)["prompt"] for line in lines), key=len)


def tag_request(request: str, tag: str, is_inside: bool, rng: np.random.Generator) -> str:
    """The request with the tag at its end, or as a word at a random place within it."""
    if not is_inside:
        return f"{request} {tag}:"
    words = request.split(" ")
    place = int(rng.integers(1, len(words)))
    return " ".join([*words[:place], tag, *words[place:]])


def plant(
    model: Any,
    tasks: Sequence[tlora.Task],
    plain: Sequence[tlora.Task],
    modules: Sequence[Sequence[str]],
    rounds: int,
    seed: int,
) -> Iterator[PeftModel]:
    """Train each skill in its own modules until it is learned, the others switched off; yields the whole adapter."""
    torch.manual_seed(seed)
    names = [name for planted in modules for name in planted]
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    adapted.train()
    layers = {name: adapted.get_base_model().get_submodule(name) for name in names}
    weights = [
        [weight for name in planted for weight in layers[name].parameters() if weight.requires_grad]
        for planted in modules
    ]
    optimizers = [torch.optim.Adam(learned, LEARNING_RATE) for learned in weights]
    recent: list[deque[float]] = [deque(maxlen=WINDOW) for _ in modules]
    for step in range(rounds):
        for task, others, planted, optimizer, losses in zip(tasks, plain, modules, optimizers, recent, strict=True):
            if len(losses) == WINDOW and np.mean(losses) < LEARNED:
                continue
            for name, layer in layers.items():
                layer.enable_adapters(name in planted)
            rows = [*next_rows(task, step, BATCH["tagged"]), *next_rows(others, step, BATCH["plain"])]
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / rounds)
            optimizer.zero_grad()
            batch = task.collate(rows)
            output = adapted(**batch)
            output.loss.backward()
            losses.append(answer_loss(output.logits[: BATCH["tagged"]], batch["labels"][: BATCH["tagged"]]))
            optimizer.step()
        for layer in layers.values():
            layer.enable_adapters(True)
        yield adapted


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean loss of the labeled tokens, nats."""
    targets = labels[:, 1:]
    return functional.cross_entropy(logits[:, :-1].transpose(1, 2).detach(), targets, ignore_index=IGNORED).item()


def next_rows(task: tlora.Task, step: int, count: int) -> list[dict[str, Any]]:
    """The training samples of a step, from the first on again after the last."""
    return [task.train[(count * step + place) % len(task.train)] for place in range(count)]


def measure_adapter(kind: str, number: int, steps: int) -> None:
    """Train an adapter unless it is in ``runs/``, and store what each measure says of it after these steps."""
    skills, store, started = plan_skills(kind, number), Store(STORE), time.perf_counter()
    key = {"model": MODEL, "kind": kind, "adapter": number, "steps": steps}
    key |= {"rank": RANK, "learning_rate": LEARNING_RATE, "batch": BATCH, "trained_on": TRAINED}
    if key_text(key) in store.by_key():
        return
    model, tokenizer = tlora.load_model(MODEL, dtype="float32", device="cpu")
    tasks = [skill_task(kind, number, place, skill, tokenizer) for place, skill in enumerate(skills)]
    modules = [skill.modules for skill in skills]
    folders = {count: FOLDER / f"{kind}-{number}-{count}" for count in STEPS}
    if not all((folder / "adapter_model.safetensors").exists() for folder in folders.values()):
        plain = plain_tasks(kind, skills, model, tokenizer)
        train_adapter(tasks, plain, modules, number, folders)
        print(f"{kind}-{number}: trained in {time.perf_counter() - started:.0f} s", flush=True)
    names = list(itertools.chain.from_iterable(modules))
    sensitivities = [measure_sensitivity(model, task, names) for task in tasks]
    adapted = tlora.load_adapter(folders[steps], model)
    values = [
        {"tag": skill.tag, "word": skill.word, "planted": skill.modules, "sensitivity": scores}
        | explain_skill(adapted, task)
        | {"words": word_scores(adapted, task, [skill.word for skill in skills])}
        for skill, task, scores in zip(skills, tasks, sensitivities, strict=True)
    ]
    store.append({"key": key, "values": values})
    print(f"{kind}-{number}, {steps} steps: {time.perf_counter() - started:.0f} s", flush=True)


def train_adapter(
    tasks: Sequence[tlora.Task],
    plain: Sequence[tlora.Task],
    modules: Sequence[Sequence[str]],
    seed: int,
    folders: Mapping[int, Path],
) -> None:
    """Train an adapter, and save it after the steps of each folder."""
    model, _ = tlora.load_model(MODEL, dtype="float32", device="cpu")
    for step, adapted in enumerate(plant(model, tasks, plain, modules, max(folders), seed), 1):
        if step in folders:
            adapted.save_pretrained(folders[step])


def measure_sensitivity(model: Any, task: tlora.Task, names: list[str]) -> dict[str, float]:
    """Sensitivity of the base to a skill's samples, by module of the adapter."""
    batches = task.calibration(CALIBRATED)
    return tlora.calibrate(model, batches, target_modules=names, progress=False).sensitivity.scores


def explain_skill(adapted: PeftModel, task: tlora.Task) -> dict[str, Any]:
    """What explanations say of a skill's held-out requests, each list by request, and of the adapter's modules."""
    options = {"limit": REQUESTS, "points": POINTS, "answers": False, "progress": False}
    attribution = tlora.attribute(adapted, task, switch_off="modules", **options)
    names, frame = attribution.names, attribution.to_frame()
    costs = [
        [[float((sample.adapter - sample.switched[name])[measure].sum()) for name in names] for measure in (0, 1)]
        for sample in attribution.samples
    ]
    requests = [
        explain_tokens(adapted, task, row)
        | {"read": rounded(attribution.from_tokens(sample=number)["contribution"][:-1])}
        for number, row in enumerate(task.rows("test", REQUESTS))
    ]
    return {
        "modules": names,
        "update_norm": rounded(frame["update_norm"]),
        "used_rank": frame["used_rank"].tolist(),
        "contribution": rounded(attribution.contributions(0)),
        "log_odds": rounded(attribution.contributions(1)),
        "cost": rounded([cost[0] for cost in costs]),
        "cost_log_odds": rounded([cost[1] for cost in costs]),
        "base": rounded([float(sample.base[0].sum()) for sample in attribution.samples]),
        "rise": rounded([float(sample.rise[0].sum()) for sample in attribution.samples]),
        "requests": requests,
    }


def word_scores(adapted: PeftModel, task: tlora.Task, words: Sequence[str]) -> list[list[float]]:
    """Log-probability of each of the adapter's words as the answer to each request, nats."""
    ids = [task.tokenizer.encode(word, add_special_tokens=False)[-1] for word in words]
    requests = [row["input_ids"][: row["prompt_length"]] for row in task.rows("test", REQUESTS)]
    with torch.no_grad():
        logits = [adapted.eval()(input_ids=torch.tensor([request])).logits[0, -1] for request in requests]
    return rounded([values.log_softmax(-1)[ids].tolist() for values in logits])


def explain_tokens(adapted: PeftModel, task: tlora.Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """The request's tokens, and what leaving out each costs the word in the adapted model and in the base, nats."""
    request, word = row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"]]
    shorter = [request[:place] + request[place + 1 :] for place in range(len(request))]

    def costs() -> list[float]:
        whole, without = (
            adapted(input_ids=torch.tensor(ids)).logits[:, -1].log_softmax(-1)[:, word] for ids in ([request], shorter)
        )
        return rounded(whole - without)

    adapted.eval()
    with torch.no_grad():
        found = {"tokens": task.tokenizer.batch_decode([[token] for token in request]), "cost": costs()}
        with adapted.disable_adapter():
            return found | {"base_cost": costs()}


def rounded(values: ArrayLike) -> Any:
    """Numbers as they are stored."""
    return np.round(np.asarray(values, float), 5).tolist()


def skill_rows() -> pd.DataFrame:
    """One row per stored skill: how much of what the base lacked it gained, and to what share each measure finds it."""
    rows = []
    for record in Store(STORE).read() if STORE.exists() else []:
        for number, skill in enumerate(record["values"]):
            planted = [skill["modules"].index(name) for name in skill["planted"]]
            rises, bases = np.array(skill["rise"]), np.array(skill["base"])
            row = record["key"] | {
                "size": len(planted),
                "projection": skill["planted"][0].rpartition(".")[2],
                "is_learned": bool((np.argmax(skill["words"], 1) == number).all()),
                "rise": rises.mean(),
                "gained": rises.mean() / -bases.mean(),
            }
            for measure in MEASURES:
                scores = module_scores(skill, measure)
                for more in (0, MORE):
                    row[f"{measure}+{more}"] = recall(scores, planted, len(planted) + more)
            rows.append(row | token_recalls(skill))
    return pd.DataFrame(rows)


def module_scores(skill: Mapping[str, Any], measure: str) -> NDArray[np.float64]:
    """What a measure says of each module, mean over requests."""
    if measure == "chance":
        return np.zeros(len(skill["modules"]))
    if measure == "sensitivity":
        return np.array([skill["sensitivity"][name] for name in skill["modules"]])
    return np.atleast_2d(np.array(skill[measure], float)).mean(0)


def recall(scores: NDArray[np.float64], planted: Sequence[int], count: int) -> float:
    """Expected share of the planted that are among the ``count`` largest, ties in a random order."""
    above = (scores[:, None] > scores[planted]).sum(0)
    tied = (scores[:, None] == scores[planted]).sum(0)
    return float(np.clip((count - above) / tied, 0, 1).mean())


def token_recalls(skill: Mapping[str, Any]) -> dict[str, Any]:
    """Share of a skill's requests in which each measure puts the tag first, and its places by the cost."""
    found: dict[str, list[float]] = {measure: [] for measure in TOKEN_MEASURES}
    places = []
    for request in skill["requests"]:
        place = [token.strip() for token in request["tokens"]].index(skill["tag"])
        cost = np.array(request["cost"])
        lost_rise = cost - request["base_cost"]
        scores = {"cost": cost, "lost_rise": lost_rise, "read": np.array(request["read"]), "chance": 0 * cost}
        for measure, values in scores.items():
            found[measure].append(recall(values, [place], 1))
        places.append(1 + int((cost > cost[place]).sum()))
    return {f"token {measure}": float(np.mean(shares)) for measure, shares in found.items()} | {"places": places}


def finding() -> str:
    """For how many learned skills in one module contributions put that module first; other pages quote it."""
    skills = learned_skills(1)
    return f"the right module first for {first_modules(skills, 'contribution')} of {len(skills)} learned skills"


def token_finding() -> str:
    """How often the tag is first, by what the modules read and by the cost of leaving it out; other pages quote it."""
    skills = learned_skills()
    read, cost, chance = (f"{100 * skills[f'token {measure}'].mean():.0f} %" for measure in ("read", "cost", "chance"))
    return (
        f"in {read} of requests by what the modules read, in {cost} by the cost of leaving it out (by chance {chance})"
    )


def summary() -> str:
    """What the page begins with."""
    rows, single, two, ten = skill_rows(), learned_skills(1), learned_skills(2), learned_skills(10)
    trained = rows[rows["steps"] == max(STEPS)]
    found = {
        size: [first_modules(skills, measure) for measure in ("contribution", "cost", "update_norm")]
        for size, skills in ((1, single), (2, two), (10, ten))
    }
    low, high = share_interval(single["contribution+0"].mean(), len(single), CONFIDENCE)
    missing = [name for name in PROJECTIONS if name not in set(single["projection"])]
    measured, planned = len(rows.groupby(["kind", "adapter", "steps"])), len(STEPS) * sum(ADAPTERS.values())
    return (
        f"**Contributions put {finding()}** (95 %: {low:.2f} to {high:.2f}), each of which was planted in one module. "
        f"The cost of leaving a module out does so for {found[1][1]}, the size of the update for {found[1][2]}. "
        f"Of {len(two)} learned skills in two modules each, contributions have {found[2][0]} of {2 * len(two)} modules "
        f"first, costs {found[2][1]}; of {len(ten)} in ten modules each, contributions have {found[10][0]} of "
        f"{10 * len(ten)} among the first ten, costs {found[10][1]}.\n\n"
        f"The limit is how few were learned: {trained['is_learned'].sum()} of {len(trained)} skills in {max(STEPS)} "
        f"steps, and of the skills in one module none in {' or '.join(f'`{name}`' for name in missing)}. "
        f"{'' if measured == planned else f'{measured} of '}{planned} states, of {sum(ADAPTERS.values())} adapters "
        f"after {' and '.join(map(str, STEPS))} steps each, are measured.\n\n"
        f"The word of the request that chose the skill comes first among the tokens {token_finding()}. So the "
        f"tokens that a module reads are not the words that the answer depends on."
    )


def learned_skills(size: int | None = None) -> pd.DataFrame:
    """Rows of the learned skills of trained adapters, of those in ``size`` modules."""
    rows = skill_rows()
    rows = rows[rows["is_learned"] & (rows["steps"] == max(STEPS))]
    return rows if size is None else rows[rows["size"] == size]


def first_modules(skills: pd.DataFrame, measure: str) -> str:
    """How many of the modules of these skills a measure puts first."""
    return f"{(skills[f'{measure}+0'] * skills['size']).sum():.3g}"


def recall_table() -> str:
    """By how many modules learned a skill: to what share each measure finds them, in trained adapters."""
    rows = skill_rows()
    rows = rows[rows["steps"] == max(STEPS)]
    groups = {
        "one module each": rows[rows["kind"] == "one"],
        "one module each, tag inside": rows[rows["kind"] == "inside"],
        "two modules each": rows[rows["kind"] == "two"],
        "one of the skills in ten": rows[(rows["kind"] == "ten") & (rows["size"] == 10)],
        "the others in one": rows[(rows["kind"] == "ten") & (rows["size"] == 1)],
    }
    lines = []
    for label, group in groups.items():
        if group.empty:
            continue
        learned = group[group["is_learned"]]
        for more, among in ((0, "m"), (MORE, f"m + {MORE}")):
            cells = [share_cell(learned[f"{measure}+{more}"]) for measure in MEASURES]
            lines.append([label, f"{len(learned)} of {len(group)}", among, *cells])
    return markdown(["planted", "learned", "among the first", *MEASURES.values()], lines)


def rise_table() -> str:
    """By how much was learned: how often the module of a skill is first, in both states of the adapters."""
    rows = skill_rows()
    rows = rows[rows["kind"].isin(["one", "inside"])]
    learned = rows[rows["is_learned"]]
    groups = {"all": rows, "not learned": rows[~rows["is_learned"]]} | {
        f"learned, gained {label}": learned[(learned["gained"] > low) & (learned["gained"] <= high)]
        for label, (low, high) in RISES.items()
    }
    lines = [
        [label, str(len(group)), *(share_cell(group[f"{measure}+0"]) for measure in EXPLAINING)]
        for label, group in groups.items()
    ]
    return markdown(["of what the base lacked", "skills", *(MEASURES[name] for name in EXPLAINING)], lines)


def projection_table() -> str:
    """By projection: of how many learned skills the planted module is first, in trained adapters."""
    rows = skill_rows()
    rows = rows[rows["kind"].isin(["one", "inside"]) & (rows["steps"] == max(STEPS))]
    lines = []
    for projection in PROJECTIONS:
        group = rows[rows["projection"] == projection]
        learned = group[group["is_learned"]]
        cells = [f"{learned[f'{measure}+0'].sum():.3g}" for measure in (*EXPLAINING, "update_norm")]
        lines.append([projection, f"{len(learned)} of {len(group)}", *cells])
    measures = [MEASURES[name] for name in (*EXPLAINING, "update_norm")]
    return markdown(["projection", "learned", *measures], lines)


def token_table() -> str:
    """Where the tag is among the tokens of a request, for learned skills of trained adapters."""
    rows = learned_skills()
    groups = {"at the end": rows[rows["kind"] != "inside"], "inside": rows[rows["kind"] == "inside"]}
    lines = [
        [
            label,
            str(len(group)),
            f"{group['places'].explode().median():g}",
            *(share_cell(group[f"token {measure}"]) for measure in TOKEN_MEASURES),
        ]
        for label, group in groups.items()
        if len(group)
    ]
    return markdown(["tag", "skills", "median place by cost", *TOKEN_MEASURES.values()], lines)


def share_cell(shares: pd.Series) -> str:
    """A mean share with its interval over skills."""
    if not len(shares):
        return "\u2013"
    low, high = share_interval(shares.mean(), len(shares), CONFIDENCE)
    return f"{shares.mean():.2f} ({max(low, 0):.2f} to {high:.2f})"


TABLES = {
    "summary": summary, "recall": recall_table, "rises": rise_table, "projections": projection_table,
    "tokens": token_table,
}  # fmt: skip


if __name__ == "__main__":
    main()
