"""A finished trial as its folder holds it: what it came to, and the networks it came from and left.

Its files are data, maybe somebody else's: the network and the data set that they name are looked up among
secateur's own, and only the caller can name others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from secateur.data import DATASETS
from secateur.errors import DataError, ModelError, SecateurError, StorageError
from secateur.experiments.claim import whole_result
from secateur.experiments.commands.opening import Named, described
from secateur.experiments.dense import dense_name
from secateur.experiments.plan import DataSpec, ModelSpec, Plan, TaskSpec
from secateur.experiments.results import inside, label_of, read_results
from secateur.experiments.schema import validated_row
from secateur.experiments.steps.scratch import OtherOptions
from secateur.experiments.steps.settings import Base
from secateur.experiments.validation import validated
from secateur.experiments.yaml_lines import Located
from secateur.factories import named_function
from secateur.models import MODELS, build_model
from secateur.storage import load_json
from secateur.text import printable
from secateur.training.checkpoint import load_network

_LISTED = 12  # trials of a study that an error names
_LARGEST = 100_000_000  # parameters of a network that a file asks for


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
        return inside(self.folder, "model.safetensors")

    def dense_file(self) -> Path:
        """Return the dense network's file: kept in the study or beside it, or the weights that the recipe
        names.

        Raises StorageError where it is not there.
        """
        weights = self.plan.model.weights
        if weights is not None:
            places = [Path(weights)]
        else:
            # A row of an early version does not say: then it is what this version would call it.
            name = f"{self.row.get('dense') or dense_name(self.plan, self.row['seed'])}.safetensors"
            places = [inside(study, "dense", name) for study in (self.study, self.study.parent)]
        found = next((path for path in places if os.path.isfile(path)), None)
        if found is None:
            shown = str(places[-1])[:300]
            raise StorageError(f"{shown}: no such file; the trial's dense network should be there")
        return found


def read_trial(folder: Path, model: Named | None = None, data: Named | None = None) -> FinishedTrial:
    """Read a finished trial.

    ``model`` and ``data`` are what the caller names instead of what the trial's file does: a network and a
    data set, with their options, which may come from a module of their own. A file can name secateur's alone.

    Raises StorageError for a folder that is none: of a study (it names its trials), of a trial that is not
    finished or has failed, that holds what no study writes, or files that are not the trial's; ModelError and
    DataError where its file names what is not secateur's.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise StorageError(f"{folder}: no such folder")
    path = inside(folder, "result.json")
    if not path.is_file():
        raise StorageError(_no_trial(folder))
    row = validated_row(load_json(path), str(path))
    if row["state"] != "finished":
        raise StorageError(f"{folder}: the trial failed: {'; '.join(row['notes'])}")
    whole_result(folder)
    return FinishedTrial(folder, row, _plan_of(row, str(path), model, data))


def _plan_of(row: Mapping[str, Any], where: str, model: Named | None, data: Named | None) -> Plan:
    """Return the plan of a row without its steps: they have been run."""
    config, written = dict(row["config"]), Located(None, {}, where)
    if data is None:
        _check_ours("data set", config["data"]["name"], DATASETS, DataError, where)
    else:
        config["data"] = described("--data", data, DataSpec).model_dump()
    if model is None:
        _check_ours("network", config["model"]["name"], MODELS, ModelError, where)
        for options in (dense_options(config), pruned_options(config, where)):
            _check_buildable(config["model"]["name"], options, where)
    else:
        given = described("--model", model, ModelSpec)
        config["model"] = given.model_dump() | {"weights": given.weights or config["model"].get("weights")}
    return Plan(
        method=row["method"],
        point=row["point"],
        data=validated(DataSpec, config["data"], written, ("data",)),
        model=validated(ModelSpec, config["model"], written, ("model",)),
        task=validated(TaskSpec, config.get("task") or {}, written, ("task",)),
        train=validated(Base, config.get("train") or {}, written, ("train",)),
        steps=(),
        threads=1,
        device="auto",
        measure=(),
        seeds=(row["seed"],),
        config=config,
    )


def _check_ours(
    kind: str, name: str, ours: Mapping[str, str], error: type[SecateurError], where: str
) -> None:
    if name not in ours:
        option = {"network": "--model", "data set": "--data"}[kind]
        raise error(
            f"{where}: names the {kind} {name[:80]!a}, none of secateur's own, and nothing that a file names "
            f"is imported; if it is yours, give {option} package.module:function, or YAML with its options: "
            f"{option} '{{name: package.module:function, option: value}}'"
        )


def _check_buildable(name: str, options: Mapping[str, Any], where: str) -> None:
    """Refuse options that its factory does not take, or that make a network which no memory holds."""
    kinds = get_type_hints(named_function(MODELS[name], ModelError))
    for option, value in options.items():
        if option not in kinds:
            raise ModelError(f"{where}: model: {name} has no option {option[:80]!a}")
        try:
            TypeAdapter(kinds[option]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise ModelError(f"{where}: model: {option} is {ascii(value)[:80]}: {said}") from error
    try:
        with torch.device("meta"):
            network = build_model(name, **options)
    except ModelError as error:
        raise ModelError(f"{where}: model: {error}") from error
    size = sum(parameter.numel() for parameter in network.parameters())
    if size > _LARGEST:
        raise ModelError(
            f"{where}: model: {name} with these options has {size:,} parameters, and {_LARGEST:,} are the "
            "most that a file may ask for; if you trust it, name it with the same options by --model"
        )


def _no_trial(folder: Path) -> str:
    """Return what a folder is that holds no result of a trial."""
    if folder.parent.name == "trials":
        return f"{folder}: the trial is not finished; run the same command again to go on with its study"
    if not (folder / "results.json").is_file():
        return f"{folder}: is no finished trial: it holds no result.json"
    rows = [row for row in read_results(folder)["trials"] if row["state"] == "finished"]
    labels = {row["id"]: label_of(row["method"], row["point"], row["seed"]) for row in rows[:_LISTED]}
    lines = [f"  {printable(label)} -> {folder / 'trials' / name}" for name, label in labels.items()]
    if len(rows) > _LISTED:
        lines.append(f"  and {len(rows) - _LISTED} more")
    lines.append(f"`secateur choose {folder} --drop 1` prints the one to take")
    return "\n".join([f"{folder}: is a whole study; name the folder of one of its trials:", *lines])


def dense_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the network that a trial started from."""
    return {key: value for key, value in config["model"].items() if key not in ("name", "weights")}


def pruned_options(config: Mapping[str, Any], where: str = "the trial") -> dict[str, Any]:
    """Return the options that build the network a trial left, at the size its file is loaded into: the dense
    network's, or those of the last network that a step made from scratch. ``where``: what an error names."""
    options = dense_options(config)
    scratch = [step["scratch"] for step in config["steps"] if "scratch" in step]
    if not scratch:
        return options
    differing = {key: value for key, value in scratch[-1].items() if key in OtherOptions.model_fields}
    spec = validated(OtherOptions, differing, Located(None, {}, where), ("scratch",))
    width = options.get("width", 1.0)
    if spec.width is not None and not (isinstance(width, (int, float)) and math.isfinite(width * spec.width)):
        raise ModelError(
            f"{where}: scratch: width times {spec.width:g} is no number for a width {width!a:.80}"
        )
    return options | spec.beside(options)


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
