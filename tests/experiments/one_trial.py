"""One trial of a recipe in a folder of its own, and its row without what the clock says."""

import json

from secateur.experiments.recipe import load_recipe
from secateur.experiments.trial import run_trial


def plan_of(folder, text):
    """Return the first plan of a recipe that is written to ``folder``."""
    (folder / "steps.yaml").write_text(text)
    return load_recipe(str(folder / "steps.yaml")).plans[0]


def run(plan, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return run_trial(plan, 0, folder, folder.parent / "dense", lambda step, row: None)


def without_times(row):
    row = {key: value for key, value in row.items() if key != "seconds"}
    text = json.dumps(row, sort_keys=True, default=str)
    return json.loads(text, object_hook=lambda d: {k: v for k, v in d.items() if k != "seconds"})
