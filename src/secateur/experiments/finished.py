"""A finished trial as its folder holds it: what it came to, and the networks it came from and left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import StorageError
from secateur.experiments.dense import dense_name
from secateur.experiments.recipe import Plan
from secateur.experiments.results import label_of, read_results
from secateur.experiments.specs import DataSpec, ModelSpec, ScratchSpec
from secateur.experiments.steps import training_of, validated
from secateur.experiments.yaml_lines import Located
from secateur.models import build_model
from secateur.storage import load_json
from secateur.training.checkpoint import load_network
from secateur.training.settings import Training

_LISTED = 12  # trials of a study that an error names


@dataclass(frozen=True)
class FinishedTrial:
    """A trial's ``folder``, its ``row`` of the results, and the ``plan`` it ran, without its steps."""

    folder: Path
    row: Mapping[str, Any]
    plan: Plan

    @property
    def study(self) -> Path:
        return self.folder.parent.parent

    @property
    def network_file(self) -> Path:
        return self.folder / "model.safetensors"

    def dense_file(self) -> Path:
        """Return the dense network's file: kept beside the study, or the weights that the recipe names.

        Raises StorageError where it is not there.
        """
        weights = self.plan.model.weights
        if weights is None:
            # A row of an early version does not say: then it is what this version would call it.
            name = self.row.get("dense") or dense_name(self.plan, self.row["seed"])
            path = self.study.parent / "dense" / f"{name}.safetensors"
        else:
            path = Path(weights)
        if not path.is_file():
            raise StorageError(f"{path}: no such file; the trial's dense network should be there")
        return path


def read_trial(folder: Path) -> FinishedTrial:
    """Read a finished trial.

    Raises StorageError for a folder that is none: of a study (it names its trials), of a trial that is not
    finished or has failed, or that lacks what this version reads.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise StorageError(f"{folder}: no such folder")
    if not (folder / "result.json").is_file():
        raise StorageError(_no_trial(folder))
    row = load_json(folder / "result.json")
    if row.get("state") != "finished":
        raise StorageError(f"{folder}: the trial failed: {'; '.join(row.get('notes', []))}")
    if not row.get("config"):
        raise StorageError(f"{folder}: written by an early version; run the study again")
    return FinishedTrial(folder, row, _plan_of(row))


def _plan_of(row: Mapping[str, Any]) -> Plan:
    """Return the plan of a row without its steps: they have been run."""
    config = dict(row["config"])
    written = Located(config, {}, "result.json")
    return Plan(
        method=row["method"],
        point=row["point"],
        data=validated(DataSpec, config["data"], written),
        model=validated(ModelSpec, config["model"], written),
        train=training_of(config["train"] or {}, Training(), written, ("train",)),
        steps=(),
        threads=1,
        device="auto",
        measure=(),
        seeds=(row["seed"],),
        config=config,
    )


def _no_trial(folder: Path) -> str:
    """Return what a folder is that holds no result of a trial."""
    if folder.parent.name == "trials":
        return f"{folder}: the trial is not finished; run the same command again to go on with its study"
    if not (folder / "results.json").is_file():
        return f"{folder}: is no finished trial: it holds no result.json"
    rows = [row for row in read_results(folder)["trials"] if row.get("state") == "finished"]
    lines = [
        f"  {label_of(row['method'], row['point'], row['seed'])} -> {folder / 'trials' / row['id']}"
        for row in rows[:_LISTED]
    ]
    if len(rows) > _LISTED:
        lines.append(f"  and {len(rows) - _LISTED} more")
    lines.append(f"`secateur choose {folder} --accuracy-drop 1` prints the one to take")
    return "\n".join([f"{folder}: is a whole study; name the folder of one of its trials:", *lines])


def dense_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the network that a trial started from."""
    return {key: value for key, value in config["model"].items() if key not in ("name", "weights")}


def pruned_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that build the network a trial left, at the size its file is loaded into: the dense
    network's, or those of the last network that a step made from scratch."""
    options = dense_options(config)
    scratch = [ScratchSpec(**step["scratch"]) for step in config["steps"] if "scratch" in step]
    return options | scratch[-1].options_beside(options) if scratch else options


def load_dense(trial: FinishedTrial, path: Path) -> nn.Module:
    """Return the trial's dense network, on the CPU, from its file."""
    return _loaded(trial, dense_options(trial.plan.config), path)


def load_pruned(trial: FinishedTrial) -> nn.Module:
    """Return the network that the trial left, on the CPU: with its zeros, or already smaller."""
    return _loaded(trial, pruned_options(trial.plan.config), trial.network_file)


def _loaded(trial: FinishedTrial, options: dict[str, Any], path: Path) -> nn.Module:
    network = build_model(trial.plan.model.name, **options)
    load_network(path, network)
    return network.eval()
