"""An adapter's folder goes to the hub as a whole, with its card and the record of the run, and comes back the same.

A server on this machine plays the hub's part: the client of `huggingface_hub` is the real one.
"""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi

import tlora
import viz
from tests.helpers.adapted import logits, prepare, step, train_once
from tests.helpers.models import tiny_batch, tiny_model

REPO = "somebody/an-adapter"


class Hub(ThreadingHTTPServer):
    """What the hub keeps. It asks for every file inside of the commit, as the hub does for small ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/{REPO}"}
        if path == f"/api/models/{REPO}/preupload/main":
            kind = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return {"files": [{"path": file["path"], **kind} for file in json.loads(body)["files"]]}
        if path == f"/api/models/{REPO}/commit/main":
            entries = [json.loads(line) for line in body.splitlines()]
            files = [entry["value"] for entry in entries if entry["key"] == "file"]
            self.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            return {"commitUrl": f"{self.url}/{REPO}/commit/{'0' * 40}", "commitOid": "0" * 40}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        raise AssertionError(f"the hub has no {path}")


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps(self.server.answer(self.path.partition("?")[0], body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing: pytest shows what a server says as if it were an error."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_folder_goes_up_with_card_and_record_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    model, subspaces, allocation = prepare()
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, batch := tiny_batch("llama"))
    folder = train_once(adapted).save(tmp_path / "adapter")
    allocation.save(folder / "tlora" / "allocation")
    (folder / "README.md").write_text(viz.card(folder), encoding="utf-8")

    api = HfApi(endpoint=hub.url, token="hf_none")
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=folder)

    assert hub.created[0]["name"] == "an-adapter"
    sent = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == sent
    assert {"README.md", "adapter_model.safetensors", "tlora/run.safetensors", "tlora/allocation.safetensors"} <= set(
        sent
    )
    header = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    assert header["library_name"] == "peft"
    assert "tlora" in header["tags"]

    for name, content in hub.files.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    again = tlora.load(tmp_path / "back", tiny_model("llama"))
    assert torch.equal(logits(again.eval(), batch), logits(adapted.eval(), batch))
    assert not any(p.requires_grad for name, p in again.named_parameters() if "lora_A" in name)
