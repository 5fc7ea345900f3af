"""The results of a study on disk: ``results.json``, ``results.csv``, and the machine they belong to."""

from __future__ import annotations

import csv
import io
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import secateur
from secateur.errors import StorageError
from secateur.experiments.checked_json import SCHEMA
from secateur.experiments.deployment_schema import validated_deployment
from secateur.experiments.plan import pick_device
from secateur.experiments.recipe import Recipe
from secateur.experiments.schema import validated_results
from secateur.storage import load_json, replacing, save_json

DEPLOYED = Path("deploy", "deploy.json")  # in a trial's folder


def write_results(recipe: Recipe, rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Write ``results.json`` and ``results.csv`` into ``out`` and return the results."""
    results = {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "description": recipe.spec.description,
        "source": recipe.spec.source,
        "text": recipe.located.text,
        "settings": recipe.settings,
        "environment": environment(recipe),
        "trials": rows,
        "reference": recipe.spec.reference,
    }
    save_json(out / "results.json", results)
    with replacing(out / "results.csv") as temporary:
        temporary.write_text(_csv(rows), encoding="utf-8", errors="backslashreplace")
    return results


def read_results(folder: Path) -> dict[str, Any]:
    """Read a study's results, with what ``secateur deploy`` measured of a trial as its ``deployment``.

    Raises StorageError for a folder without any, and for files that hold what no study writes.
    """
    path = inside(folder, "results.json")
    results = validated_results(load_json(path), str(path))
    for trial in results["trials"]:
        deployed = inside(folder, "trials", trial["id"], *DEPLOYED.parts)
        if deployed.exists():
            trial["deployment"] = validated_deployment(load_json(deployed), str(deployed))
    return results


def inside(folder: Path, *parts: str) -> Path:
    """Return a path in ``folder``; raises StorageError where a link would lead out of it."""
    path = folder.joinpath(*parts)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise StorageError(f"{path}: a link leads out of {folder}, and is not followed; put the file there")
    return path


def check_writable(folder: Path) -> None:
    """Create a folder where there is none.

    Raises StorageError, which names ``--out``, for one that is a link or takes no file.
    """
    if folder.is_symlink():
        raise StorageError(f"{folder}: is a link, which is not followed; name the folder itself with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or error
        raise StorageError(f"{folder}: cannot be written ({why}); name another place with --out") from error


def label_of(method: str, point: Mapping[str, Any], seed: int | None = None) -> str:
    """Return "method, setting=value, ..., seed 0": how progress and errors name a trial, or a point."""
    settings = [f"{key}={value}" for key, value in point.items()]
    return ", ".join([method, *settings, *([] if seed is None else [f"seed {seed}"])])


def environment(recipe: Recipe) -> dict[str, Any]:
    """Return the versions and the machine that the figures belong to."""
    device = pick_device(recipe.spec.device)
    return versions() | {
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": recipe.spec.threads,
    }


def versions() -> dict[str, Any]:
    """Return what computes here: secateur, torch, Python and the processor."""
    return {
        "secateur": secateur.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
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
    # An empty or relative entry of the path would find a program of that name in the working folder.
    places = [place for place in os.get_exec_path() if os.path.isabs(place)]
    git = shutil.which("git", path=os.pathsep.join(places))
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "rev-parse", "--short", "HEAD"]
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
