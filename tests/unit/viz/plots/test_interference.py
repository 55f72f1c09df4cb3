"""What the picture of an interference shows equals its table."""

import dataclasses

import numpy as np

import viz
from tests.helpers.pictured import interference, texts


def test_points_are_the_modules_by_projection():
    found = interference()
    frame = found.to_frame()
    ax = viz.plot_interference(found)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for name, points in zip(names, ax.collections, strict=True):
        part = frame[frame["module"].str.endswith(name)]
        np.testing.assert_allclose(points.get_offsets(), part[["on_first", "on_second"]])
    title = " ".join(ax.get_title(loc="left").split())
    on_first, on_second = (f"{value:.2g}" for value in found.overall)
    assert f"letters adds {on_first} times what home adds to the outputs on its task, home {on_second} times" in title


def test_modules_of_one_adapter_are_counted():
    found = interference()
    name = found.names[0]
    ax = viz.plot_interference(dataclasses.replace(found, ranks=found.ranks | {name: (8, 0)}))
    assert sum(len(points.get_offsets()) for points in ax.collections) == len(found.names) - 1
    assert "1 in one adapter alone" in texts(ax)[-1].replace("\n", " ")
