"""Folders and results for the tests of the pages, and a reader of the HTML that is no browser."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from tests.helpers import pictured, results
from tlora.results import Result
from tlora.training.run import TrainingRun

VOID = {"meta", "img", "br", "hr", "link", "input"}


def run_of(model: str = "2 layers", steps: int = 20, **changes: Any) -> TrainingRun:
    """A trained adapter with the ranks of that allocation: some modules use all of their rank, some a part of it."""
    allocation, generator = pictured.allocation(model), torch.Generator().manual_seed(1)
    adapter = {}
    for name, rank in allocation.ranks.items():
        d_out, d_in = allocation.shapes[name]
        decay = 2 * torch.rand(1, generator=generator)
        adapter[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, d_in, generator=generator)
        columns = torch.exp(-decay * torch.arange(rank))
        adapter[f"base_model.model.{name}.lora_B.weight"] = torch.randn(d_out, rank, generator=generator) * columns
    values = {
        "ranks": allocation.ranks,
        "scalings": allocation.scalings,
        "trainable_parameters": allocation.trainable_parameters,
        "adapter": adapter,
        "adapter_config": {"base_model_name_or_path": pictured.META.model, "task_type": "CAUSAL_LM"},
        "seconds": 431.2,
        "meta": dataclasses.replace(
            pictured.META,
            seed=7,
            samples=300,
            recipe={
                "evaluated_on": "test",
                "learning_rate": 0.001,
                "epochs": 1,
                "batch_size": 4,
                "evaluation_limit": None,
                "resume": "checkpoint-5",
            },
        ),
    }
    return pictured.training_run(steps, **values | changes)


def results_of(model: str = "2 layers", **changes: Any) -> dict[str, Result]:
    """Sensitivity, spectrum, allocation and run at the size of a model, made by hand, by the names of their folders."""
    return {
        "sensitivity": pictured.sensitivity(model),
        "spectrum": pictured.spectrum(model),
        "allocation": pictured.allocation(model),
        "run": run_of(model, **changes),
    }


def walked() -> dict[str, Result]:
    """All that a real walk over a tiny model leaves."""
    return {
        "sensitivity": results.calibration().sensitivity,
        "spectrum": results.spectrum(),
        "alignment": results.EXAMPLES["Alignment"](),
        "capture": results.capture(),
        "allocation": results.allocation(),
        "run": results.run(),
    }


def save(found: dict[str, Result], folder: Path) -> Path:
    """The adapter's folder with all the results in their places."""
    found["run"].save(folder)
    for name, result in found.items():
        if name != "run":
            result.save(folder / "tlora" / name)
    return folder


class Element:
    """A tag of a page with its attributes, and what is inside it."""

    def __init__(self, tag: str, attributes: dict[str, str | None], parent: Element | None) -> None:
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        """All text inside, as it is read: white space does not count."""
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join("".join(parts).replace("\u00a0", " ").split())

    def all(self, tag: str = "") -> list[Element]:
        """Elements inside with that tag, in the order of the page."""
        inside = [child for child in self.children if isinstance(child, Element)]
        return [e for child in inside for e in ([child] if tag in ("", child.tag) else []) + child.all(tag)]


class Page(HTMLParser):
    """A page taken apart; tags that do not match are an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self._open = Element("", {}, None)
        self.feed(html)
        self.close()
        assert self._open is self.root, f"<{self._open.tag}> is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self._open)
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self._open.children.append(element)
        if tag not in VOID:
            self._open = element

    def handle_endtag(self, tag: str) -> None:
        assert tag == self._open.tag, f"</{tag}> closes <{self._open.tag}>"
        assert self._open.parent is not None
        self._open = self._open.parent

    def handle_data(self, data: str) -> None:
        self._open.children.append(data)

    def all(self, tag: str = "") -> list[Element]:
        """Elements of the page with that tag."""
        return self.root.all(tag)

    def section(self, key: str) -> Element:
        """The section of that anchor."""
        return next(e for e in self.all("section") if e.attributes.get("id") == key)

    def table(self, section: str, caption: str) -> list[list[str]]:
        """The cells of the table whose caption begins so, heading included where there is one."""
        tables = [t for t in self.section(section).all("table") if t.all("caption")[0].text.startswith(caption)]
        assert len(tables) == 1, f"{len(tables)} tables {caption!r} in {section}"
        return [[cell.text for cell in row.all() if cell.tag in ("th", "td")] for row in tables[0].all("tr")]
