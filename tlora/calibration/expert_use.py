"""Which routed experts a task uses."""

from __future__ import annotations

import math

import pandas as pd

from tlora.calibration.calibration import Calibration
from tlora.calibration.experts import ExpertPool
from tlora.models.experts import is_expert, parameter_name
from tlora.utils.validation import check_arguments


def expert_use(calibration: Calibration) -> pd.DataFrame:
    """Return what each routed expert did on the samples of a calibration.

    Parameters
    ----------
    calibration : Calibration
        With experts among its ``target_modules``.

    Returns
    -------
    pandas.DataFrame
        One row for each expert, in model order: ``module``, which holds it; ``layer``; ``expert``, its number;
        ``tokens``, the counted tokens that were routed to it; ``score``, the sum of its sensitivity over all entries of
        its weights, nats per token; ``share``, that divided by the sum over all experts of the model;
        ``squared_gradient``, the squared gradient of its weights with independent tokens, squared nats per token and
        unit of weight, NaN without ``fisher=True``.

    Raises
    ------
    ValueError
        If the calibration has no experts.

    Examples
    --------
    >>> mixture, tokenizer = tlora.load_model("mixture")
    >>> task = tlora.load_task("commands.jsonl", tokenizer)
    >>> routed = tlora.calibrate(mixture, task.calibration(8), target_modules="experts", progress=False)
    >>> use = tlora.expert_use(routed)
    >>> use.groupby("layer")["tokens"].sum().tolist()  # each token goes to two experts
    [80, 80]
    """
    check_arguments(expert_use, locals())
    pool, scores = ExpertPool(calibration), calibration.sensitivity.rescale("sum").scores
    rows: dict[tuple[str, int], list[float]] = {}
    for name in filter(is_expert, calibration.names):
        module, number = parameter_name(name).rpartition(".")[0], int(name.rpartition("[")[2].rstrip("]"))
        row = rows.setdefault((module, number), [calibration.targets[name].layer, pool.rows(name), 0.0, 0.0])
        row[2] += scores[name]
        row[3] += math.nan if calibration.fisher is None else calibration.fisher[name].trace
    if not rows:
        raise ValueError('this calibration has no experts: calibrate with target_modules="experts"')
    values = [(module, layer, number, *rest) for (module, number), (layer, *rest) in rows.items()]
    frame = pd.DataFrame(values, columns=["module", "layer", "expert", "tokens", "score", "squared_gradient"])
    share = frame["score"] / (frame["score"].sum() or math.nan)
    return frame.assign(share=share)[["module", "layer", "expert", "tokens", "score", "share", "squared_gradient"]]
