"""Load a task by name, from a file or from a dataset; tokenize it; warn about samples that were cut."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED
from tlora.models.loading import is_generative, load_config, load_tokenizer, set_length_limit
from tlora.tasks.evaluation import decode_answer
from tlora.tasks.metrics import METRICS, Metric
from tlora.tasks.presets import PRESETS, DataFiles, load_preset, local_files
from tlora.tasks.reasoning_gym import UnknownTaskError, generate_splits, generator_names, score_answers
from tlora.tasks.sources import SUFFIXES, Source, read_dataset, read_path, split_files
from tlora.tasks.splits import deal_splits, key_columns
from tlora.tasks.task import Task
from tlora.tasks.tokenization import ARCHITECTURES, Cuts, Format
from tlora.utils.defaults import MetricName
from tlora.utils.files import digest
from tlora.utils.validation import check_arguments, require_choice, require_positive_int

logger = logging.getLogger(__name__)

_MAX_LENGTH = 1024
_TEXTS = Features({"prompt": Value("string"), "completion": Value("string")})


def load_task(
    task: str | os.PathLike[str] | Dataset | Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    *,
    architecture: str | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    chat: bool = True,
    metric: str | None = None,
    options: Mapping[str, Any] | None = None,
    data_files: DataFiles | None = None,
    progress: bool = False,
) -> Task:
    """Load a task and tokenize it for a model.

    Parameters
    ----------
    task : str, path-like, datasets.Dataset or mapping of str to datasets.Dataset
        - A task of reasoning-gym, e.g. ``"family_relationships"``: questions are generated, answers verified.
        - A task known by name: ``rotten_tomatoes``, ``imdb``, ``gsm8k``, ``math``, ``metamathqa``, ``humaneval``,
          ``mbpp``, ``codefeedback``, ``wizardlm``, ``ultrachat``; of GLUE ``cola``, ``sst2``, ``mrpc``, ``qqp``,
          ``mnli``, ``qnli``, ``rte``, ``wnli``. The first two and ``humaneval`` are read from installed
          packages if possible, else from the hub like the others. Programs are not run: of code there is the loss.
        - ``reviews``: the sentences of rotten_tomatoes as text to continue.
        - A JSONL, JSON, CSV or Parquet file, or a folder with ``train.*``, ``validation.*``, ``test.*``, each in
          one file or in shards named as on the hub (``train-00000-of-00002.parquet``).
        - A `datasets.Dataset`, or one per split.

        Files and datasets have the columns ``prompt`` and ``completion``; or ``messages`` (``role``, ``content``,
        and what else the chat template reads), optionally ``tools`` (JSON schemas, as a list or as text); or ``text``
        and ``label`` (names or integers), optionally ``text_pair``.
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's. It is not changed.
    architecture : str, optional
        ``"causal"``: the model reads a prompt and writes an answer. ``"seq2seq"``: an encoder reads the
        prompt, a decoder writes the answer. ``"classification"``: a head outputs one of the classes. By default
        classification for data with labels, else causal. Labels become words for the other two.
    train, validation, test : int, optional
        Samples of each split. By default all available; a missing split takes a tenth of the training
        data. Tasks of reasoning-gym generate 1,000, 100 and 200.
    max_length : int, optional
        Most tokens of a sample; longer ones are cut at the end. Default: 1,024, or the tokenizer's limit if that is
        less.
    seed : int
        Seed of generated questions, splits and calibration samples. With another seed, or other sizes of the held-out
        splits, rows are dealt again: some that were held out before may then be training rows.
    chat : bool
        Use the tokenizer's chat template, if it has one.
    metric : str, optional
        In place of the task's own: ``"exact_match"`` (of the text; the default for files and datasets with
        prompt and completion), ``"final_answer"`` (of the value that a solution ends with), or ``"loss"``
        (nothing is generated; the default for messages).
    options : mapping, optional
        Arguments of the generator of a reasoning-gym task, e.g. ``{"max_family_size": 6}``.
    data_files : path-like or mapping of str to path-like, optional
        For a task known by name: local files with the hub's columns, one per split.
    progress : bool
        Show progress bars.

    Returns
    -------
    Task
        The same call returns the same task.

    Raises
    ------
    TypeError
        If the tokenizer or the data is of another type.
    ValueError
        If the name is unknown, a column is missing, a file is empty or malformed, there are fewer samples than asked
        for, or ``max_length`` leaves a split without labels.
    FileNotFoundError
        If a file does not exist.
    ConnectionError
        If the data is not installed and the hub cannot be reached.

    Warns
    -----
    UserWarning
        If samples were truncated or dropped; the task's ``cuts`` has the counts.

    Notes
    -----
    Labels are on the answer and the token that ends it, also if that token is the padding token. In a conversation
    they are on everything the assistant says, except messages with a ``weight`` of 0. No sample is in two splits of a
    task known by name or generated, nor of data that is split here.

    Examples
    --------
    >>> task = tlora.load_task("commands.jsonl", tokenizer, validation=4, test=4)
    >>> task
    Task(commands: generation, ... train/validation/test samples, metric exact_match)
    >>> task.calibration(samples=8)[0]["input_ids"].shape[0]
    8
    """
    check_arguments(load_task, locals())
    sizes = {"train": train, "validation": validation, "test": test}
    _check_arguments(tokenizer, architecture, sizes, metric)
    has_template = chat and architecture != "seq2seq" and bool(tokenizer.chat_template)
    if isinstance(task, str) and task in PRESETS:
        has_template = has_template and PRESETS[task].chat
    source = _load_source(task, sizes, seed, has_template, options, data_files, progress)
    if source.classes and architecture in ("causal", "seq2seq"):
        source = _labels_as_words(source)
    if metric is not None:
        source = replace(source, metric=METRICS[metric])
    architecture = architecture or ("classification" if source.classes else "causal")
    _check_fit(source, architecture, has_template, metric)
    if max_length is None:
        max_length = default_length(tokenizer)
    require_positive_int(max_length, "max_length", 2)
    form = Format(tokenizer, architecture, max_length, has_template, source.separator)
    return _build_task(source, form, seed, progress)


def default_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens of a sample if the caller gives no number."""
    return int(min(_MAX_LENGTH, tokenizer.model_max_length))


def load_task_for_model(model: str, task: str, where: Mapping[str, Any] | None = None, **options: Any) -> Task:
    """Load a task in the tokens of a base model, named as for `tlora.load_model`, in the form that suits the model.

    ``where`` are arguments that locate the model, such as its revision.
    """
    where = where or {}
    config = load_config(model, **where)
    writes_text = is_generative(config)  # first of all, since it refuses models that are not of text
    tokenizer = set_length_limit(load_tokenizer(model, **where), config)
    architecture = "seq2seq" if config.is_encoder_decoder else None
    loaded = load_task(task, tokenizer, **({"architecture": architecture} | options))
    if loaded.kind == "generation" and not writes_text:
        raise ValueError(
            f"{model} is an encoder and writes no text, which {task} asks for: take a task with labels, such as "
            "rotten_tomatoes, or a causal model"
        )
    return loaded


def task_files(task: str, data_files: DataFiles | None = None) -> dict[str, Path]:
    """The user's own files that a task is read from, by split and place; empty for a task known by name alone."""
    if data_files is not None:
        files = local_files(PRESETS[task], data_files)
    elif task in PRESETS or not _is_path(task):
        return {}
    else:
        files = split_files(Path(task)) if Path(task).is_dir() else {"train": (Path(task),)}
    return {
        split if len(paths) == 1 else f"{split} {number}": path
        for split, paths in files.items()
        for number, path in enumerate(paths)
    }


def digest_task(task: str, data: Mapping[str, Any]) -> dict[str, str]:
    """A digest of the user's own files that a task is read from, under ``"task"``; empty if there are none."""
    files = task_files(task, data.get("data_files"))
    return {"task": digest_files(files)} if files else {}


def digest_files(files: Mapping[str, Path]) -> str:
    """One digest of all files and of the splits that they stand for."""
    digests = {place: digest(file) for place, file in files.items() if file.is_file()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def task_names() -> list[str]:
    """List the names that `load_task` knows: tasks with data first, then those of reasoning-gym.

    Returns
    -------
    list of str

    Examples
    --------
    >>> tlora.task_names()[:2]
    ['rotten_tomatoes', 'imdb']
    """
    return [*PRESETS, *generator_names()]


def _load_source(
    task: Any,
    sizes: Mapping[str, int | None],
    seed: int,
    has_template: bool,
    options: Mapping[str, Any] | None,
    data_files: DataFiles | None,
    progress: bool,
) -> Source:
    is_preset = isinstance(task, str) and task in PRESETS
    is_generated = isinstance(task, str) and not is_preset and not _is_path(task)
    if options is not None and not is_generated:
        raise ValueError("options are for the generators of reasoning-gym; this task has none: leave them out")
    if data_files is not None and not is_preset:
        raise ValueError(f"data_files are for {', '.join(PRESETS)}; pass your own file as the task itself")
    if is_preset:
        return load_preset(task, sizes, seed, has_template, data_files)
    if is_generated:
        return _generate_source(task, sizes, seed, options, progress)
    if isinstance(task, Dataset | Mapping):
        source = read_dataset(task)
    elif isinstance(task, str | os.PathLike):
        source = read_path(Path(task))
    else:
        raise TypeError(f"a task is a name, a path or a datasets.Dataset, not {type(task).__name__}")
    key = key_columns(next(iter(source.splits.values())))
    return replace(source, splits=deal_splits(source.splits, sizes, seed, key, leave_out_shared=False))


def _generate_source(
    name: str, sizes: Mapping[str, int | None], seed: int, options: Mapping[str, Any] | None, progress: bool
) -> Source:
    try:
        splits = generate_splits(name, sizes, seed, options, progress)
    except UnknownTaskError as error:
        close = difflib.get_close_matches(name.lower(), [*PRESETS, *error.names], n=4, cutoff=0.6)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"unknown task {name!r}.{hint} A task is one of {', '.join(PRESETS)}; one of the {len(error.names)} of "
            "reasoning-gym, which tlora.task_names() lists too; a path to a file "
            f"({', '.join(SUFFIXES)}) or a folder of them; or a datasets.Dataset"
        ) from None
    return Source(name, splits, Metric("exact_match", partial(_verify_answers, name, options)), separator="\n")


def _verify_answers(
    name: str, options: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> dict[str, list[float]]:
    """Score answers with the verifier of reasoning-gym."""
    scores = score_answers(name, options, [row["entry"] for row in rows], [answer.strip() for answer in answers])
    return {"exact_match": [float(each == 1) for each in scores], "score": scores}


def _is_path(task: str) -> bool:
    looks_like_one = "/" in task or os.sep in task or task.lower().endswith(SUFFIXES)
    return looks_like_one or (Path(task).exists() and task not in generator_names())


def _labels_as_words(source: Source) -> Source:
    """Turn a classification into generation: prompts name the classes, answers are class names."""
    choices = ", ".join(source.classes)

    def convert(rows: Dataset) -> Dataset:
        texts = [rows[name][:] for name in ("text", "text_pair") if name in rows.column_names]
        prompts = ["\n".join(parts) + f"\n\nAnswer with one of: {choices}." for parts in zip(*texts, strict=True)]
        answers = [source.classes[label] for label in rows["label"][:]]
        return Dataset.from_dict({"prompt": prompts, "completion": answers}, features=_TEXTS)

    splits = {split: convert(rows) if len(rows) else rows for split, rows in source.splits.items()}
    return replace(source, splits=splits, classes=(), separator="\n")


def _build_task(source: Source, form: Format, seed: int, progress: bool) -> Task:
    splits: dict[str, Dataset] = {}
    cuts: dict[str, Cuts] = {}
    for split, rows in source.splits.items():
        splits[split], cuts[split] = form.encode(rows, split, progress)
        if len(rows) and not len(splits[split]):
            raise ValueError(
                f"max_length={form.max_length} cuts off every answer of {source.name!r}, {split}: its longest sample "
                f"has {cuts[split].longest} tokens; allow as many, or shorten the prompts if the model reads no more"
            )
    _warn_of_cuts(source.name, form.max_length, cuts)
    is_classification = form.architecture == "classification"
    longest, stops = (1, set()) if is_classification else _measure_answers(splits.values(), form)
    task = Task(
        name=source.name,
        kind="classification" if is_classification else "generation",
        tokenizer=form.tokenizer,
        architecture=form.architecture,
        metric=source.metric.name,
        score=source.metric.score,
        classes=source.classes,
        max_length=form.max_length,
        max_new_tokens=longest,
        stop_ids=tuple(sorted(stops)),
        cuts=cuts,
        seed=seed,
        **splits,
    )
    if source.metric.compares_text:
        _warn_of_unreachable_answers(task)
    return task


def _warn_of_unreachable_answers(task: Task) -> None:
    """Warn if a model that writes exactly the labels would not score 1, by the first few samples that were not cut."""
    split = next((rows for rows in (task.test, task.validation, task.train) if len(rows)), task.train)
    rows = [row for row in split.select(range(min(len(split), 8))) if len(row["labels"]) < task.max_length]
    if task.score is None or not rows:
        return
    starts = [0 if task.architecture == "seq2seq" else row["prompt_length"] for row in rows]  # of the last answer
    targets = [[n for n in row["labels"][start:] if n != IGNORED] for row, start in zip(rows, starts, strict=True)]
    answers = [decode_answer(task, row, labels) for row, labels in zip(rows, targets, strict=True)]
    scores = task.score(rows, answers)[task.metric]
    if min(scores) < 1:
        worst = scores.index(min(scores))
        logger.warning(
            "%s: a model that writes exactly the labels scores %g by %s: it writes %r, the reference is %r; "
            "choose another metric, or completions that the tokenizer and the metric can read",
            *(task.name, scores[worst], task.metric, answers[worst][:60], rows[worst]["answer"][:60]),
        )


def _measure_answers(splits: Iterable[Dataset], form: Format) -> tuple[int, set[int]]:
    """Tokens of the longest answer, and the tokens that end answers."""
    longest, stops = 1, {form.tokenizer.eos_token_id} - {None}
    for rows in splits:
        for labels, start in zip(rows["labels"][:], rows["prompt_length"][:], strict=True):
            longest = max(longest, len(labels) - (0 if form.architecture == "seq2seq" else start))
            if len(labels) < form.max_length:  # else it may be cut after any token
                stops |= {labels[-1]} & form.end_ids
    return longest, stops


def _warn_of_cuts(name: str, max_length: int, cuts: Mapping[str, Cuts]) -> None:
    parts = [
        f"{cut.truncated} of {split} ({cut.dropped} lost their whole answer and were left out)"
        for split, cut in cuts.items()
        if cut.truncated
    ]
    if parts:
        longest = f"the longest has {max(cut.longest for cut in cuts.values())} tokens"
        warnings.warn(f"{name}: max_length={max_length} truncated {', '.join(parts)}; {longest}", stacklevel=4)


def _check_arguments(
    tokenizer: Any, architecture: str | None, sizes: Mapping[str, int | None], metric: str | None
) -> None:
    require_choice(architecture, "architecture", (None, *ARCHITECTURES))
    require_choice(metric, "metric", (None, *get_args(MetricName)))
    for split, size in sizes.items():
        if size is not None:
            require_positive_int(size, split, 0)


def _check_fit(source: Source, architecture: str, has_template: bool, metric: str | None) -> None:
    columns = next(iter(source.splits.values())).column_names
    if architecture == "classification" and not source.classes:
        raise ValueError(
            f"{source.name!r} has no labels to classify (columns {', '.join(columns)}): "
            "use architecture='causal', or 'seq2seq' for an encoder-decoder"
        )
    if architecture == "classification" and metric is not None:
        raise ValueError(f"metric={metric!r} is for generated answers; a classification has its accuracy")
    if "messages" in columns and architecture == "seq2seq":
        raise ValueError("an encoder-decoder takes prompt and completion, not messages: turn them into those columns")
    if "messages" in columns and not has_template:
        raise ValueError(
            "messages need a chat template, and the tokenizer has none (or chat=False): "
            "set tokenizer.chat_template, or use the columns prompt and completion"
        )
