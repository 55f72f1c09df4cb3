"""A model and a trainer of one's own: its loader is calibrated on, and it trains what was decided."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

import tlora
from tests.helpers.adapted import check_layers
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.pages import DOCS, ROOT, blocks, execute, run
from tests.helpers.trainers import THEIR_WARNINGS, by_hand, losses, settings
from tlora.calibration.calibration import Calibration

pytestmark = [THEIR_WARNINGS, pytest.mark.rest]
PAGE = DOCS / "howto" / "own_trainer.md"
PAIRS = [(f"w{4 + n} w9" + " w5 w6" * (n % 3), f" w{10 + n} w7" + " w8" * (n % 4)) for n in range(8)]
ROWS = Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS])
TURNS = Dataset.from_list(
    [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion.strip()}]}
        for prompt, completion in PAIRS
    ]
)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' </s>' }}{% endgeneration %}"
    "{% else %}{{ m.content + ' ' }}{% endif %}{% endfor %}"
)
MANNERS: dict[str, dict[str, Any]] = {
    "completions": {},
    "the assistant's turns": {"assistant_only_loss": True},
    "without padding": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "max_length": 24},
}


def trainer_of(model: Any, folder: Path, manner: str = "completions", **more: Any) -> SFTTrainer:
    tokenizer, rows = tiny_tokenizer(), ROWS
    if MANNERS[manner].get("assistant_only_loss"):
        tokenizer.chat_template, rows = TEMPLATE, TURNS
    peft_config = more.pop("peft_config", None)
    arguments = SFTConfig(**settings(folder, per_device_train_batch_size=3, **MANNERS[manner], **more))
    return SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)


def by_themselves() -> list[dict[str, Tensor]]:
    """The samples without a trainer: no padding, and the completion's labels alone."""
    tokenizer, found = tiny_tokenizer(), []
    for prompt, completion in PAIRS:
        start, end = tokenizer(prompt).input_ids, [*tokenizer(completion).input_ids, tokenizer.eos_token_id]
        ids, labels = torch.tensor([start + end]), torch.tensor([[-100] * len(start) + end])
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def scores(calibration: Calibration) -> dict[int, Tensor]:
    """Of each sample, by what tells it from others: a loader shuffles."""
    prints = calibration.sample_fingerprints.tolist()
    return dict(zip(prints, calibration.sensitivity.per_sample, strict=True))


def check_same(found: Calibration, expected: Calibration) -> None:
    there, here = scores(found), scores(expected)
    assert there.keys() == here.keys()
    for sample, score in here.items():
        torch.testing.assert_close(there[sample], score, rtol=1e-5, atol=1e-9)
    for name in expected.names:
        one, other = (each.covariance[name].dense() for each in (found, expected))
        assert float((one - other).norm()) <= 1e-5 * float(other.norm())


def part(model: torch.nn.Module, which: str) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if which in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("manner", MANNERS)
def test_the_loader_of_a_trainer_gives_the_statistics_of_its_samples(manner: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    expected = tlora.calibrate(tiny_model("llama"), by_themselves(), progress=False)
    check_same(tlora.calibrate(model, trainer_of(model, tmp_path, manner).get_train_dataloader()), expected)


def test_so_does_that_of_transformers(tmp_path: Path) -> None:
    texts = [(prompt, completion, "") for prompt, completion in PAIRS]
    trainer = by_hand(tiny_model("llama"), tiny_tokenizer(), texts, tmp_path, per_device_train_batch_size=3)
    expected = tlora.calibrate(tiny_model("llama"), by_themselves(), progress=False)
    check_same(tlora.calibrate(tiny_model("llama"), trainer.get_train_dataloader(), progress=False), expected)


def test_it_trains_with_the_config_of_an_allocation(tmp_path: Path) -> None:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, trainer_of(model, tmp_path).get_train_dataloader(), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=16)
    trainer = trainer_of(model, tmp_path, peft_config=tlora.lora_config(model, allocation, lora_dropout=0.1))
    check_layers(trainer.model, allocation)
    trainer.train()
    assert losses(trainer)[-1] < 0.9 * losses(trainer)[0]
    trainer.save_model(str(tmp_path / "adapter"))
    check_layers(PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "adapter")), allocation)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("base")
    model = LlamaForCausalLM.from_pretrained("base")
    there: dict[str, Any] = {"model": model, "tokenizer": tiny_tokenizer(), "rows": ROWS, "name": "base"}
    trained = []
    for block in (text for language, text in blocks(PAGE.read_text()) if language == "python"):
        exec(compile(block, str(PAGE), "exec"), there)
        trained.append({n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad and "lora_" in n})
    tiny_tokenizer().save_pretrained("base")
    Path("requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in 10 * list(ROWS)))
    (typed,) = (text for language, text in blocks(PAGE.read_text()) if language == "sh")
    execute(typed)
    assert tlora.load_adapter("initial", tiny_model("llama")).peft_config["default"].r == 16
    assert trained == [set(), {"lora_B"}, {"lora_A", "lora_B"}, {"lora_B"}, {"lora_B"}, set()]
    a = part(tlora.load_adapter("start", tiny_model("llama")), "lora_A")
    for folder in ("adapter", "trained"):
        loaded = tlora.load_adapter(folder, tiny_model("llama"), freeze_a=True)
        assert same(part(loaded, "lora_A"), a)
        assert all(b.any() for b in part(loaded, "lora_B").values())


def test_the_lines_of_the_readme_run(tmp_path: Path) -> None:
    model = tiny_model("llama")
    text = (ROOT / "README.md").read_text().split("## In your own trainer")[1].split("## Where to look")[0]
    given = {"tlora": tlora, "model": model, "trainer": trainer_of(model, tmp_path)}
    assert run(text, "README.md", **given)["config"].lora_dropout == 0.05
