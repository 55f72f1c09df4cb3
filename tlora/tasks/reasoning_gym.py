"""The tasks of reasoning-gym: questions drawn on demand, and verifiers that score any answer."""

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
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from tlora.utils.packages import require

logger = logging.getLogger(__name__)

DEFAULT_SIZES = {"train": 1000, "validation": 100, "test": 200}
FEATURES = Features({"prompt": Value("string"), "completion": Value("string"), "entry": Value("binary")})

# The split that a question belongs to, by the digest of its text: percent of all questions.
_PERCENT = {"train": 70, "validation": 10, "test": 20}
_WORKER = Path(__file__).with_name("reasoning_gym_worker.py")
_PATIENCE = 30.0  # seconds that a verifier may take for one answer
_START = 600.0  # seconds that a worker may take to begin, from a file system that is slow or busy
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_LONG = 10.0  # seconds of drawing after which we say how long it will take

Question = tuple[str, str, bytes]


class UnknownTaskError(LookupError):
    """No task of reasoning-gym has this name; ``names`` are those there are."""

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
    """Draw questions of a task and deal them to splits that share none.

    Every question is drawn with a seed of its own. Which split it belongs to is decided by its text alone,
    whatever the seed and the sizes: a question that was trained on is a held-out one in no other run either.

    Parameters
    ----------
    name : str
        Name of the task, e.g. ``"family_relationships"``.
    sizes : mapping of str to int or None
        Questions in ``"train"``, ``"validation"`` and ``"test"`` (none where it is left out); None for 1,000,
        100 and 200. Held-out questions are distinct; training questions repeat as often as the task repeats
        itself.
    seed : int
        Seed of the draw.
    options : mapping, optional
        Arguments of the task's generator, e.g. ``{"max_family_size": 6}``.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict of Dataset
        By split: ``prompt``, ``completion`` (a right answer) and ``entry`` (bytes that the verifier wants
        back).

    Raises
    ------
    UnknownTaskError
        If there is no such task.
    ValueError
        If the task refuses the options, or has too few distinct questions to fill a split at all.

    Warns
    -----
    UserWarning
        If a split is smaller than asked for, because the task has few distinct questions.
    """
    asked = {split: sizes.get(split, 0) for split in DEFAULT_SIZES}
    wanted = {split: DEFAULT_SIZES[split] if size is None else size for split, size in asked.items()}
    with (
        contextlib.closing(_questions(name, seed, dict(options or {}))) as questions,
        tqdm(total=sum(wanted.values()), desc=f"drawing {name}", unit="q", disable=not progress) as bar,
    ):
        dealt = _deal(_told(questions, name, sum(wanted.values()), quiet=progress), wanted, bar)
    _check_filled(name, dealt, wanted)
    return {split: _dataset(rows) for split, rows in dealt.items()}


def score_answers(
    name: str, options: Mapping[str, Any] | None, entries: Sequence[bytes], answers: Sequence[str]
) -> list[float]:
    """The scores that a task's own verifier gives.

    Some verifiers evaluate the answer as code: they run in a process of their own, without the environment, which
    starts no other and writes no file; an answer that hangs it or ends it scores 0.

    Parameters
    ----------
    name : str
        Name of the task.
    options : mapping, optional
        Arguments of the task's generator, as in `generate_splits`.
    entries : sequence of bytes
        The column ``entry`` of the questions.
    answers : sequence of str
        One answer a question.

    Returns
    -------
    list of float
        Between 0 and 1; 1 is right.
    """
    pending = list(zip(entries, answers, strict=True))
    scores: list[float] = []
    while len(scores) < len(pending):
        order = {
            "do": "score",
            "name": name,
            "options": dict(options or {}),
            "answers": pending[len(scores) :],
        }
        with _worker(order) as process:
            scores += _in_time(process)
        if len(scores) < len(pending):
            answer = pending[len(scores)][1]
            logger.warning("the verifier of %s hung or crashed on %.80r: scored 0", name, answer)
            scores.append(0.0)
    return scores


def owner(question: str) -> str:
    """The split that a question belongs to."""
    percent = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % 100
    for split, share in _PERCENT.items():
        percent -= share
        if percent < 0:
            return split
    raise AssertionError("the shares do not add up to 100")


def _deal(questions: Iterator[Question], wanted: Mapping[str, int], bar: tqdm) -> dict[str, list[Question]]:
    """Questions to the splits they belong to, until all are full or the task repeats itself too often."""
    dealt: dict[str, list[Question]] = {split: [] for split in wanted}
    held_out: set[str] = set()
    most = 100 + 5 * max(size * 100 // _PERCENT[split] for split, size in wanted.items())
    for _ in range(most):
        if all(len(dealt[split]) == size for split, size in wanted.items()):
            break
        question = next(questions)
        split = owner(question[0])
        if len(dealt[split]) == wanted[split] or question[0] in held_out:
            continue
        dealt[split].append(question)
        bar.update()
        if split != "train":
            held_out.add(question[0])
    return dealt


def _told(questions: Iterator[Question], name: str, total: int, quiet: bool) -> Iterator[Question]:
    """The questions; says once how slowly they come, where nobody watches a progress bar."""
    start = 0.0
    for count, question in enumerate(questions):
        start = start or time.monotonic()  # the first question also waits for the worker to start
        yield question
        elapsed = time.monotonic() - start
        if count and elapsed > _LONG and not quiet:
            logger.warning(
                "%s takes %.2g s a question, so drawing %d takes about %.0f s: "
                "smaller train=, validation= and test= are faster",
                name,
                elapsed / count,
                total,
                1.4 * total * elapsed / count,
            )
            quiet = True


def _check_filled(name: str, dealt: Mapping[str, Sequence[Question]], wanted: Mapping[str, int]) -> None:
    for split, size in wanted.items():
        found = len(dealt[split])
        if found == size:
            continue
        message = f"{name} has few distinct questions: {found} of the {size} asked for are left for {split}"
        if not found:
            raise ValueError(f"{message}; ask for {split}=0, or make the task harder with options=")
        warnings.warn(message, stacklevel=4)


def _dataset(rows: Sequence[Question]) -> Dataset:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return Dataset.from_dict(dict(zip(FEATURES, map(list, columns), strict=True)), features=FEATURES)


def _questions(name: str, seed: int, options: dict[str, Any]) -> Generator[Question]:
    """Questions without end, from a process that stops when this generator is closed."""
    # Question i is drawn with seed first + i: seeds far apart, else two seeds of ours would share questions.
    first = int.from_bytes(hashlib.sha256(f"tlora {seed}".encode()).digest()[:4])
    with _worker({"do": "draw", "name": name, "seed": first, "options": options}) as process:
        while True:
            try:
                yield _opened(name, pickle.load(process.stdout))  # type: ignore[arg-type]
            except EOFError as error:
                raise ValueError(
                    f"the generator of {name!r} broke off (exit status {process.wait()}): "
                    "try another seed or other options"
                ) from error


def _opened(name: str, message: tuple[str, Any]) -> Any:
    kind, content = message
    if kind == "unknown":
        raise UnknownTaskError(content)
    if kind == "refused":
        raise ValueError(f"reasoning-gym cannot draw {name!r}: {content}")
    return content


def _in_time(process: subprocess.Popen[bytes]) -> list[float]:
    """The scores that a worker sends before it ends, or until one is overdue."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        # The stream ends in the middle of a message where the worker is killed.
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                messages.put(pickle.load(process.stdout))  # type: ignore[arg-type]
        messages.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    scores = []
    try:
        begun = messages.get(timeout=_START)
        if begun is None:
            raise RuntimeError("reasoning-gym does not start in a process of its own: it ended")
        _opened("", begun)  # ready to score
        while (message := messages.get(timeout=_PATIENCE)) is not None:
            scores.append(_opened("", message))
    except queue.Empty:
        logger.debug("no score within %g s", _PATIENCE)
    finally:
        process.kill()
        reader.join()  # before the pipe that it reads from is closed
    return scores


@contextlib.contextmanager
def _worker(order: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """The child process at work on an order; it is ended with the block."""
    require("reasoning_gym", "tasks")
    process = subprocess.Popen(
        # -P: the folder of the script, which is ours, holds no modules for it. The hash seed fixes the order
        # of sets.
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # An answer that is evaluated finds no secrets of the user's.
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
