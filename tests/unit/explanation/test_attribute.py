"""Contributions against central differences and exact differences, and switches against models without the module."""

import copy
import dataclasses
import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

import tlora
from tests.helpers.adapted import condition
from tests.helpers.exact_adapters import TARGETS, adapter, layers, task, values
from tests.helpers.models import SPECIAL, tiny_model
from tests.helpers.quantized import needs_bitsandbytes
from tests.helpers.tokenizers import letters_tokenizer
from tlora.explanation.attribution import Attribution


def without(model: PeftModel, names: list[str]) -> Any:
    """The model merged without the updates of some modules."""
    model = copy.deepcopy(model)
    for name in names:
        layer = layers(model)[name]
        part = (
            layer.lora_embedding_B["default"] if "default" in layer.lora_embedding_B else layer.lora_B["default"].weight
        )
        part.data.zero_()
    return model.merge_and_unload()


def explain(family: str, **options: Any) -> tuple[PeftModel, tlora.Task, Attribution]:
    model, rows = adapter(family), task(family)
    return model, rows, tlora.attribute(model, rows, progress=False, answers=False, **options)


@pytest.mark.parametrize("family", TARGETS)
def test_contributions_add_up_to_the_exact_difference(family):
    model, rows, attribution = explain(family, points=64)
    assert attribution.names == list(layers(model))
    assert attribution.ranks == {name: layer.r["default"] for name, layer in layers(model).items()}
    for row, sample in zip(rows.test, attribution.samples, strict=True):
        np.testing.assert_allclose(sample.adapter, values(model, rows, row), rtol=1e-9, atol=1e-10)
        with model.disable_adapter():
            np.testing.assert_allclose(sample.base, values(model, rows, row), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(sample.start, values(without(model, attribution.names), rows, row), atol=1e-10)
        assert (sample.start != sample.base).any() == (family == "bert")
        assert sample.rise.abs().max() > 0.01
        assert sample.gaps.abs().max() < 1e-8
        directions = torch.stack([each.sum(1) for each in sample.by_direction.values()], 1)
        torch.testing.assert_close(directions.double(), sample.by_module[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(sample.by_token_read.double().sum(2).T, sample.by_module[0], rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("family", TARGETS)
def test_contributions_are_integrals_of_central_differences(family):
    """The scale of a module, of one direction, or of one token that is read is moved a little by a hook."""
    model, rows, attribution = explain(family, points=4, limit=1)
    (row,), (sample,) = rows.rows("test", 1), attribution.samples
    nodes, weights = np.polynomial.legendre.leggauss(sample.points)
    linear = [name for name, layer in layers(model).items() if "default" in layer.lora_A]
    changed, step = copy.deepcopy(model), 1e-5
    scalings = {name: layer.scaling["default"] for name, layer in layers(changed).items()}
    factors: dict[str, Any] = {}
    for name in linear:
        hook = lambda module, args, z, name=name: z * factors[name](z)  # noqa: E731
        layers(changed)[name].lora_A["default"].register_forward_hook(hook)

    def integral(moved: str, direction: Any = slice(None), token: Any = slice(None)) -> np.ndarray:
        def factor(z: torch.Tensor, t: float, step: float) -> torch.Tensor:
            filled = torch.full_like(z, t)
            filled[:, token, direction] += step
            return filled

        total = np.zeros_like(sample.base.numpy())
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            for sign in (1, -1):
                for name, layer in layers(changed).items():
                    moves = sign * step * (name == moved)
                    factors[name] = partial(factor, t=t, step=moves)
                    if name not in linear:  # an embedding, which has no hook
                        layer.scaling["default"] = scalings[name] * (t + moves)
                total += weight * sign / (2 * step) * values(changed, rows, row)
        return total

    for name in {linear[0], linear[-1], attribution.names[0]}:
        place = attribution.names.index(name)
        np.testing.assert_allclose(integral(name), sample.by_module[:, :, place], rtol=1e-4, atol=1e-6)
    place = attribution.names.index(linear[0])
    np.testing.assert_allclose(
        integral(linear[0], direction=1)[0], sample.by_direction[linear[0]][:, 1], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(integral(linear[0], token=1)[0], sample.by_token_read[place, :, 1], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("family", TARGETS)
def test_switching_off_is_the_model_without_the_updates(family):
    model, rows, attribution = explain(family, points=4, limit=2, switch_off=["layers", "projections"])
    assert {len(names) for names in attribution.switches.values()} > {1}
    costs = attribution.costs().set_index("left_out")
    for label, names in attribution.switches.items():
        changed = without(model, names)
        for row, sample in zip(rows.rows("test", 2), attribution.samples, strict=True):
            np.testing.assert_allclose(sample.switched[label], values(changed, rows, row), rtol=1e-8, atol=1e-9)
        lost = [float((s.adapter - s.switched[label])[0].sum()) for s in attribution.samples]
        assert costs.loc[label, "cost"] == pytest.approx(np.mean(lost))


BY_ROW = {
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "query_key_value"),  # alibi
    "XGLM": ({"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, "q_proj"),  # its mask
    "TrOCR": (
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
        | {"cross_attention_hidden_size": 32},
        "q_proj",
    ),
}
"""Families whose blocks read more by row than hidden states, so that rows cannot join a pass at a block."""


@pytest.mark.parametrize("family", BY_ROW)
def test_blocks_that_read_more_by_row_than_hidden_states(family):
    sizes, projection = BY_ROW[family]
    config = getattr(transformers, f"{family}Config")(vocab_size=64, **SPECIAL, **sizes)
    torch.manual_seed(0)
    base = getattr(transformers, f"{family}ForCausalLM")(config)
    lora = LoraConfig(r=2, target_modules=[projection], init_lora_weights=False)
    model, rows = get_peft_model(base, lora), task("llama")
    attribution = tlora.attribute(model, rows, points=4, limit=1, switch_off="layers", answers=False, progress=False)
    (row,), (sample,) = rows.rows("test", 1), attribution.samples
    for label, names in attribution.switches.items():
        np.testing.assert_allclose(
            sample.switched[label], values(without(model, names), rows, row), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_cut_module_is_what_compress_makes_of_it(calibrated, tmp_path):
    model = adapter("llama", target_modules=["q_proj", "down_proj"]).float()
    rows, name = task("llama"), "model.layers.1.mlp.down_proj"
    calibration = tlora.calibrate(tiny_model("llama"), [rows.collate(list(rows.test))], progress=False)
    options: dict[str, Any] = {"calibration": calibration} if calibrated else {}
    parts = [(name, 2), ("1.mlp.down_proj", 0), (name, 9)]
    attribution = tlora.attribute(model, rows, points=4, switch_off=parts, answers=False, progress=False, **options)
    assert set(attribution.switches) >= {f"{name} rank {rank}" for rank in (2, 0, 9)}
    smaller = tlora.compress(model, rank={name: 2}, **options).save_adapter(tmp_path / "smaller")
    cut = tlora.load_adapter(smaller, tiny_model("llama"))
    for row, sample in zip(rows.test, attribution.samples, strict=True):
        np.testing.assert_allclose(sample.switched[f"{name} rank 2"], values(cut, rows, row), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sample.switched[f"{name} rank 9"], sample.adapter, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sample.switched[f"{name} rank 0"], sample.switched[name], rtol=1e-5, atol=1e-6)


def test_what_a_trained_head_adds_is_said():
    model, rows, attribution = explain("bert")
    with model.disable_adapter():
        base = [values(model, rows, row) for row in rows.test]
    headed = without(model, attribution.names)
    added = np.mean(
        [(values(headed, rows, row) - of_base)[0].sum() for row, of_base in zip(rows.test, base, strict=True)]
    )
    assert attribution.head == pytest.approx(added, abs=1e-9)
    assert f"head and biases added {added:+.2f} nats" in attribution.sentence
    whole = attribution.to_frame()["contribution"].sum() + attribution.head
    assert whole == pytest.approx(attribution.rise, abs=0.02 * abs(attribution.rise))


def test_contributions_that_do_not_add_up_are_said():
    model, rows = adapter("llama"), task("llama")
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data *= 1e6  # as after a training that diverged
    attribution = tlora.attribute(model, rows, limit=1, answers=False, progress=False)
    missed = abs(attribution.contributions().sum() - attribution.rise) / abs(attribution.rise)
    assert missed > 0.05
    assert "do not add up" in attribution.sentence
    assert "do not add up" not in explain("llama", limit=1)[2].sentence


def test_points_are_doubled_until_the_gap_is_small():
    model = adapter("t5", tiny_model("t5", tie_word_embeddings=False))  # its ReLU has kinks
    assert model.config.feed_forward_proj == "relu"
    rows = task("t5")
    coarse, fine = (tlora.attribute(model, rows, points=n, limit=1, answers=False, progress=False) for n in (1, 64))
    assert fine.gap < 1e-3
    assert coarse.gap < 0.02
    assert max(sample.points for sample in coarse.samples) > 1


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantized_base(tmp_path):
    tiny_model("llama", hidden_size=128, intermediate_size=192).save_pretrained(tmp_path)
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    rows = task("llama")
    model = get_peft_model(base, config).eval()
    attribution = tlora.attribute(model, rows, switch_off="modules", answers=False, progress=False)
    assert attribution.gap < 0.02
    for row, sample in zip(rows.test, attribution.samples, strict=True):
        np.testing.assert_allclose(sample.adapter, values(model, rows, row), rtol=0.05, atol=0.05)


def test_which_tokens_changed_and_the_greedy_answers():
    model, rows = adapter("llama"), task("llama")
    attribution = tlora.attribute(model, rows, points=4, progress=False)
    answers = attribution.answers()
    assert answers["adapter"].tolist() == rows.predict(model)["prediction"].tolist()
    with model.disable_adapter():
        assert answers["base"].tolist() == rows.predict(model)["prediction"].tolist()
    assert answers["adapter_match"].tolist() == rows.predict(model)["exact_match"].tolist()
    tokens = attribution.tokens()
    for number, row in enumerate(rows.test):
        logits = []
        batch = rows.collate([row])
        inputs = {"input_ids": batch["input_ids"]}
        places = [n for n, label in enumerate(row["labels"]) if label != -100]
        with torch.no_grad():
            logits.append(model.eval()(**inputs).logits[0, [n - 1 for n in places]])
            with model.disable_adapter():
                logits.insert(0, model(**inputs).logits[0, [n - 1 for n in places]])
        part = tokens[tokens["sample"] == number].reset_index(drop=True)
        assert part["position"].tolist() == places
        for k, label in enumerate(row["labels"][n] for n in places):
            orders = [each[k].argsort(descending=True).tolist() for each in logits]
            assert part.loc[k, ["base_rank", "adapter_rank"]].tolist() == [1 + order.index(label) for order in orders]
            shift = orders[0].index(orders[1][0])
            assert part.loc[k, "change"] == ("same" if shift == 0 else "within three" if shift < 3 else "beyond")
            assert part.loc[k, "adapter_choice"].strip() == rows.tokenizer.decode([orders[1][0]]).strip()
    assert len(set(tokens["change"])) > 1


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_a_request_without_a_task(family):
    model, rows = adapter(family), task(family)
    text = "w4 w5 w6"
    said = tlora.attribute(model, text, tokenizer=rows.tokenizer, points=4, progress=False)
    (sample,) = said.samples
    assert sample.prompt == text
    assert sample.generated[1].startswith(sample.answer)
    assert (sample.ranks[1] == 1).all()  # greedy
    if family != "bert":
        assert all(
            change == "same" for change in [sample.choices[1][0] == sample.tokens[sample.positions[0]] and "same"]
        )
    other = {"bert": "LABEL_0"}.get(family, "w9 w8")
    given = tlora.attribute(model, text, other, tokenizer=rows.tokenizer, points=4, answers=False, progress=False)
    assert given.samples[0].answer == other
    assert given.answers().shape[0] == 1


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_tokens_that_the_model_wrote_are_explained(family):
    """Of letters and pairs of letters; the tokenizer never reads two letters in a row as two tokens."""
    model, tokenizer = adapter(family), letters_tokenizer(end=1 if family == "t5" else 2)
    said = tlora.attribute(model, "abc", tokenizer=tokenizer, points=2, progress=False)
    (sample,) = said.samples
    inputs = {"input_ids": torch.tensor([tokenizer("abc")["input_ids"]])}
    with torch.no_grad():
        greedy = model.eval().generate(**inputs, do_sample=False, max_new_tokens=64, min_new_tokens=1)[0].tolist()
    written = greedy[1:] if family == "t5" else greedy[inputs["input_ids"].shape[1] :]
    assert sample.ids == written
    assert (sample.ranks[1] == 1).all()
    assert tokenizer(sample.answer, add_special_tokens=False)["input_ids"] != [n for n in written if n > 3]
    assert sample.answer == sample.generated[1] == tokenizer.decode(written, skip_special_tokens=True)


def moved(attribution: Attribution, by: float) -> Attribution:
    """As if leaving the largest module out cost this much."""
    (name,) = attribution.largest(1)["module"]
    samples = []
    for sample in attribution.samples:
        without = sample.adapter - by / sample.adapter.shape[1]
        samples.append(dataclasses.replace(sample, switched=sample.switched | {name: without}))
    return dataclasses.replace(attribution, samples=samples)


def test_the_sentence_gives_the_cost_and_says_nothing_of_the_other_modules():
    """A cost below the contribution may be compensation or a probability near 1: the sentence cannot tell which."""
    _, _, attribution = explain("llama", points=4)
    for cost in (0.25, 2.0):
        assert f"leaving it out alone costs {cost:.2f}. In log-odds" in moved(attribution, cost).sentence
    assert "costs -0.16, so the answer is likelier that way. In log-odds" in moved(attribution, -0.16).sentence


def test_an_answer_that_every_module_made_less_likely_is_said_to_have_lost():
    _, _, attribution = explain("llama", points=4)
    samples = [
        dataclasses.replace(one, by_module=-one.by_module.abs(), adapter=one.base - one.rise.abs())
        for one in attribution.samples
    ]
    worse = dataclasses.replace(attribution, samples=samples)
    (top,), lost = -worse.largest(1)["contribution"], -worse.rise
    assert min(top, lost) > 0
    assert f"took away {top:.2f} of the {lost:.2f} nats that the answer lost, mean of " in worse.sentence


@pytest.mark.parametrize("layers", [[np.int64(1)], np.array([1])])
def test_a_layer_may_be_a_number_of_numpy(layers):
    _, _, attribution = explain("llama", points=4, limit=1, switch_off=layers)
    assert "layer 1" in attribution.switches


def test_a_b_of_zeros_costs_nothing():
    """Every module contributed as much as any other, and only ten are left out."""
    model = adapter("llama", tiny_model("llama", num_hidden_layers=16), target_modules=["q_proj", "v_proj"])
    for layer in layers(model).values():
        layer.lora_B["default"].weight.data.zero_()
    attribution = tlora.attribute(model, task("llama"), limit=1, answers=False, progress=False)
    assert len(attribution.names) > len(attribution.switches)
    assert not attribution.largest()["cost"].isna().any()
    assert "contributed 0.00 of 0.00 nats; leaving it out alone costs 0.00. " in attribution.sentence


def test_sums_are_sums():
    _, _, attribution = explain("bert", points=4, switch_off="layers")
    frame = attribution.to_frame()
    for by in ("layer", "projection"):
        sums = attribution.sums(by).set_index(by)
        labels = frame["projection"] if by == "projection" else "layer " + frame["layer"].astype(str)
        for label, part in frame.groupby(labels):
            assert sums.loc[label, "contribution"] == pytest.approx(part["contribution"].sum())
        assert sums["contribution"].sum() == pytest.approx(attribution.rise, rel=0.02)
    assert not attribution.sums("layer").iloc[:-1]["cost"].isna().any()
    name = attribution.names[0]
    assert attribution.by_direction(name)["contribution"].sum() == pytest.approx(frame.loc[0, "contribution"], rel=1e-3)
    read = attribution.from_tokens(sample=1)
    assert read["token"].tolist() == attribution.samples[1].tokens
    assert read["contribution"].sum() == pytest.approx(float(attribution.samples[1].by_module[0].sum()), rel=0.01)


def test_the_model_is_left_as_it_was():
    model = adapter("bert").train()
    before, parameters = condition(model), copy.deepcopy(model.state_dict())
    tlora.attribute(model, task("bert"), points=4, switch_off="modules", progress=False)
    assert condition(model) == before
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())


def peft_model(**config: Any) -> PeftModel:
    return get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], **config))


def merged() -> PeftModel:
    model = peft_model()
    model.merge_adapter()
    return model


REFUSED = {
    "IA3": (lambda: get_peft_model(tiny_model("llama"), IA3Config(task_type="CAUSAL_LM")), {}, "LoRA"),
    "DoRA": (lambda: peft_model(use_dora=True), {}, "use_dora"),
    "PiSSA": (lambda: peft_model(init_lora_weights="pissa"), {}, "init_lora_weights"),
    "merged": (merged, {}, "unmerge_adapter"),
    "a module that is not there": (lambda: adapter("llama"), {"switch_off": ["o_proj"]}, "o_proj"),
    "several modules": (lambda: adapter("llama"), {"switch_off": [("q_proj", 2)]}, "q_proj"),
    "points": (lambda: adapter("llama"), {"points": 0}, "points"),
    "a causal task on an encoder-decoder": (lambda: adapter("t5"), {}, "seq2seq"),
    "a causal task on a classifier": (lambda: adapter("bert"), {}, "classification"),
    "split": (lambda: adapter("llama"), {"split": "rest"}, "rest"),
    "a fine-tune of another model": (lambda: adapter("llama"), {"tuned": tiny_model("qwen2")}, "tuned"),
    "an answer of one's own": (lambda: adapter("llama"), {"answer": "w9"}, "answer='w9'"),
}


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_what_a_full_fine_tune_adds_beyond_its_adapter_is_a_row(family):
    model, rows = adapter(family), task(family)
    tuned = copy.deepcopy(model).merge_and_unload()
    with torch.no_grad():
        tuned.get_input_embeddings().weight += 0.1 * torch.randn(
            tuned.get_input_embeddings().weight.shape, generator=torch.Generator().manual_seed(1)
        )
    tuned.train()
    attribution = tlora.attribute(model, rows, tuned=tuned, points=64, answers=False, progress=False)
    assert tuned.training
    beyond = []
    for row, sample in zip(rows.test, attribution.samples, strict=True):
        expected = values(tuned, rows, row)
        np.testing.assert_allclose(sample.tuned, expected, rtol=1e-9, atol=1e-10)
        beyond.append((expected - values(model, rows, row))[0].sum())
    assert attribution.rest == pytest.approx(np.mean(beyond))
    sums = attribution.sums("layer")
    assert sums["layer"].iloc[-1] == "not in the adapter"
    assert sums["contribution"].iloc[-1] == pytest.approx(np.mean(beyond))
    whole = np.mean([float((sample.tuned - sample.base)[0].sum()) for sample in attribution.samples])
    assert sums["contribution"].sum() == pytest.approx(whole, abs=1e-8)
    assert "not in the adapter" in attribution.sentence


def test_an_embedding_that_is_tied_to_the_head_is_taken_apart():
    """PEFT gives the head A and B of the embedding, transposed."""
    base, rows = tiny_model("llama", tie_word_embeddings=True).double(), task("llama")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)).eval()
    layer = model.get_base_model().model.embed_tokens
    for factor in (layer.lora_embedding_A, layer.lora_embedding_B):
        torch.nn.init.normal_(factor["default"], std=0.1)
    attribution = tlora.attribute(model, rows, points=64, limit=2, answers=False, progress=False)
    assert attribution.names == ["model.embed_tokens", "lm_head"]
    for row, sample in zip(rows.rows("test", 2), attribution.samples, strict=True):
        np.testing.assert_allclose(sample.adapter, values(model, rows, row), rtol=1e-9, atol=1e-10)
        assert sample.rise.abs().max() > 0.01
        assert sample.gaps.abs().max() < 1e-5 * sample.rise.abs().max()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_attributed_is_refused(case):
    model, options, named = REFUSED[case]
    with pytest.raises(ValueError, match=named):
        tlora.attribute(model(), task("llama"), progress=False, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, rows: tlora.attribute(model, rows, progress=False),
        lambda model, rows: tlora.side_effects(model, {"mine": rows}, progress=False),
        lambda model, rows: tlora.measure_scales(model, rows, {"mine": rows}, split="test", progress=False),
    ],
    ids=["attribute", "side_effects", "measure_scales"],
)
def test_an_adapter_that_is_switched_off_is_refused(call):
    model, rows = adapter("llama"), task("llama")
    with model.disable_adapter(), pytest.raises(ValueError, match="disable_adapter"):
        call(model, rows)
    call(model, rows)


def test_a_request_needs_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer="):
        tlora.attribute(adapter("llama"), "w4")


def test_intervals_are_over_samples():
    stats = pytest.importorskip("scipy.stats")
    _, _, attribution = explain("llama", points=4)
    values = attribution.contributions()
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(0), stats.sem(values))
    frame = attribution.to_frame()
    np.testing.assert_allclose(frame["low"], low)
    np.testing.assert_allclose(frame["high"], high)
    assert list(itertools.chain(frame["contribution"])) == pytest.approx(values.mean(0))
