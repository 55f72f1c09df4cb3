"""The page of scenes: one small file that asks nobody, and the numbers that its code is tested with."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import viz
from tests.helpers import scenes


def test_the_page_is_one_small_file_that_asks_nobody(tmp_path):
    text = viz.scenes(tmp_path / "scenes.html").read_text("utf-8")
    assert len(text.encode()) < 300_000
    assert re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", text) == ["https://arxiv.org/abs/2604.18124"]
    assert not re.search(r"\bfetch\(|@import|url\(", text)


def test_a_notebook_shows_the_page_in_a_frame(tmp_path):
    page = viz.scenes(tmp_path / "scenes.html").read_text("utf-8")
    shown = viz.scenes()._repr_html_()
    assert shown.count("<iframe") == 1
    assert len(shown) > len(page)


@pytest.mark.parametrize(("output", "error"), [("scenes.txt", ValueError), (3.5, TypeError)])
def test_what_is_no_page_is_refused(output, error):
    with pytest.raises(error, match="output"):
        viz.scenes(output)


def compare(found, expected, where: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
    if isinstance(expected, dict | list | tuple):
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            compare(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9, err_msg=where)
    else:
        assert found == expected, where


@pytest.mark.rest
def test_the_numbers_that_the_scenes_are_tested_with_are_those_of_pytorch():
    compare(json.loads(scenes.FILE.read_text("utf-8")), json.loads(json.dumps(scenes.rounded(scenes.numbers()))), "")
