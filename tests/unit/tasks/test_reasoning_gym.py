"""Tasks of reasoning-gym: same seed, same questions; no question on both sides; the verifier decides."""

import itertools
import json
import pickle
import subprocess
import sys

import pytest
import reasoning_gym

import tlora
from tests.helpers.models import tiny_tokenizer
from tests.helpers.tokenizers import bytes_tokenizer
from tlora.tasks import reasoning_gym as module
from tlora.tasks.load import load_task, task_names
from tlora.tasks.reasoning_gym import assign_split, generate_splits, generator_names, score_answers
from tlora.tasks.splits import SPLITS

NAME = "family_relationships"
UNANSWERED = ["boxnet", "rush_hour"]
FEW = {"train": 30, "validation": 5, "test": 10}


@pytest.fixture(scope="module")
def drawn():
    return generate_splits(NAME, FEW)


@pytest.fixture(scope="module")
def other():
    """Another seed."""
    return generate_splits(NAME, FEW | {"train": 60}, seed=1)


def questions(splits):
    return {split: splits[split]["prompt"][:] for split in SPLITS}


def test_no_question_is_on_both_sides_in_any_run(drawn, other):
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for one, two in ((drawn, drawn), (drawn, other), (other, drawn)):
            assert not set(questions(one)[a]) & set(questions(two)[b])
    assert len(set(questions(drawn)["test"])) == FEW["test"]


def test_same_seed_same_questions_however_many_are_trained_on_and_another_seed_others(drawn, other):
    again = questions(generate_splits(NAME, FEW | {"train": 60}))
    assert again["test"] == questions(drawn)["test"]
    assert again["train"][:30] == questions(drawn)["train"]
    assert not set(questions(other)["test"]) & set(questions(drawn)["test"])


def test_each_question_has_a_seed_of_its_own():
    """Question i is drawn with seed first + i, over the border of what is drawn at once, too."""
    rows = generate_splits("gcd", {"train": 800})["train"]
    found = [
        (pickle.loads(entry)["metadata"], prompt) for entry, prompt in zip(rows["entry"], rows["prompt"], strict=True)
    ]
    indices = [metadata["source_index"] for metadata, _ in found]
    border = next(i for i in range(1, len(indices)) if indices[i] < indices[i - 1])
    assert indices[:border] == sorted(set(indices[:border]))
    assert indices[border:] == sorted(set(indices[border:]))
    # two may fall together by chance; a block drawn twice would repeat half of them
    assert len({prompt for _, prompt in found}) > 0.98 * len(found)


def test_questions_that_depend_on_the_order_of_sets_are_the_same_in_every_process(monkeypatch):
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.append(generate_splits("isomorphic_strings", {"train": 3})["train"]["prompt"][:])
    assert found[0] == found[1]


def test_most_questions_are_for_training():
    owners = [assign_split(f"question {i}") for i in range(20_000)]
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert owners.count(split) / len(owners) == pytest.approx(share, abs=0.015)  # five standard errors


def test_scores_are_the_verifiers_own(drawn):
    rows = drawn["test"]
    answers = [rows["completion"][0], "no relation", f"the {rows['completion'][2]}", *rows["completion"][3:]]
    dataset = reasoning_gym.create_dataset(NAME, seed=0, size=1)
    expected = [
        dataset.score_answer(answer, pickle.loads(entry)) for answer, entry in zip(answers, rows["entry"], strict=True)
    ]
    assert score_answers(NAME, None, rows["entry"][:], answers) == expected
    assert expected[0] == 1
    assert expected[1] < 1
    assert score_answers(NAME, None, [], []) == []


def test_tasks_without_an_answer_get_one_that_their_verifier_accepts():
    """All of them at once, as a mixture: the only task that has no questions of its own."""
    names = ["gcd", "graph_color", "propositional_logic", "rubiks_cube"]
    options = {"datasets": [{"name": name, "weight": 1.0, "config": {}} for name in names]}
    rows = generate_splits("composite", {"train": 50}, options=options)["train"]
    assert {pickle.loads(entry)["metadata"]["source_dataset"] for entry in rows["entry"]} == set(names)
    assert score_answers("composite", options, rows["entry"][:], rows["completion"][:]) == [1] * 50


def test_an_answer_that_ends_the_verifier_scores_nothing_and_the_others_as_ever(caplog):
    """This verifier evaluates the answer as code."""
    rows = generate_splits("string_insertion", {"train": 3})["train"]
    answers = [rows["completion"][0], "[exit()]", rows["completion"][2]]
    assert score_answers("string_insertion", None, rows["entry"][:], answers) == [1, 0, 1]
    assert "hung or crashed on '[exit()]'" in caplog.text


def test_an_answer_that_is_evaluated_sees_no_secret_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TLORA_SECRET", "hf_secret")
    entry, right = (generate_splits("spiral_matrix", {"test": 1})["test"][0][name] for name in ("entry", "completion"))
    numbers = [int(number) for number in right.split()]
    listed = "[" + ", ".join(map(str, numbers)) + "]"
    file = tmp_path / "written"
    answers = [
        f"{listed} if 'TLORA_SECRET' not in __import__('os').environ else []",
        f"[open({str(file)!r}, 'w').write('x')] and {listed}",
        f"[__import__('subprocess').Popen(['sleep', '9'])] and {listed}",
    ]
    assert score_answers("spiral_matrix", None, [entry] * 3, answers) == [0.1, 0, 0]  # 0.1 for a list
    assert not file.exists()


@pytest.mark.slow
def test_an_answer_that_hangs_the_verifier_scores_nothing(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 15)
    rows = generate_splits("string_insertion", {"train": 2})["train"]
    answers = ["[9**9**9**9]", rows["completion"][1]]
    assert score_answers("string_insertion", None, rows["entry"][:], answers) == [0, 1]


def test_an_answer_that_the_verifier_cannot_read_scores_nothing():
    rows = generate_splits("prime_factorization", {"train": 3})["train"]
    answers = ["no idea", "2 × ²", rows["completion"][2]]
    scores = score_answers("prime_factorization", None, rows["entry"][:], answers)
    assert scores[0] == scores[1] == 0
    assert scores[2] == 1


@pytest.mark.filterwarnings("ignore:tiny has few distinct questions")
def test_an_answer_that_is_partly_right_is_no_match(few_questions, monkeypatch):
    task = load_task("tiny", bytes_tokenizer(), train=4, validation=1, test=1)
    monkeypatch.setattr("tlora.tasks.load.score_answers", lambda *_: [1.0, 0.99, 0.01, 0.0])
    found = task.score(list(task.train), ["a"] * 4)
    assert found == {"exact_match": [1, 0, 0, 0], "score": [1, 0.99, 0.01, 0]}


def test_options_reach_the_generator():
    small = generate_splits(NAME, {"train": 10}, options={"max_family_size": 4})["train"]
    sizes = {pickle.loads(entry)["metadata"]["family_size"] for entry in small["entry"]}
    assert max(sizes) <= 4
    for options in ({"nonsense": 1}, {"min_family_size": -1}):
        with pytest.raises(ValueError, match=NAME):
            generate_splits(NAME, {"train": 1}, options=options)


@pytest.fixture
def few_questions(monkeypatch):
    """A task that repeats its 40 questions for ever, in a place of reasoning-gym's."""

    def repeated(*_):
        for i in itertools.count():
            yield f"question {i * 7 % 40}", "answer", b""

    monkeypatch.setattr(module, "_questions", repeated)


def test_a_task_with_few_questions_says_so(few_questions):
    with pytest.warns(UserWarning, match=r"tiny .*\d+ of 100 .*test"):
        rows = generate_splits("tiny", {"train": 100, "test": 100})
    assert len(rows["train"]) == 100
    assert len(rows["test"]) == sum(assign_split(f"question {i}") == "test" for i in range(40))
    assert len(set(rows["test"]["prompt"])) == len(rows["test"])
    assert {assign_split(prompt) for prompt in rows["train"]["prompt"]} == {"train"}


@pytest.mark.parametrize("name", UNANSWERED)
def test_tasks_without_an_answer_are_refused(name):
    with pytest.raises(ValueError, match=name):
        generate_splits(name, {"train": 1})


def test_a_split_that_no_question_is_for_is_refused(few_questions, monkeypatch):
    monkeypatch.setattr(module, "assign_split", lambda question: "train")
    with pytest.raises(ValueError, match="validation=0"):
        generate_splits("tiny", {"train": 10, "validation": 5})


def test_names():
    assert len(generator_names()) == 106
    assert {NAME, "rush_hour"} < set(generator_names())
    assert {"gsm8k", "imdb", NAME} < set(task_names())


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("famly_relations", "'family_relationships'"),
        ("Rotten_Tomatos", "'rotten_tomatoes'"),
        ("qqqqqqqq", "qqqqqqqq"),
    ],
)
def test_an_unknown_name_is_refused_with_close_ones(name, named):
    with pytest.raises(ValueError, match=named):
        load_task(name, bytes_tokenizer())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(reasoning_gym.factory.DATASETS) - {"composite", *UNANSWERED}))
def test_every_task_loads_and_its_answers_are_right(name):
    tokenizer = bytes_tokenizer("chatml")
    task = load_task(name, tokenizer, train=3, validation=1, test=1, max_length=30_000)
    assert [len(getattr(task, split)) for split in SPLITS] == [3, 1, 1]
    assert task.score(list(task.train), task.train["answer"][:])["exact_match"] == [1, 1, 1]


@pytest.mark.slow
def test_no_task_depends_on_the_process():
    """The same digest of all tasks under two hash seeds of the calling process."""
    code = (
        "import hashlib, json\nfrom tlora.tasks.reasoning_gym import generate_splits, generator_names\n"
        f"names = [n for n in generator_names() if n not in {['composite', *UNANSWERED]}]\n"
        "rows = {n: generate_splits(n, {'train': 2})['train'].remove_columns('entry').to_list() for n in names}\n"
        "print(json.dumps({n: hashlib.sha256(repr(r).encode()).hexdigest() for n, r in rows.items()}))"
    )
    one, other = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code], env={"PYTHONHASHSEED": s}, capture_output=True, text=True
            ).stdout
        )
        for s in ("1", "2")
    )
    assert one == other


def test_a_generated_task_goes_to_other_processes() -> None:
    task = tlora.load_task("chain_sum", tiny_tokenizer(), train=4, validation=0, test=2)
    rows = list(task.test)
    right = [row["answer"] for row in rows]
    assert pickle.loads(pickle.dumps(task)).score(rows, right) == task.score(rows, right)
    assert task.score(rows, right)["exact_match"] == [1.0, 1.0]
