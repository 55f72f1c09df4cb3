"""Did the rank go where the work was done? Contributions of modules beside what was known before and after training.

For three tasks: an adapter with ranks by score is trained, and test answers are taken apart. The table has the rank
correlation over modules of the contribution to the answers' log-probability with the sensitivity before training, the
allocated rank, the used rank and the size of the update; what the most important module contributed, and what leaving
it out costs. Run it from the root of the project::

    python -m benchmarks.quality.attribution
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import tlora

TASKS: dict[tuple[str, str], dict[str, Any]] = {
    ("smollm2-135m", "notebooks/data/smart_home"): {"learning_rate": 2e-3, "batch_size": 4, "max_steps": 40},
    ("smollm2-135m", "letter_counting"): {"learning_rate": 4e-3, "batch_size": 4, "max_steps": 40},
    ("minilm", "rotten_tomatoes"): {"learning_rate": 4e-3, "batch_size": 16, "max_steps": 60},
}
"""How an adapter is trained for a model and a task."""
SIZES: dict[str, dict[str, Any]] = {
    "letter_counting": {"train": 400, "validation": 32},
    "rotten_tomatoes": {"train": 960, "validation": 200},
}
COMPARED = ("score", "rank", "used_rank", "update_norm")
RESAMPLES = 1000


def main() -> None:
    """Print the table, a row for each task."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=int, default=16, help="test answers to take apart")
    answers = parser.parse_args().answers
    rows = []
    for (name, data), training in TASKS.items():
        rows.append({"model": name, "task": data.rpartition("/")[2], **measure(name, data, training, answers)})
        print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False))


def measure(name: str, data: str, training: dict[str, Any], answers: int) -> dict[str, Any]:
    """Train an adapter and take test answers apart."""
    model, tokenizer = tlora.load_model(name)
    task = tlora.load_task(data, tokenizer, **SIZES.get(data, {}))
    calibration = tlora.calibrate(model, task.calibration(32), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=8, max_rank=32)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    adapted = tlora.attach(model, subspaces, allocation)
    tlora.train(adapted, task, evaluation_limit=0, progress=False, **training)
    attribution = tlora.attribute(adapted, task, limit=answers, answers=False, progress=False)
    frame = attribution.to_frame().assign(score=calibration.sensitivity.to_frame()["score"])
    contributions = attribution.contributions()
    first = frame.nlargest(1, "contribution").iloc[0]
    return {
        "answers": len(contributions),
        "rise, nats": f"{attribution.rise:.2f}",
        "gap": f"{100 * attribution.gap:.2g} %",
        **{column: correlation(contributions, frame[column].to_numpy(float)) for column in COMPARED},
        "most important": f"layer {first['layer']} {first['projection']}",
        "contributed": f"{first['contribution']:.2f}",
        "leaving it out costs": f"{first['cost']:.2f}",
    }


def correlation(contributions: np.ndarray, values: np.ndarray) -> str:
    """Spearman's rank correlation of the mean contribution with values, with a 95 % interval over answers."""
    draws = np.random.default_rng(0).integers(len(contributions), size=(RESAMPLES, len(contributions)))
    resampled = [stats.spearmanr(contributions[draw].mean(0), values).statistic for draw in draws]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return f"{stats.spearmanr(contributions.mean(0), values).statistic:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
