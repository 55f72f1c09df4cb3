"""What each module added: take the answers of an adapted model apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tlora.adapters.compress import compress
from tlora.adapters.compression import Compression
from tlora.adapters.lora_layers import adapter_layers, has_experts, lora_updates, unwrap, wrappers
from tlora.calibration.batches import prepare_batch
from tlora.calibration.calibration import Calibration
from tlora.explanation.attribution import LARGEST, Attribution, ExplainedAnswer, groups, order_by_size
from tlora.explanation.gated_adapter import Answer, Contributions, GatedAdapter, Variant, score_answer
from tlora.explanation.token_texts import token_texts
from tlora.models.forward import IGNORED, evaluation_mode, input_device
from tlora.models.targets import Target, join_experts, target_modules
from tlora.models.weights import copy_sharing_weights, model_name
from tlora.results import Meta
from tlora.tasks.evaluation import class_logits, decode_answer, generate_tokens, predict, with_written
from tlora.tasks.load import load_task
from tlora.tasks.requests import ANSWER_LENGTH
from tlora.tasks.task import Task, architecture_of, check_architecture, classes_of
from tlora.utils.progress import Bar, bars_for, progress_bar
from tlora.utils.validation import check_arguments, require_choice, require_positive_int

Part = str | int | tuple[str, int]
TOLERANCE, MOST_POINTS = 0.01, 128
"""Points are doubled until the gap is below this share of the rise, or there are this many."""


def attribute(
    adapted: PeftModel,
    task_or_text: Task | str,
    answer: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    split: str = "test",
    limit: int = 16,
    points: int = 16,
    switch_off: str | Iterable[Part] = (),
    calibration: Calibration | None = None,
    tuned: PreTrainedModel | None = None,
    answers: bool = True,
    progress: bool = True,
) -> Attribution:
    """Take answers apart: what each module of an adapter added to their tokens, and what leaving it out costs.

    Parameters
    ----------
    adapted : peft.PeftModel
        A base with one active LoRA adapter, whoever trained it: causal, encoder-decoder or sequence classifier,
        quantized or not; ranks, alphas and rsLoRA by module; LoRA on embeddings and on experts. It is not changed.
    task_or_text : Task or str
        A task, whose held-out samples are explained with their reference answers; or a request (for a classifier a
        text).
    answer : str, optional
        The answer to the request, or the name of the class. By default what the adapted model, or ``tuned``, answers
        greedily.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        The model's, for a request; its chat template is used if it has one.
    split : str
        Split of the task.
    limit : int
        Most samples of the task, drawn with its seed.
    points : int
        Quadrature points of a first try. They are doubled until the contributions miss the exact difference by less
        than 1 % of it, up to 128.
    switch_off : str or iterable of (str, int, or tuple of str and int), optional
        Parts of the adapter to leave out, one at a time, besides the ten modules that contributed most:
        ``"modules"``, ``"layers"`` or ``"projections"`` for each of them; a full module name or its end; a projection;
        the index of a layer; ``(module, rank)`` for a module cut to a lower rank by `compress`.
    calibration : Calibration, optional
        Of the base, by which `compress` then cuts; otherwise it cuts by the weights.
    tuned : transformers.PreTrainedModel, optional
        The full fine-tune that the adapter was extracted from, by `extract`: what it adds beyond the adapter is then a
        row of `Attribution.sums`.
    answers : bool
        Also generate the greedy answers of base and adapter.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Attribution
        It holds about ``modules x answer tokens x tokens x 2`` bytes for each sample.

    Raises
    ------
    ValueError
        If the update is not ``W + s B A`` of linear layers, embeddings and experts (DoRA, PiSSA that was not
        converted), it is unknown which tokens experts read, the adapter is switched off, the task or ``tuned`` is of
        another architecture, an answer comes with a task, a request comes without a tokenizer, or ``switch_off`` names
        nothing.

    Notes
    -----
    Each module computes ``W x + t s B A x``; the whole adapter is scaled by ``t``. For a token's log-probability
    ``f(t)``, ``f(1) - f(0)`` is the integral of the sum over modules of the derivative by the module's own scale:
    integrated gradients along the adapter itself, by Gauss-Legendre quadrature. The gap that remains is part of the
    result. ``f(0)`` is the model with the adapter at scale 0 and everything else as trained. What a trained head or
    embedding changes besides is a row of its own, left out if the base's head is random. Trained biases of the base
    stay in what is called base here.

    In a mixture the router may send a token to other experts as the adapter grows. ``f`` jumps there, and the jump is
    in the gap: it is of no module. Updates of experts are added to their outputs here, and PEFT adds them to the
    weights, which rounds them in bfloat16.

    A contribution is not what leaving the module out costs: other modules may make up for it, and a log-probability
    near 0 can hardly fall. Log-odds, ``log p - log(1 - p)``, have no such ceiling. Neither number alone shows a cause.

    References
    ----------
    Sundararajan et al. (2017), Axiomatic attribution for deep networks. Lin et al. (2024), The unlocking spell on base
    LLMs, for the classes of changed tokens.

    Examples
    --------
    >>> attribution = tlora.attribute(adapted, "w4 w5", "w6", tokenizer=tokenizer, progress=False)
    >>> attribution.sentence
    'layer ...'
    >>> attribution.gap < 0.01
    True
    """
    check_arguments(attribute, locals())
    points = require_positive_int(points, "points")
    gated = GatedAdapter(adapted, "attribute")
    if tuned is not None and type(tuned) is not type(gated.model):
        kinds = f"a {type(tuned).__name__}, and the adapter is on a {type(gated.model).__name__}"
        raise ValueError(f"tuned is {kinds}: pass the fine-tune that it was extracted from")
    if isinstance(task_or_text, Task) and answer is not None:
        raise ValueError(
            f"answer={answer!r} belongs to a request, and task {task_or_text.name!r} has answers of its own: leave it "
            "out, or pass the request as a text"
        )
    if isinstance(task_or_text, Task):
        task, rows = task_or_text, task_or_text.rows(split, limit)
        check_architecture(gated.model, task, f"task {task.name!r}")
    elif tokenizer is not None:
        writer = gated.peft if tuned is None else tuned
        task = request_task(gated, tokenizer, task_or_text, answer, progress=progress, writer=writer)
        rows = task.test
    else:
        raise ValueError("a request needs a tokenizer: pass the one that tlora.load_model returns, tokenizer=")
    targets = adapter_targets(gated)
    switches = _switches(adapted, gated, targets, switch_off, calibration)
    texts = [PreparedAnswer.from_row(gated, task, row) for row in rows]
    bar = progress_bar(texts, desc="attribution", unit="sample", show=progress)
    parts = [_integrate(gated, text.answer, points, bar) for text in bar]
    order = order_by_size(np.stack([one.by_module[0].sum(0).numpy() for one, _ in parts]))
    largest = [list(targets)[place] for place in order[:LARGEST]]
    switches = {name: leave_out(gated, [name]) for name in largest} | switches
    greedy = _greedy_answers(gated, task, rows, progress) if answers else [_Greedy() for _ in rows]
    bar = progress_bar(texts, desc="leaving modules out", unit="sample", show=progress)
    samples = [
        _explain(gated, task, text, *part, switches, said, tuned, bar)
        for text, part, said in zip(bar, parts, greedy, strict=True)
    ]
    updates = lora_updates(gated.peft, embeddings=True)
    return Attribution(
        targets=targets,
        ranks=gated.ranks,
        singular_values={name: updates[name].singular_values().cpu() for name in targets},
        samples=samples,
        switches={label: list(variant) for label, variant in switches.items()},
        meta=Meta(
            model_name(gated.model),
            task.name,
            {"split": split, "limit": limit, "points": points},
            task.seed if task is task_or_text else None,
            len(rows) if task is task_or_text else None,
        ),
    )


@dataclass(frozen=True)
class PreparedAnswer:
    """A sample as text and as the model reads it."""

    prompt: str
    reference: str
    tokens: list[str]
    positions: list[int]
    ids: list[int]
    answer: Answer

    @classmethod
    def from_row(cls, gated: GatedAdapter, task: Task, row: Mapping[str, Any]) -> PreparedAnswer:
        """Prepare a row of a task."""
        batch = prepare_batch(task.collate([row]), gated.model, "the sample")
        device = input_device(gated.model.get_input_embeddings())
        inputs = {key: value.to(device) for key, value in batch.inputs.items()}
        ids, labels = batch.inputs["input_ids"][0], batch.inputs["labels"][0]
        tokens, width = token_texts(task.tokenizer, ids.tolist()), len(ids)
        widths: tuple[int, ...]
        if task.kind == "classification":
            del inputs["labels"]
            answer = Answer(inputs, [], labels[None].to(device), (width,))
            name = task.classes[int(labels)]
            return cls(row["text"], name, [*tokens, name], [width], [int(labels)], answer)
        places = (labels != IGNORED).nonzero()[:, 0]
        written = labels[places].tolist()
        if batch.is_encoder_decoder:
            start = torch.tensor([gated.model.config.decoder_start_token_id])
            tokens += token_texts(task.tokenizer, torch.cat([start, labels[places]]).tolist())
            columns, positions, widths = places, width + 1 + places, (width, len(labels))
        else:
            del inputs["labels"]
            positions = places[places > 0]  # the first token is not predicted
            columns, places, widths = positions - 1, positions, (width,)
        answer = Answer(inputs, columns.tolist(), labels[places].to(device), widths)
        return cls(row["prompt"], row["answer"], tokens, positions.tolist(), written, answer)


def request_task(
    gated: GatedAdapter,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    answer: str | None,
    ids: Sequence[int] = (),
    progress: bool = False,
    writer: PreTrainedModel | PeftModel | None = None,
) -> Task:
    """Return a task of one test sample; without an answer ``writer`` gives it, by default the adapted model.

    ``ids`` are the tokens of the answer if the model wrote it: its text may be tokenized otherwise.
    """
    writer, architecture = writer or gated.peft, architecture_of(gated.model)
    if architecture == "classification":
        classes = classes_of(gated.model)
        label = 0 if answer is None else classes.index(require_choice(answer, "answer", classes))

        def load(label: int) -> Task:
            features = Features({"text": Value("string"), "label": ClassLabel(names=classes)})
            rows = Dataset.from_dict({"text": [text], "label": [label]}, features=features)
            return replace(load_task({"test": rows}, tokenizer), name="")

        task = load(label)
        if answer is None:
            with evaluation_mode(writer):
                task = load(int(class_logits(writer, task, task.test, 1, False).argmax()))
        return task

    def write(completion: str) -> Task:
        rows = Dataset.from_dict({"prompt": [text], "completion": [completion]})
        task = load_task({"test": rows}, tokenizer, architecture=architecture)
        return replace(task, name="", max_new_tokens=max(ANSWER_LENGTH, task.max_new_tokens))

    task = write(text if answer is None else answer)
    (row,) = task.test
    if answer is None:
        with evaluation_mode(writer):
            (ids,) = generate_tokens(writer, task, task.test, 1, progress)
        answer = decode_answer(task, row, ids)
        if not answer.strip():
            raise ValueError(f"the model answers nothing to {text!r}: pass the answer to explain, answer=")
    if ids:
        row = with_written(task, row, ids, answer)
    return replace(task, test=Dataset.from_list([row], features=task.test.features))


def adapter_targets(gated: GatedAdapter) -> dict[str, Target]:
    """The places of the adapter's modules in the model."""
    bare = copy_sharing_weights(gated.model)
    while wrappers(bare):
        unwrap(bare)
    layers = adapter_layers(gated.peft)
    select = ["all", "experts"] if any(map(has_experts, layers.values())) else None
    known = join_experts(target_modules(bare, select).values())
    return {name: known.get(name) or _outside(name, layers[name]) for name in gated.ranks}


def _outside(name: str, layer: Any) -> Target:
    """An embedding, an output head, or another module that is in no block."""
    return Target(name, -1, name.rpartition(".")[2], "mlp", layer.out_features, layer.in_features)


def _integrate(gated: GatedAdapter, answer: Answer, points: int, bar: Bar) -> tuple[Contributions, int]:
    """Contributions of the modules, with as many points as they need, and their number."""
    rise = (gated.scores(answer).values - gated.scores(answer, 0.0).values)[0]
    while True:
        parts = gated.contributions(answer, points, bar)
        gap = parts.by_module[0].sum(1) - rise
        if gap.abs().sum() <= TOLERANCE * rise.abs().sum() or points >= MOST_POINTS:
            return parts, points
        points = min(2 * points, MOST_POINTS)


def leave_out(gated: GatedAdapter, names: Iterable[str]) -> Variant:
    """The adapter without some modules."""
    return {name: torch.zeros(gated.ranks[name], gated.ranks[name]) for name in names}


def _switches(
    adapted: PeftModel,
    gated: GatedAdapter,
    targets: Mapping[str, Target],
    switch_off: str | Iterable[Part],
    calibration: Calibration | None,
) -> dict[str, Variant]:
    """The variants that were asked for, by name."""
    variants: dict[str, Variant] = {}
    linear = {name: targets[name] for name in lora_updates(gated.peft)}
    whole: Compression | None = None
    by_level = {level: groups(targets, level) for level in ("module", "layer", "projection")}
    for part in [switch_off] if isinstance(switch_off, str) else switch_off:
        if isinstance(part, tuple):
            name, rank = _named(linear, part[0]), require_positive_int(part[1], "rank", 0)
            whole = whole or almost_whole(adapted, calibration)
            variants[f"{name} rank {rank}"] = {name: rank_cut(gated, whole, name, rank)}
            continue
        chosen = by_level.get(str(part).removesuffix("s"), {})
        if isinstance(part, Integral):
            chosen = {label: names for label, names in by_level["layer"].items() if targets[names[0]].layer == part}
        elif not chosen and part in by_level["projection"]:
            chosen = {part: by_level["projection"][part]}
        chosen = chosen or {(name := _named(targets, str(part))): [name]}
        variants |= {label: leave_out(gated, names) for label, names in chosen.items()}
    return variants


def _named(targets: Mapping[str, Target], end: str) -> str:
    found = [name for name in targets if f".{name}".endswith(f".{end}")]
    if len(found) != 1:
        raise ValueError(
            f"switch_off: {end!r} names {len(found)} modules of the adapter: give a full name such as "
            f"{next(iter(targets))}, a projection, the index of a layer, 'modules', 'layers' or 'projections'"
        )
    return found[0]


def almost_whole(adapted: PeftModel, calibration: Calibration | None) -> Compression:
    """The adapter with one rank less, by `compress`: its first directions are those of every lower rank."""
    ranks = {name: max(1, update.rank - 1) for name, update in lora_updates(adapted).items()}
    return compress(adapted, rank=ranks, calibration=calibration)


def rank_cut(gated: GatedAdapter, compression: Compression, name: str, rank: int) -> Float[Tensor, "*experts r r"]:
    """The matrix between ``A`` and ``B`` with which a module computes its update cut to a rank; see `almost_whole`."""
    if rank == 0 or rank >= gated.ranks[name]:
        return torch.eye(gated.ranks[name]) * bool(rank)
    cut = compression.lora.updates[name].to(torch.float64)
    whole = lora_updates(gated.peft)[name].to(torch.float64, "cpu").fold()
    # the cut update is within the column space of B and the row space of A
    return torch.linalg.pinv(whole.b) @ cut.b[..., :rank] @ cut.a[..., :rank, :] @ torch.linalg.pinv(whole.a)


@dataclass(frozen=True)
class _Greedy:
    """Greedy answers of base and adapter to a sample, and the task's exact match of them if it has one."""

    texts: list[str] = field(default_factory=list)
    matches: list[float] = field(default_factory=list)


def _greedy_answers(gated: GatedAdapter, task: Task, rows: Dataset, progress: bool) -> list[_Greedy]:
    greedy = [_Greedy() for _ in rows]
    models: dict[str, contextlib.AbstractContextManager[PeftModel]] = {
        "of the base": gated.as_base(),
        "of the adapter": contextlib.nullcontext(gated.peft),
    }
    for whose, model in models.items():
        with model as peft, bars_for(whose):
            frame = predict(peft, task, rows, progress=progress)
        for said, text in zip(greedy, frame["prediction"], strict=True):
            said.texts.append(text)
        if task.metric in frame and task.name:
            for said, match in zip(greedy, frame[task.metric], strict=True):
                said.matches.append(float(match))
    return greedy


def _explain(
    gated: GatedAdapter,
    task: Task,
    text: PreparedAnswer,
    parts: Contributions,
    points: int,
    switches: Mapping[str, Variant],
    greedy: _Greedy,
    tuned: PreTrainedModel | None,
    bar: Bar,
) -> ExplainedAnswer:
    answer = text.answer
    scores = gated.switched(answer, list(switches.values()), bar)
    base, start = gated.base_scores(answer), gated.scores(answer, 0.0)
    choices = scores.choices[0]
    shifts = gated.base_scores(replace(answer, targets=choices.to(answer.targets.device))).ranks
    padding = len(text.tokens) - parts.by_token_read.shape[2]
    return ExplainedAnswer(
        prompt=text.prompt,
        answer=text.reference,
        tokens=text.tokens,
        positions=text.positions,
        base=base.values,
        start=start.values if gated.has_head else base.values,
        adapter=scores.values[:, 0].clone(),
        ranks=torch.stack([base.ranks, scores.ranks[0]]),
        choices=[choice_texts(task, each) for each in (base.choices, choices)],
        shifts=shifts,
        by_module=parts.by_module,
        by_direction={name: each.float() for name, each in parts.by_direction.items()},
        by_token_read=functional.pad(parts.by_token_read, (0, padding)).half(),
        switched={label: scores.values[:, row].clone() for row, label in enumerate(switches, 1)},
        unchanged={label: scores.choices[row] == choices for row, label in enumerate(switches, 1)},
        ids=text.ids,
        tuned=None if tuned is None else score_answer(tuned, answer).values,
        generated=greedy.texts,
        matches=greedy.matches,
        points=points,
    )


def choice_texts(task: Task, ids: Tensor) -> list[str]:
    """The first choices as text: tokens, or names of classes."""
    return [task.classes[n] for n in ids.tolist()] if task.classes else token_texts(task.tokenizer, ids.tolist())
