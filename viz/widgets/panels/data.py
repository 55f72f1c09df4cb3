"""Panel "Data": the model and the data behind the results."""

from __future__ import annotations

from tlora.utils.text import count_text
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Part, facts

TOKENS = {"all": "all but padding", "labels": "labeled ones", "task": "all but what the samples share"}


class DataPanel(Panel):
    """Base model, task and samples."""

    name, title = "data", "Data"
    stage = "data"
    needs = ("sensitivity", "spectrum", "allocation", "run")

    def parts(self) -> list[Part]:
        """Base model, task, samples and the options of the command line."""
        results = self.results
        calibrated, run = results.calibrated, results.run
        values = {"base model": results.model, "task": results.task}
        if calibrated and calibrated.samples:
            values["calibration"] = count_text(calibrated.samples, "sample")
            values["tokens in the covariance"] = TOKENS.get(results.calibration_recipe.get("tokens", ""), "")
        if run and run.meta.samples:
            values["training"] = count_text(run.meta.samples, "sample")
        options = run.meta.recipe.get("data", {}) if run else {}
        for name, value in options.items():
            if value is not None and name not in ("task", "train_samples"):
                values[name.replace("_", " ")] = f"{value:,}" if isinstance(value, int) else str(value)
        return [facts("Model and data", values)] if any(values.values()) else []
