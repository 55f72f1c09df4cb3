"""Greedy answers of serving engines: vLLM through its server's LoRA endpoint, llama.cpp through xllamacpp."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.helpers import llama_cpp

REFUSED = "refused"
_PATIENCE = 600  # seconds until a server must have answered


@dataclass(frozen=True)
class Questions:
    """What all engines are asked.

    Attributes
    ----------
    prompts : tuple of tuple of int
        Tokens.
    tokens : int
        Length of an answer.
    top : int
        Tokens whose log-probabilities are compared at each step, the likeliest.
    ends : tuple of int
        Tokens that end an answer.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    top: int
    ends: tuple[int, ...]


def peft_answers(python: str, base: Path, adapter: Path | None, questions: Questions) -> Any:
    """Answers of PEFT, or its refusal."""
    job = {"base": str(base), "adapter": adapter and str(adapter), **asdict(questions)}
    script = Path(__file__).with_name("peft_answers.py")
    ran = subprocess.run(
        [python, str(script)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{script.name} failed: {ran.stderr[-2000:]}")
    return _counted(json.loads(ran.stdout.splitlines()[-1]))


def _counted(found: Any) -> Any:
    """Tokens as numbers, which JSON has made text."""
    if isinstance(found, dict):
        return found
    return [{**a, "likeliest": [{int(t): p for t, p in step.items()} for step in a["likeliest"]]} for a in found]


@contextlib.contextmanager
def vllm(python: str, model: Path, rank: int) -> Iterator[Vllm]:
    """A vLLM server, for as long as the block lasts.

    Parameters
    ----------
    python : str
        Interpreter that has vLLM.
    model : path-like
        Folder of the model.
    rank : int
        ``--max-lora-rank``; 0 serves without adapters.
    """
    server = Vllm(_free_port(), str(model))
    arguments = ["--model", str(model), "--host", "127.0.0.1", "--port", str(server.port), "--dtype", "float32"]
    arguments += ["--max-model-len", "1024", "--enforce-eager", "--max-logprobs", "50"]
    arguments += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "1"] if rank else []
    environment = os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not server.answers_within(_PATIENCE, process):
                log.seek(0)
                raise RuntimeError(f"vLLM did not start: {log.read()[-3000:]}")
            yield server
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Vllm:
    """A server that is asked over HTTP.

    Attributes
    ----------
    port : int
    model : str
        Name of the base.
    """

    port: int
    model: str

    def answers_within(self, seconds: float, process: subprocess.Popen[bytes]) -> bool:
        """Wait until it is there; False where its process ended, or it took longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                self._get("/health")
                return True
            time.sleep(1)
        return False

    def answers(self, adapter: Path | None, questions: Questions) -> Any:
        """Answers with an adapter, which is loaded for them, or its refusal."""
        name = self.model
        if adapter is not None:
            name = adapter.name
            try:
                self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)})
            except urllib.error.HTTPError as error:
                return {REFUSED: json.loads(error.read())["error"]["message"]}
        return [self._answer(name, prompt, questions) for prompt in questions.prompts]

    def _answer(self, name: str, prompt: tuple[int, ...], questions: Questions) -> dict[str, Any]:
        asked = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": questions.tokens}
        asked |= {"logprobs": questions.top, "return_tokens_as_token_ids": True}
        found = json.loads(self._post("/v1/completions", asked))["choices"][0]["logprobs"]
        likeliest = [{_number(key): p for key, p in step.items()} for step in found["top_logprobs"]]
        return {"tokens": [_number(token) for token in found["tokens"]], "likeliest": likeliest}

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return bytes(answer.read())

    def _post(self, path: str, values: dict[str, Any]) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(values).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            return bytes(answer.read())


def _number(token: str) -> int:
    found = re.fullmatch(r"token_id:(\d+)", token)
    if found is None:
        raise ValueError(f"{token!r} is no token by its number")
    return int(found[1])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def llama_cpp_answers(model: Path, adapter: Path | None, questions: Questions) -> list[dict[str, Any]]:
    """Answers of llama.cpp, with keys and values kept in float32."""
    return llama_cpp.llama_cpp_answers(model, adapter, questions.prompts, questions.tokens, questions.top)
