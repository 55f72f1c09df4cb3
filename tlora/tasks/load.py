"""Load a task by name, from a file or from a dataset; tokenise it; say what was cut off."""

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
from numbers import Integral
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED
from tlora.models.loading import is_generative, load_config, load_tokenizer, set_length_limit
from tlora.tasks.evaluation import decode_answer
from tlora.tasks.metrics import METRICS, Metric
from tlora.tasks.presets import PRESETS, REFUSED, DataFiles, load_preset, local_files
from tlora.tasks.reasoning_gym import UnknownTaskError, generate_splits, generator_names, score_answers
from tlora.tasks.sources import SUFFIXES, Source, read_dataset, read_path, split_files
from tlora.tasks.splits import deal_splits, key_columns
from tlora.tasks.task import Task
from tlora.tasks.tokenization import ARCHITECTURES, Cuts, Format
from tlora.utils.files import digest

logger = logging.getLogger(__name__)

_MAX_LENGTH = 1024
_LOOKED_AT = 8  # samples, for what no model could be right about
_METRICS = ("exact_match", "final_answer", "loss")
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
    """Load a task and tokenise it for a model.

    Parameters
    ----------
    task : str, path-like, datasets.Dataset or mapping of str to datasets.Dataset
        - A task of reasoning-gym, e.g. ``"family_relationships"``: questions are drawn, answers verified.
        - A task known by name: ``rotten_tomatoes``, ``imdb``, ``gsm8k``, ``math``, ``metamathqa``, ``humaneval``,
          ``mbpp``, ``codefeedback``, ``wizardlm``, ``ultrachat``; of GLUE ``cola``, ``sst2``, ``mrpc``, ``qqp``,
          ``mnli``, ``qnli``, ``rte``, ``wnli``. The first two and ``humaneval`` are read from
          packages where these are installed; else they, and the others always, come from the hub.
        - ``reviews``: the sentences of rotten_tomatoes as text to continue.
        - A JSONL, JSON, CSV or Parquet file, or a folder with ``train.*``, ``validation.*``, ``test.*``, each in
          one file or in shards as the hub names them (``train-00000-of-00002.parquet``).
        - A `datasets.Dataset`, or one a split.

        Files and datasets have the columns ``prompt`` and ``completion``; or ``messages`` (``role``, ``content``,
        and what else the chat template reads), optionally ``tools`` (JSON schemas, as a list or as text); or ``text``
        and ``label`` (names or integers), optionally ``text_pair``.
    tokenizer : transformers.PreTrainedTokenizerBase
        That of the model. It is not changed.
    architecture : str, optional
        ``"causal"``: the model reads a prompt and writes an answer. ``"seq2seq"``: an encoder reads the
        prompt, a decoder writes the answer. ``"classification"``: a head gives one of the classes. By default
        classification for data with labels, else causal. Labels become words for the other two.
    train, validation, test : int, optional
        Samples of each split. By default all there are; a split that is missing takes a tenth of the training
        data. Tasks of reasoning-gym draw 1,000, 100 and 200.
    max_length : int, optional
        Most tokens of a sample; what is longer is cut off at the end. Default: 1,024, or less where the
        tokenizer says that the model reads less.
    seed : int
        Seed of the questions drawn, the splits and the calibration samples. Another one, or other sizes of the splits
        that are held out, deal rows again: what was held out before may then be among those for training.
    chat : bool
        Use the tokenizer's chat template, where it has one.
    metric : str, optional
        In place of the task's own: ``"exact_match"`` (of the text; for files and datasets the default of
        prompt and completion), ``"final_answer"`` (of the value that a solution ends with), or ``"loss"``
        (nothing is generated; the default of messages).
    options : mapping, optional
        Arguments of the generator of a reasoning-gym task, e.g. ``{"max_family_size": 6}``.
    data_files : path-like or mapping of str to path-like, optional
        For a task known by name: local files with the columns of the hub's, one a split.
    progress : bool
        Show progress bars.

    Returns
    -------
    Task
        The same call gives the same task.

    Raises
    ------
    TypeError
        If the tokenizer or the data is of another type.
    ValueError
        If the name is unknown (naming close ones), a column is missing, a file is empty or malformed (naming
        the line), there are fewer samples than asked for, or ``max_length`` leaves a split without labels.
    FileNotFoundError
        If a file does not exist.
    ConnectionError
        If the data is neither installed nor to be had from the hub.

    Warns
    -----
    UserWarning
        If samples were truncated or dropped; also in the task's ``cuts``.

    Notes
    -----
    What is trained on: the answer and the token that ends it, also where that token is the padding token. In a
    conversation, all that the assistant says, but for messages with a ``weight`` of 0. No sample is in two splits
    of tasks known by name or drawn, nor of data that is split here.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    _check(tokenizer, architecture, sizes, metric)
    plain = isinstance(task, str) and task in PRESETS and not PRESETS[task].chat
    templated = chat and not plain and architecture != "seq2seq" and bool(tokenizer.chat_template)
    source = _source(task, sizes, seed, templated, options, data_files, progress)
    source = _in_words(source) if source.classes and architecture in ("causal", "seq2seq") else source
    if metric is not None:
        source = replace(source, metric=METRICS[metric])
    chosen = architecture or ("classification" if source.classes else "causal")
    _check_fit(source, chosen, templated, metric)
    length = _checked_length(tokenizer, max_length)
    return _tokenised(source, Format(tokenizer, chosen, length, templated, source.separator), seed, progress)


def load_task_for_model(model: str, task: str, **options: Any) -> Task:
    """Load a task in the tokens of a model, in the form that this model takes.

    Parameters
    ----------
    model : str
        Name of the base, as `tlora.load_model` takes it.
    task : str
        Name or path.
    **options
        As for `load_task`.

    Raises
    ------
    ValueError
        If the task asks for text and the model writes none; and as `load_task`.
    """
    config = load_config(model)
    architecture = "seq2seq" if config.is_encoder_decoder else None
    tokenizer = set_length_limit(load_tokenizer(model), config)
    found = load_task(task, tokenizer, **({"architecture": architecture} | options))
    if found.kind == "generation" and not is_generative(config):
        raise ValueError(
            f"{model} is an encoder and writes no text, which {task} asks for: take a task with labels, such as "
            "rotten_tomatoes, or a causal model"
        )
    return found


def task_files(task: str, data_files: DataFiles | None = None) -> dict[str, Path]:
    """The files of one's own that a task is read from, by split and place; none where it is known by name alone."""
    if data_files is not None:
        named = local_files(PRESETS[task], data_files)
        return {f"{split} {n}": file for split, files in named.items() for n, file in enumerate(files)}
    if task in PRESETS or not _is_path(task):
        return {}
    splits = split_files(Path(task)) if Path(task).is_dir() else {"train": (Path(task),)}
    return {
        split if len(files) == 1 else f"{split} {file.name}": file for split, files in splits.items() for file in files
    }


def task_names() -> list[str]:
    """Names that `load_task` knows: those with data first, then those of reasoning-gym."""
    return [*PRESETS, *generator_names()]


def _source(
    task: Any,
    sizes: Mapping[str, int | None],
    seed: int,
    templated: bool,
    options: Mapping[str, Any] | None,
    data_files: DataFiles | None,
    progress: bool,
) -> Source:
    known = isinstance(task, str) and task in PRESETS
    generated = isinstance(task, str) and not known and not _is_path(task)
    if options is not None and not generated:
        raise ValueError("options are for the generators of reasoning-gym; this task has none: leave them out")
    if data_files is not None and not known:
        raise ValueError(f"data_files are for {', '.join(PRESETS)}; pass your own file as the task itself")
    if known:
        return load_preset(task, sizes, seed, templated, data_files)
    if generated:
        return _generated(task, sizes, seed, options, progress)
    if isinstance(task, Dataset | Mapping):
        source = read_dataset(task)
    elif isinstance(task, str | os.PathLike):
        source = read_path(Path(task))
    else:
        raise TypeError(f"a task is a name, a path or a datasets.Dataset, not {type(task).__name__}")
    same = key_columns(next(iter(source.splits.values())))
    return replace(source, splits=deal_splits(source.splits, sizes, seed, same, leave_out_shared=False))


def _generated(
    name: str, sizes: Mapping[str, int | None], seed: int, options: Mapping[str, Any] | None, progress: bool
) -> Source:
    if name in REFUSED:
        raise ValueError(REFUSED[name])
    try:
        splits = generate_splits(name, sizes, seed, options, progress)
    except UnknownTaskError as error:
        raise ValueError(_unknown(name, error.names)) from None

    return Source(name, splits, Metric("exact_match", partial(_verified, name, options)), separator="\n")


def _verified(
    name: str, options: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> dict[str, list[float]]:
    """What the verifier of reasoning-gym says of the answers."""
    scores = score_answers(name, options, [row["entry"] for row in rows], [answer.strip() for answer in answers])
    return {"exact_match": [float(each == 1) for each in scores], "score": scores}


def _unknown(name: str, generators: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), [*PRESETS, *generators], n=4, cutoff=0.6)
    meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"unknown task {name!r}.{meant} A task is one of {', '.join(PRESETS)}; one of the {len(generators)} of "
        "reasoning-gym, which tlora.task_names() lists too; a path to a file "
        f"({', '.join(SUFFIXES)}) or a folder of them; or a datasets.Dataset"
    )


def _is_path(task: str) -> bool:
    spelled = "/" in task or os.sep in task or task.lower().endswith(SUFFIXES)
    return spelled or (Path(task).exists() and task not in generator_names())


def _in_words(source: Source) -> Source:
    """Classes as words that are written: prompts that name them, and the class as the answer."""
    choices = ", ".join(source.classes)

    def worded(rows: Dataset) -> Dataset:
        texts = [rows[name][:] for name in ("text", "text_pair") if name in rows.column_names]
        prompts = ["\n".join(parts) + f"\n\nAnswer with one of: {choices}." for parts in zip(*texts, strict=True)]
        answers = [source.classes[label] for label in rows["label"][:]]
        return Dataset.from_dict({"prompt": prompts, "completion": answers}, features=_TEXTS)

    splits = {split: worded(rows) if len(rows) else rows for split, rows in source.splits.items()}
    return replace(source, splits=splits, classes=(), separator="\n")


def _tokenised(source: Source, form: Format, seed: int, progress: bool) -> Task:
    splits: dict[str, Dataset] = {}
    cuts: dict[str, Cuts] = {}
    for split, rows in source.splits.items():
        splits[split], cuts[split] = form.encode(rows, split, progress)
        if len(rows) and not len(splits[split]):
            most, longest = form.tokenizer.model_max_length, cuts[split].longest
            way_out = f"pass up to max_length={min(longest, most)}, the tokens of its longest sample"
            if form.max_length >= most:
                way_out = "the model reads no more, so shorten the prompts"
            raise ValueError(
                f"max_length={form.max_length} cuts off every answer of {source.name!r}, {split}: {way_out}"
            )
    _say_cuts(source.name, form.max_length, cuts)
    classified = form.architecture == "classification"
    longest, stops = (1, set()) if classified else _answers(splits.values(), form)
    task = Task(
        name=source.name,
        kind="classification" if classified else "generation",
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
    if source.metric in (METRICS["exact_match"], METRICS["final_answer"]):  # whose scores are made at once
        _say_unreachable(task)
    return task


def _say_unreachable(task: Task) -> None:
    """Warn where a model that writes exactly what it learns would not be right."""
    rows = next((rows for rows in (task.test, task.validation, task.train) if len(rows)), task.train)
    rows = rows.select(range(min(len(rows), _LOOKED_AT)))
    rows = rows.select([n for n, labels in enumerate(rows["labels"][:]) if len(labels) < task.max_length])  # not cut
    if task.score is None or not len(rows):
        return
    begins = [0 if task.architecture == "seq2seq" else row["prompt_length"] for row in rows]  # the last answer
    targets = [[n for n in row["labels"][begin:] if n != IGNORED] for row, begin in zip(rows, begins, strict=True)]
    written = [decode_answer(task, row, labels) for row, labels in zip(rows, targets, strict=True)]
    for row, answer, score in zip(rows, written, task.score(rows, written)[task.metric], strict=True):
        if score < 1:
            logger.warning(
                "%s: a model that writes exactly what it learns scores %g by %s where the answer is %r, for it writes "
                "%r: choose another metric, or completions that the tokenizer and the metric can read",
                *(task.name, score, task.metric, row["answer"][:60], answer[:60]),
            )
            return


def _answers(splits: Iterable[Dataset], form: Format) -> tuple[int, set[int]]:
    """Tokens of the longest answer, and the tokens that end one."""
    longest, stops = 1, {form.tokenizer.eos_token_id} - {None}
    for rows in splits:
        for labels, start in zip(rows["labels"][:], rows["prompt_length"][:], strict=True):
            longest = max(longest, len(labels) - (0 if form.architecture == "seq2seq" else start))
            if len(labels) < form.max_length:  # else it may be cut off behind any token
                stops |= {labels[-1]} & form.end_ids
    return longest, stops


def _say_cuts(name: str, max_length: int, cuts: Mapping[str, Cuts]) -> None:
    parts = [
        f"{cut.truncated} of {split} ({cut.dropped} lost their whole answer and were left out)"
        for split, cut in cuts.items()
        if cut.truncated
    ]
    if parts:
        longest = max(cut.longest for cut in cuts.values())
        warnings.warn(
            f"{name}: max_length={max_length} truncated {', '.join(parts)}; the longest has {longest} tokens",
            stacklevel=4,
        )


def _checked_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    most = int(min(tokenizer.model_max_length, 1 << 30))
    if max_length is None:
        return min(_MAX_LENGTH, most)
    if isinstance(max_length, bool) or not isinstance(max_length, Integral) or max_length < 2:
        raise ValueError(f"max_length={max_length!r}: pass a whole number of tokens, at least 2")
    if max_length > most:
        warnings.warn(
            f"max_length={max_length} is more than the {most} tokens that the tokenizer says its model reads",
            stacklevel=3,
        )
    return int(max_length)


def _check(tokenizer: Any, architecture: str | None, sizes: Mapping[str, int | None], metric: str | None) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer is of type {type(tokenizer).__name__}: pass the one that tlora.load_model returns")
    if architecture not in (None, *ARCHITECTURES):
        raise ValueError(f"architecture={architecture!r}: choose from {', '.join(ARCHITECTURES)}")
    if metric not in (None, *_METRICS):
        raise ValueError(f"metric={metric!r}: choose from {', '.join(_METRICS)}")
    for split, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, Integral) or size < 0):
            raise ValueError(f"{split}={size!r}: pass a number of samples, 0 or more")


def _check_fit(source: Source, architecture: str, templated: bool, metric: str | None) -> None:
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
    if "messages" in columns and not templated:
        raise ValueError(
            "messages need a chat template, and the tokenizer has none (or chat=False): "
            "set tokenizer.chat_template, or use the columns prompt and completion"
        )


def task_contents(task: str, data: Mapping[str, Any]) -> dict[str, str]:
    """The digest of the files that a task is read from, under ``"task"``, where they are one's own."""
    files = task_files(task, data.get("data_files"))
    return {"task": digest_files(files)} if files else {}


def digest_files(files: Mapping[str, Path]) -> str:
    """One digest of all files and of the splits that they stand for."""
    found = {place: digest(file) for place, file in files.items() if file.is_file()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
