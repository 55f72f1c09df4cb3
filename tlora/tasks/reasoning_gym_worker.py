"""The child process of `tlora.tasks.reasoning_gym`: the only place that imports reasoning-gym.

A script of its own, for three reasons: some of its tasks depend on the order of Python's sets, so that only a
fixed hash seed makes them reproducible; some of its verifiers evaluate the answer as code, which may hang or
exit; and some print.

It reads one pickled order from standard input and writes pickled messages to the standard output it was
given.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

Entry = dict[str, Any]

_REFUSED = ("os.fork", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.kill", "os.remove", "os.rename",
            "os.rmdir", "os.truncate", "shutil.", "subprocess.Popen", "socket.connect")  # fmt: skip

# Questions that a dataset is made for: some make them all at once. Question i has seed first + i in any block.
_BLOCK = 1000

# What verifiers raise on text that is not of their form. Anything worse ends the process, which the parent
# notices.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def graph_colour(entry: Entry) -> str:
    """The colouring that the generator found."""
    return json.dumps({str(vertex): colour for vertex, colour in entry["metadata"]["possible_answer"].items()})


def boxnet(entry: Entry) -> str:
    """A plan that takes one box after the other to a target of its colour, square by square."""
    state = entry["metadata"]["initial_state"]
    placed = [(item, tuple(map(float, square.split("_")))) for square, items in state.items() for item in items]
    targets = [pair for pair in placed if pair[0].startswith("target_")]
    plan: list[dict[str, str]] = []
    for box, square in placed:
        if box.startswith("box_"):
            target = next(pair for pair in targets if pair[0] == box.replace("box_", "target_"))
            targets.remove(target)
            plan += _carry(box, square, target[1])
    return json.dumps(plan)


def _carry(box: str, square: tuple[float, ...], target: tuple[float, ...]) -> Iterator[dict[str, str]]:
    (x, y), (goal_x, goal_y) = square, target
    while (x, y) != (goal_x, goal_y):
        agent = f"Agent[{x}, {y}]"
        if x != goal_x:
            x += 1 if goal_x > x else -1
        else:
            y += 1 if goal_y > y else -1
        yield {agent: f"move({box}, square[{x}, {y}])"}
    yield {f"Agent[{x}, {y}]": f"move({box}, {box.replace('box_', 'target_')})"}


Positions = tuple[int, ...]  # of the first cell of each car, in the order of their letters
SIDE = 6


def rush_hour(entry: Entry) -> str:
    """A shortest sequence of moves that brings the car A to the right edge (breadth-first search)."""
    cells: dict[str, list[int]] = {}
    for cell, letter in enumerate("".join(entry["question"].rpartition("Board:\n")[2].split())):
        cells.setdefault(letter, []).append(cell)
    walls = cells.pop("x", [])
    cells.pop(".")
    cars = [cells[letter] for letter in sorted(cells)]
    start = tuple(car[0] for car in cars)
    came: dict[Positions, tuple[Positions, str]] = {start: (start, "")}
    queue = [start]
    for state in queue:  # grows while it is walked through
        if (state[0] + cars[0][-1] - cars[0][0]) % SIDE == SIDE - 1:
            return _moves(came, state)
        for index, moved, move in _steps(cars, walls, state):
            following = (*state[:index], moved, *state[index + 1 :])
            if following not in came:
                came[following] = (state, move)
                queue.append(following)
    raise ValueError("this board has no solution")


def _steps(cars: list[list[int]], walls: list[int], state: Positions) -> Iterator[tuple[int, int, str]]:
    """Every move from a state: which car, its new position, the move in words."""
    covered = {
        index: [cell - car[0] + at for cell in car] for index, (car, at) in enumerate(zip(cars, state, strict=True))
    }
    taken = set(walls).union(*covered.values())
    for index, cells in covered.items():
        stride = cells[1] - cells[0]
        for end, sign in ((cells[-1], 1), (cells[0], -1)):
            cell, count = end + sign * stride, 1
            # A car that lies along a row stays in it; one along a column leaves the board at its ends.
            while cell in range(SIDE**2) and (stride != 1 or cell // SIDE == end // SIDE) and cell not in taken:
                yield index, state[index] + sign * count * stride, f"{chr(ord('A') + index)}{sign * count:+d}"
                cell, count = cell + sign * stride, count + 1


def _moves(came: dict[Positions, tuple[Positions, str]], state: Positions) -> str:
    moves = []
    while came[state][1]:
        state, move = came[state]
        moves.append(move)
    return " ".join(reversed(moves))


# The tasks whose questions have many answers and come without one: what is learnt then.
REFERENCES: dict[str, Callable[[Entry], str]] = {
    "boxnet": boxnet,
    "graph_color": graph_colour,
    "propositional_logic": lambda entry: entry["metadata"]["example_answer"],
    "rubiks_cube": lambda entry: entry["metadata"]["example_correct_answer"],
    "rush_hour": rush_hour,
}


def _dataset(name: str, seed: int, size: int, options: dict[str, Any]) -> Any:
    from reasoning_gym import create_dataset
    from reasoning_gym.composite import DatasetSpec

    if name == "composite" and "datasets" in options:  # plain values, as in a JSON file
        options = options | {"datasets": [DatasetSpec(**spec) for spec in options["datasets"]]}
    return create_dataset(name, seed=seed, size=size, **options)


def draw(name: str, seed: int, options: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Questions with a right answer and the pickled entry that the verifier wants; no end."""
    for start in itertools.count(step=_BLOCK):
        dataset = _dataset(name, seed + start, _BLOCK, options)
        yield from (_answered(dataset[index]) for index in range(_BLOCK))


def _answered(entry: Entry) -> tuple[str, str, bytes]:
    answer = entry["answer"]
    if answer is None:
        answer = REFERENCES[entry["metadata"]["source_dataset"]](entry)
    return entry["question"], str(answer), pickle.dumps(entry)


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
    """What no answer is to do when it is evaluated."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event.startswith(_REFUSED):
        raise PermissionError(f"{event} is not for answers")


def main() -> None:
    """Answer the order on standard input."""
    order = pickle.load(sys.stdin.buffer)
    with os.fdopen(os.dup(1), "wb", buffering=0) as messages:
        os.dup2(2, 1)  # what the tasks print is no message
        _answer(order, messages)


def _answer(order: dict[str, Any], messages: BinaryIO) -> None:
    from reasoning_gym.factory import DATASETS

    if order["name"] not in DATASETS:
        pickle.dump(("unknown", sorted(DATASETS)), messages)
        return
    work = draw if order.pop("do") == "draw" else score
    if work is score:
        pickle.dump(("ready", None), messages)
    try:
        for message in work(**order):
            pickle.dump(("done", message), messages)
    except (AssertionError, TypeError, ValueError) as error:
        pickle.dump(("refused", f"{error}" or repr(error)), messages)


if __name__ == "__main__":
    main()
