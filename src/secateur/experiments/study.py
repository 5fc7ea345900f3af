"""A study: every point of a recipe's sweep with every seed, kept in one folder."""

from __future__ import annotations

import csv
import io
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import secateur
from secateur.errors import StorageError
from secateur.experiments.recipe import Plan, Recipe
from secateur.experiments.trial import count_epochs, pick_device, run_trial, trial_id
from secateur.storage import load_json, replacing, save_json
from secateur.training.fit import Epoch

OnTrial = Callable[[int, int, str], None]
OnEpoch = Callable[[str], None]


def run_study(
    recipe: Recipe,
    out: Path,
    *,
    on_trial: OnTrial = lambda index, total, label: None,
    on_epoch: OnEpoch = lambda text: None,
) -> dict[str, Any]:
    """Run every trial of ``recipe`` that ``out`` does not hold yet; write and return the results.

    Dense networks are kept beside the study, in ``dense``, for every study there. A finished trial
    is never run again: its name is the hash of all that determines it.
    """
    todo = [(plan, seed) for plan in recipe.plans for seed in recipe.seeds]
    rows: list[dict[str, Any]] = []
    for index, (plan, seed) in enumerate(todo):
        on_trial(index, len(todo), label_of(plan, seed))
        rows.append(finished_or_run(plan, seed, out, on_epoch))
        write_results(recipe, rows, out)
    return write_results(recipe, rows, out)


def finished_or_run(plan: Plan, seed: int, out: Path, on_epoch: OnEpoch) -> dict[str, Any]:
    folder = out / "trials" / trial_id(plan, seed)
    if (folder / "result.json").exists():
        return load_json(folder / "result.json")
    folder.mkdir(parents=True, exist_ok=True)

    def say(step: str, row: Epoch) -> None:
        on_epoch(f"{step} epoch {row.epoch}: validation {row.validation_accuracy:.2%}")

    return run_trial(plan, seed, folder, out.parent / "dense", say)


def label_of(plan: Plan, seed: int) -> str:
    """Return "method, setting value, ..., seed 0": how progress names a trial."""
    settings = [f"{key}={value}" for key, value in plan.point.items()]
    return ", ".join([plan.method, *settings, f"seed {seed}"])


def describe(recipe: Recipe, out: Path) -> str:
    """Return what a run would do: its trials, the epochs they train, and where they are kept."""
    lines = [label_of(plan, seed) for plan in recipe.plans for seed in recipe.seeds]
    epochs = sum(count_epochs(plan) for plan in recipe.plans) * len(recipe.seeds)
    dense = {(repr(plan.data), repr(plan.model), plan.train) for plan in recipe.plans}
    dense_epochs = sum(train.epochs for *_, train in dense) * len(recipe.seeds)
    return "\n".join(
        [
            *lines,
            f"{len(lines)} trials into {out}: {dense_epochs} epochs of dense training at most, "
            f"{epochs} of retraining",
        ]
    )


def write_results(recipe: Recipe, rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Write ``results.json`` and ``results.csv`` into ``out`` and return the results."""
    results = {
        "schema": 1,
        "recipe": recipe.name,
        "description": recipe.spec.description,
        "source": recipe.spec.source,
        "text": recipe.text,
        "environment": environment(recipe),
        "trials": rows,
        "reference": recipe.spec.reference,
    }
    save_json(out / "results.json", results)
    with replacing(out / "results.csv") as temporary:
        temporary.write_text(_csv(rows), encoding="utf-8")
    return results


def read_results(folder: Path) -> dict[str, Any]:
    """Read a study's results; a folder without any, or with a newer schema, is one clear error."""
    results = load_json(folder / "results.json")
    if not isinstance(results, dict) or results.get("schema") != 1:
        raise StorageError(f"{folder}/results.json: not results of schema 1")
    return results


def environment(recipe: Recipe) -> dict[str, Any]:
    """Return the versions and the machine that the figures belong to."""
    device = pick_device(recipe.spec.device)
    return {
        "secateur": secateur.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": recipe.spec.threads,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")


def _commit() -> str | None:
    """The commit of secateur itself, where it runs from a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _csv(rows: list[dict[str, Any]]) -> str:
    points = list(dict.fromkeys(key for row in rows for key in row["point"]))
    metrics = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "method", "seed", *points, *metrics])
    for row in rows:
        cells = [row["point"].get(key) for key in points] + [row["metrics"].get(key) for key in metrics]
        writer.writerow([row["id"], row["method"], row["seed"], *cells])
    return text.getvalue()
