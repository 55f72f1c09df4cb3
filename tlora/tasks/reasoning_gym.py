"""The tasks of reasoning-gym: generated questions, and verifiers that score any answer."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from tlora.utils.packages import require
from tlora.utils.progress import progress_bar

logger = logging.getLogger(__name__)

DEFAULT_SIZES = {"train": 1000, "validation": 100, "test": 200}
FEATURES = Features({"prompt": Value("string"), "completion": Value("string"), "entry": Value("binary")})

# Percent of all questions in each split; a question is assigned by the digest of its text.
_PERCENT = {"train": 70, "validation": 10, "test": 20}
_WORKER = Path(__file__).with_name("reasoning_gym_worker.py")
_PATIENCE = 30.0  # seconds that a verifier may take for one answer
_START = 600.0  # seconds that a worker may take to start, on a slow or busy file system
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")

Question = tuple[str, str, bytes]


class UnknownTaskError(LookupError):
    """No task of reasoning-gym has this name; ``names`` lists the existing ones."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__("no task of reasoning-gym has this name")
        self.names = list(names)


@lru_cache
def generator_names() -> tuple[str, ...]:
    """Names of all tasks of reasoning-gym, sorted."""
    try:
        next(_questions("", 0, {}))
    except UnknownTaskError as error:
        return tuple(error.names)
    raise AssertionError("a task without a name")


def generate_splits(
    name: str,
    sizes: Mapping[str, int | None],
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Dataset]:
    """Generate questions of a task and deal them to splits that share none.

    Every question is generated with a seed of its own. Its split depends on its text alone, not on seed or sizes: a
    question that one run trains on is never held out in another.

    Parameters
    ----------
    name, seed, options, progress
        As for `tlora.load_task`.
    sizes : mapping of str to int or None
        Questions in ``"train"``, ``"validation"`` and ``"test"`` (0 if left out); None for 1,000, 100 and 200.
        Held-out questions are distinct; training questions repeat as often as the task repeats itself.

    Returns
    -------
    dict of Dataset
        By split: ``prompt``, ``completion`` (a right answer) and ``entry`` (bytes for the verifier).
    """
    requested = {split: sizes.get(split, 0) for split in DEFAULT_SIZES}
    wanted = {split: DEFAULT_SIZES[split] if size is None else size for split, size in requested.items()}
    with (
        contextlib.closing(_questions(name, seed, dict(options or {}))) as questions,
        progress_bar(total=sum(wanted.values()), desc=f"generating {name}", unit="q", show=progress) as bar,
    ):
        dealt = _deal(questions, wanted, bar)
    for split, size in wanted.items():
        if len(dealt[split]) < size:
            message = f"{name} has few distinct questions: {len(dealt[split])} of {size} are left for {split}"
            if not dealt[split]:
                raise ValueError(f"{message}; ask for {split}=0, or make the task harder with options=")
            warnings.warn(message, stacklevel=3)
    return {split: _dataset(rows) for split, rows in dealt.items()}


def score_answers(
    name: str, options: Mapping[str, Any] | None, entries: Sequence[bytes], answers: Sequence[str]
) -> list[float]:
    """Score answers, from 0 to 1, with the task's own verifier.

    Some verifiers evaluate the answer as code. They run in a process without the user's environment that cannot start
    processes or write files; an answer that makes it hang or end scores 0. ``entries`` is the column ``entry`` of the
    questions, ``options`` are those of `generate_splits`.
    """
    pending = list(zip(entries, answers, strict=True))
    scores: list[float] = []
    while len(scores) < len(pending):
        order = {"do": "score", "name": name, "options": dict(options or {}), "answers": pending[len(scores) :]}
        with _worker(order) as process:
            scores += _read_scores(process)
        if len(scores) < len(pending):
            answer = pending[len(scores)][1]
            logger.warning("the verifier of %s hung or crashed on %.80r: scored 0", name, answer)
            scores.append(0.0)
    return scores


def assign_split(question: str) -> str:
    """The split of a question, by its text."""
    percent = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % 100
    return next(split for split, end in zip(_PERCENT, accumulate(_PERCENT.values()), strict=True) if percent < end)


def _deal(questions: Iterator[Question], wanted: Mapping[str, int], bar: tqdm) -> dict[str, list[Question]]:
    """Deal questions to their splits, until all are full or the task repeats itself too often."""
    dealt: dict[str, list[Question]] = {split: [] for split in wanted}
    held_out: set[str] = set()
    limit = 100 + 5 * max(size * 100 // _PERCENT[split] for split, size in wanted.items())
    for _ in range(limit):
        if all(len(dealt[split]) == size for split, size in wanted.items()):
            break
        question = next(questions)
        split = assign_split(question[0])
        if len(dealt[split]) == wanted[split] or question[0] in held_out:
            continue
        dealt[split].append(question)
        bar.update()
        if split != "train":
            held_out.add(question[0])
    return dealt


def _dataset(rows: Sequence[Question]) -> Dataset:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return Dataset.from_dict(dict(zip(FEATURES, map(list, columns), strict=True)), features=FEATURES)


def _questions(name: str, seed: int, options: dict[str, Any]) -> Generator[Question]:
    """Endless questions, from a process that stops when this generator is closed."""
    # Question i has seed first + i: starts are far apart, so that two of our seeds share no questions.
    first = int.from_bytes(hashlib.sha256(f"tlora {seed}".encode()).digest()[:4])
    with _worker({"do": "draw", "name": name, "seed": first, "options": options}) as process:
        while True:
            try:
                yield _unwrap(name, pickle.load(process.stdout))  # type: ignore[arg-type]
            except EOFError as error:
                raise ValueError(
                    f"the generator of {name!r} broke off (exit status {process.wait()}): "
                    "try another seed or other options"
                ) from error


def _unwrap(name: str, message: tuple[str, Any]) -> Any:
    kind, content = message
    if kind == "unknown":
        raise UnknownTaskError(content)
    if kind == "refused":
        raise ValueError(f"reasoning-gym cannot generate {name!r}: {content}")
    return content


def _read_scores(process: subprocess.Popen[bytes]) -> list[float]:
    """Read a worker's scores until it ends or one is overdue."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        # The stream ends in the middle of a message if the worker is killed.
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                messages.put(pickle.load(process.stdout))  # type: ignore[arg-type]
        messages.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    scores = []
    try:
        first = messages.get(timeout=_START)
        if first is None:
            raise RuntimeError("reasoning-gym does not start in a process of its own: it ended")
        _unwrap("", first)  # ready to score
        while (message := messages.get(timeout=_PATIENCE)) is not None:
            scores.append(_unwrap("", message))
    except queue.Empty:
        logger.debug("no score within %g s", _PATIENCE)
    finally:
        process.kill()
        reader.join()  # before its pipe is closed
    return scores


@contextlib.contextmanager
def _worker(order: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the child process with an order; end it with the block."""
    require("reasoning_gym", "tasks")
    process = subprocess.Popen(
        # -P: our folder, where the script lies, holds no modules for it. The hash seed fixes the order of sets.
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # No secrets of the user for answers that are evaluated as code.
        env={name: os.environ[name] for name in _KEPT if name in os.environ} | {"PYTHONHASHSEED": "0"},
    )
    with process:  # waits, and closes the pipes
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                pickle.dump(dict(order), process.stdin)
                process.stdin.close()
            yield process
        finally:
            process.kill()
