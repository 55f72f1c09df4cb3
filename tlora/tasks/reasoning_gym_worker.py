"""The child process of `tlora.tasks.reasoning_gym`: the only place that imports reasoning-gym.

A separate script for three reasons: some tasks depend on the order of Python's sets, so only a fixed hash seed makes
them reproducible; some verifiers evaluate the answer as code, which may hang or exit; and some print.

It reads one pickled order from standard input and writes pickled messages to standard output.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import sys
from collections.abc import Iterator
from typing import Any

# Metadata that holds a right answer of a question with many.
_EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")

_REFUSED = ("os.fork", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.kill", "os.remove", "os.rename",
            "os.rmdir", "os.truncate", "shutil.", "subprocess.Popen", "socket.connect")  # fmt: skip

# Questions per dataset: some generate them all at once. Question i has seed first + i in any block.
_BLOCK = 1000

# Exceptions of verifiers that cannot parse an answer. Anything worse ends the process, which the parent notices.
_UNREADABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, OSError, RuntimeError,
               SyntaxError, TypeError, ValueError)  # fmt: skip


def _dataset(name: str, seed: int, size: int, options: dict[str, Any]) -> Any:
    from reasoning_gym import create_dataset
    from reasoning_gym.composite import DatasetSpec

    if name == "composite" and "datasets" in options:  # plain values, as in a JSON file
        options = options | {"datasets": [DatasetSpec(**spec) for spec in options["datasets"]]}
    return create_dataset(name, seed=seed, size=size, **options)


def draw(name: str, seed: int, options: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Generate endless questions, each with a right answer and the pickled entry for the verifier."""
    for start in itertools.count(step=_BLOCK):
        dataset = _dataset(name, seed + start, _BLOCK, options)
        yield from (_with_answer(dataset[index]) for index in range(_BLOCK))


def _with_answer(entry: dict[str, Any]) -> tuple[str, str, bytes]:
    metadata = entry["metadata"]
    candidates = [entry["answer"], *(metadata.get(name) for name in _EXAMPLES)]
    answer = next((each for each in candidates if each is not None), None)
    if answer is None:
        raise ValueError(f"the questions of {metadata['source_dataset']} come without an answer to learn")
    return entry["question"], json.dumps(answer) if isinstance(answer, dict) else str(answer), pickle.dumps(entry)


def score(name: str, options: dict[str, Any], answers: list[tuple[bytes, str]]) -> Iterator[float]:
    """The verifier's score of each answer, between 0 and 1."""
    dataset = _dataset(name, 0, 1, options)
    sys.addaudithook(_refuse)
    for entry, answer in answers:
        try:
            yield float(dataset.score_answer(answer, pickle.loads(entry)))
        except _UNREADABLE:
            yield 0.0


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook that stops evaluated answers from writing files and starting processes."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event.startswith(_REFUSED):
        raise PermissionError(f"{event} is not for answers")


def main() -> None:
    """Answer the order on standard input."""
    order = pickle.load(sys.stdin.buffer)
    messages = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # prints of the tasks go to standard error

    def send(kind: str, content: Any) -> None:
        pickle.dump((kind, content), messages)

    from reasoning_gym.factory import DATASETS

    if order["name"] not in DATASETS:
        return send("unknown", sorted(DATASETS))
    work = draw if order.pop("do") == "draw" else score
    if work is score:
        send("ready", None)
    try:
        for message in work(**order):
            send("done", message)
    except (AssertionError, TypeError, ValueError) as error:
        send("refused", f"{error}" or repr(error))


if __name__ == "__main__":
    main()
