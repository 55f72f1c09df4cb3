"""Batches, and what a model is measured at, against loops over single samples without padding."""

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration

import tlora
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.padding import decoder
from tests.helpers.rows import pairs, single_losses
from tests.helpers.tokenizers import bytes_tokenizer, pieces_tokenizer
from tlora.resources.simulated_model import switch_checkpointing
from tlora.tasks.evaluation import decode_answer, generate, losses_of_samples
from tlora.tasks.load import load_task
from tlora.utils.progress import report_progress


@pytest.fixture(scope="module")
def bert():
    return tiny_model("bert", vocab_size=200, num_labels=3)


@pytest.mark.parametrize("size", [1, 3])
def test_the_loss_is_the_mean_over_all_labeled_tokens(task, llama, size):
    singles = single_losses(llama, task.test)
    expected = sum(total for total, _ in singles) / sum(count for _, count in singles)
    found = task.evaluate(llama, batch_size=size)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert list(found) == ["loss", "perplexity", "exact_match"]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_loss_of_a_sample_is_weighted_by_its_labels(kind, task, llama, seq2seq):
    task, model = seq2seq if kind == "seq2seq" else (task, llama)
    singles = single_losses(model, task.test, seq2seq=kind == "seq2seq")
    count = sum(count for _, count in singles)
    expected = [total * len(singles) / count for total, _ in singles]
    np.testing.assert_allclose(losses_of_samples(model, task, task.test, 3), expected, rtol=1e-4)


def test_loss_and_accuracy_of_a_classifier(encoded, bert):
    losses, right = [], []
    for row in encoded.test:
        with torch.no_grad():
            logits = bert(torch.tensor([row["input_ids"]])).logits[0].double()
        losses.append(-torch.log_softmax(logits, 0)[row["labels"]].item())
        right.append(int(logits.argmax()) == row["labels"])
    found = encoded.evaluate(bert, batch_size=3)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["accuracy"] == np.mean(right)
    assert (encoded.metric, encoded.kind, encoded.num_labels) == ("accuracy", "classification", 3)
    frame = encoded.predict(bert, limit=None)
    assert frame["accuracy"].tolist() == [float(each) for each in right]
    assert set(frame["answer"]) | set(frame["prediction"]) <= {"bad", "fine", "good"}


def test_an_adapted_model_is_evaluated_like_any_other(task, tokenizer):
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    plain = task.evaluate(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"], r=2, task_type="CAUSAL_LM"))
    assert task.evaluate(adapted) == pytest.approx(plain, rel=1e-5)  # B is zero
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    changed = task.evaluate(adapted)
    assert changed["loss"] != pytest.approx(plain["loss"], rel=1e-3)
    assert changed == pytest.approx(task.evaluate(adapted.merge_and_unload()), rel=1e-4)


def test_a_model_on_another_device_gives_the_same(task, encoded, tokenizer, device):
    for each, build in (
        (task, lambda: tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)),
        (encoded, lambda: tiny_model("bert", vocab_size=200, num_labels=3)),
    ):
        assert each.evaluate(build().to(device)) == pytest.approx(each.evaluate(build()), rel=1e-3)


def greedy(model, prompt, stops, most):
    """One token after the other, everything computed anew each time."""
    ids = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_are_those_of_each_prompt_alone(task, tokenizer, family):
    length = {"n_positions": 256} if family == "gpt2" else {"max_position_embeddings": 256}
    model = tiny_model(
        family, vocab_size=len(tokenizer), eos_token_id=None, pad_token_id=None, bos_token_id=None, **length
    )
    expected = [
        tokenizer.decode(
            greedy(model, row["input_ids"][: row["prompt_length"]], task.stop_ids, task.max_new_tokens),
            skip_special_tokens=True,
        )
        for row in task.test
    ]
    frame = task.predict(model, batch_size=3)
    assert frame["prediction"].tolist() == expected
    assert frame["answer"].tolist() == list(task.test["answer"])
    assert len(set(expected)) > 1


def test_an_encoder_of_absolute_positions_answers_each_prompt_as_alone(seq2seq):
    task, _ = seq2seq
    config = BartConfig(
        vocab_size=len(task.tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, init_std=1.0, forced_eos_token_id=None,
        bos_token_id=None, pad_token_id=task.pad_token_id, eos_token_id=task.tokenizer.eos_token_id,
        decoder_start_token_id=task.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config).eval()
    alone, together = (list(task.predict(model, batch_size=size)["prediction"]) for size in (1, 4))
    assert len(set(alone)) > 1
    assert together == alone


def test_an_encoder_decoder_answers_greedily_too(seq2seq):
    task, model = seq2seq
    expected = []
    for row in task.test:
        ids, written = torch.tensor([row["input_ids"]]), [model.config.decoder_start_token_id]
        while len(written) <= task.max_new_tokens and written[-1] != task.tokenizer.eos_token_id:
            with torch.no_grad():
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits
            written.append(int(logits[0, -1].argmax()))
        expected.append(task.tokenizer.decode(written[1:], skip_special_tokens=True))
    assert task.predict(model, batch_size=3)["prediction"].tolist() == expected


# What a model may be published with, each of which makes other answers of the greedy ones.
PUBLISHED = {
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 20,
    "suppress_tokens": list(range(40, 120)),
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_answers_are_greedy_whatever_the_model_was_published_with(task, tokenizer, name):
    def build(adapted):
        model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=2)
        return get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")) if adapted else model

    expected = task.predict(build(False))["prediction"].tolist()
    for adapted in (False, True):
        model = build(adapted)
        own = model.generation_config
        setattr(own, name, PUBLISHED[name])
        before = own.to_dict()
        assert task.predict(model)["prediction"].tolist() == expected
        assert model.generation_config is own
        assert own.to_dict() == before


def test_a_decoder_begins_as_its_model_says(seq2seq):
    task, _ = seq2seq
    model = tiny_model("t5", vocab_size=len(task.tokenizer), eos_token_id=task.tokenizer.eos_token_id)
    first = task.tokenizer("w")["input_ids"][0]
    plain = task.predict(model)["prediction"].tolist()
    assert not all(text.startswith("w") for text in plain)
    model.generation_config.min_length = 200
    assert task.predict(model)["prediction"].tolist() == plain
    model.generation_config.forced_bos_token_id = first  # a language, where a model writes several
    assert all(text.startswith("w") for text in task.predict(model)["prediction"])
    started = []
    model.decoder.register_forward_pre_hook(
        lambda _, __, given: started.append(given["input_ids"][0, 0].item()), with_kwargs=True
    )
    model.generation_config.decoder_start_token_id = 7
    task.predict(model)
    assert started[0] == 7


def test_an_answer_stops_at_its_end_token_and_is_no_longer_than_the_longest(task, tokenizer):
    assert task.stop_ids == (tokenizer.eos_token_id,)
    lengths = [len(row["labels"]) - row["prompt_length"] for s in (task.train, task.validation, task.test) for row in s]
    assert task.max_new_tokens == max(lengths)

    word = tokenizer("w")["input_ids"][0]
    for token, expected in ((tokenizer.eos_token_id, ""), (word, "w" * task.max_new_tokens)):
        model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=None)
        always = torch.nn.functional.one_hot(torch.tensor(token), len(tokenizer)).float()
        calls = []
        model.lm_head.register_forward_hook(lambda _, __, out, *, a=always, c=calls: c.append(1) or a.expand_as(out))
        assert task.predict(model)["prediction"].tolist() == [expected] * len(task.test)
        assert len(calls) == max(1, len(expected))  # no step after all answers have ended


def test_exact_match_is_what_it_is_by_hand(task, llama, monkeypatch):
    truth = task.test["answer"][:]
    given_answers = [truth[0], f" {truth[1]}\n", truth[2] + ".", truth[3].swapcase()]
    monkeypatch.setattr("tlora.tasks.evaluation.generate", lambda *_: given_answers)
    assert task.evaluate(llama)["exact_match"] == 2 / 4
    assert task.predict(llama)["exact_match"].tolist() == [1, 1, 0, 0]


def test_text_after_a_word_that_begins_with_a_space_keeps_its_spaces():
    """Tokenizers like Llama 2's drop the space before the first word of a text: an answer is not the first."""
    tokenizer = pieces_tokenizer()
    data = Dataset.from_dict({"prompt": ["def f():\n"], "completion": ["    return word"]})
    task = load_task(data, tokenizer, validation=0, test=0)
    row = task.train[0]
    prompt, written = row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] :]
    assert decode_answer(task, {"input_ids": prompt, "prompt_length": len(prompt)}, written) == "    return word"


def state_of(model):
    return (
        {
            name: (module.training, getattr(module, "gradient_checkpointing", None))
            for name, module in model.named_modules()
        },
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        model.config.to_dict(),
        model.generation_config.to_dict(),
    )


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(task, tokenizer, broken, monkeypatch):
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    model.train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    model.model.embed_tokens.weight.requires_grad_(False)
    switch_checkpointing(model, "enable")
    before, weights = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    if broken:
        monkeypatch.setattr(type(model), "generate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            task.evaluate(model)
    else:
        task.evaluate(model)
    assert torch.is_grad_enabled()
    assert state_of(model) == before
    assert any(checkpointed for _, checkpointed in before[0].values())
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_dropout_is_off_while_a_model_is_evaluated(encoded):
    model = tiny_model("bert", vocab_size=200, num_labels=3, hidden_dropout_prob=0.5)
    expected = encoded.evaluate(model)
    assert encoded.evaluate(model.train()) == expected
    assert model.training


def test_the_wrong_model_is_refused(task, encoded, tokenizer):
    with pytest.raises(ValueError, match="num_labels=3"):
        encoded.evaluate(tiny_model("bert", vocab_size=200, num_labels=2))
    with pytest.raises(ValueError, match="64 embeddings"):
        task.evaluate(tiny_model("llama", max_position_embeddings=256))
    with pytest.raises(ValueError, match="BertForSequenceClassification"):
        task.predict(tiny_model("bert", vocab_size=len(tokenizer)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"split": "dev"}, "split"), ({"limit": 0}, "limit=0"), ({"batch_size": 0}, "batch_size=0"), ({}, "test split")],
)
def test_bad_arguments_are_refused(llama, tokenizer, arguments, named):
    task = load_task(pairs(), tokenizer, test=0 if named == "test split" else None)
    with pytest.raises(ValueError, match=named):
        task.evaluate(llama, **arguments)


def test_an_answer_near_the_models_limit_has_the_room_that_it_has_alone(llama):
    """The model reads 64 tokens: long prompts leave less to write, and take nothing from short ones beside them."""
    tokenizer = bytes_tokenizer("chatml")
    tokenizer.model_max_length = 64
    rows = [{"prompt": "ab" * (1 + 3 * (n % 6)), "completion": "x" * 30} for n in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = load_task(Dataset.from_list(rows), tokenizer, train=0, validation=0, test=12)
    alone, together = (generate(llama, task, task.test, size, False) for size in (1, 5))
    assert alone == together
    assert len({len(answer) for answer in alone}) > 1


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{4 + (start + 7 * n) % 60}" for n in range(count))


def asked(prompt: int, answer: int = 2, rows: int = 12) -> Dataset:
    return Dataset.from_list([{"prompt": words(prompt, n), "completion": words(answer, n)} for n in range(rows)])


def test_answers_end_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest prompt and the longest answer are of different samples, and together longer than the model."""
    rows = [*asked(50, 2, 6), *asked(4, 40, 6)]
    task = tlora.load_task(Dataset.from_list(rows), tiny_tokenizer(), metric="exact_match")
    assert max(map(len, task.train["input_ids"][:])) < 64 < 50 + task.max_new_tokens
    model, ends = tiny_model("gpt2"), []
    write = model.generate

    def noted(**given: Any) -> Any:
        ends.append(given["input_ids"].shape[1] + given["generation_config"].max_new_tokens)
        return write(**given)

    monkeypatch.setattr(model, "generate", noted)
    heard: list[str] = []
    with report_progress(lambda words, done, total: heard.append(words)):
        generate(model, task, task.train, batch_size=4, progress=False)
    assert max(ends) == 64
    assert re.fullmatch(r"answers, token \d+ of at most \d+", heard[-1])


def test_a_classifier_is_evaluated_on_texts_whatever_pads_them() -> None:
    words = [" ".join(f"w{5 + (7 * n + 3 * i) % 40}" for i in range(2 + n % 6)) for n in range(60)]
    rows = Dataset.from_list([{"text": text, "label": n % 2} for n, text in enumerate(words)])
    task = tlora.load_task(rows, tiny_tokenizer())
    alone, together = (task.evaluate(decoder("llama"), batch_size=size)["loss"] for size in (1, 16))
    assert together == pytest.approx(alone, rel=1e-5)
