"""What the trials of a study share: the data, and one dense network for each seed."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from secateur.data import load_data
from secateur.data.dataset import Dataset, Examples
from secateur.errors import ModelError, StorageError
from secateur.experiments.claim import Claim
from secateur.experiments.plan import DataSpec, ModelSpec, Plan, pick_device
from secateur.experiments.resumed import fit_resumed
from secateur.experiments.schema import renewed
from secateur.factories import find_factory
from secateur.models import TIMM, build_model, is_folder
from secateur.pruning.selection import on_threads
from secateur.storage import load_json, locked, own_folder, save_json, sha256_of, sweep
from secateur.training.batches import seed_of
from secateur.training.checkpoint import load_network, save_weights
from secateur.training.evaluate import evaluate
from secateur.training.fit import Epoch, fit
from secateur.training.settings import Training

_log = logging.getLogger(__name__)
_TRAINING = ".training"  # the folder of a dense training that is under way
OnEpoch = Callable[[str, Epoch], None]


def dense_network(
    plan: Plan, seed: int, data: Dataset, folder: Path, on_epoch: OnEpoch
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the plan's dense network for ``seed``, trained once and kept by the hash of all that
    determines it, and its training's curve and seconds."""
    model = make_model(plan.model, seed).to(pick_device(plan.device))
    if plan.model.weights is not None:
        load_network(plan.model.weights, model)
        return model, {"curve": [], "seconds": 0.0}
    name = dense_name(plan, seed)
    weights, info = folder / f"{name}.safetensors", folder / f"{name}.json"
    with locked(own_folder(folder) / f"{name}.lock"):  # of several workers one trains it, the others wait
        found = _kept(weights, info)
        if found is None:
            sweep(folder)
            found = _train_dense(model, plan, seed, data, weights, info, on_epoch)
        shutil.rmtree(weights.with_suffix(_TRAINING), ignore_errors=True)
    load_network(weights, model)
    return model, found.model_dump(include={"curve", "seconds"})


class _Dense(BaseModel):
    """What stands beside a dense network's weights; early ones lack their hash."""

    curve: list[dict[str, Any]]
    seconds: float
    sha256: str | None = None


def _kept(weights: Path, info: Path) -> _Dense | None:
    """Return what is kept of a dense network, or None where it is not whole."""
    if not info.exists():
        return None
    try:
        found = _Dense.model_validate(load_json(info))
        found = found.model_copy(update={"curve": [renewed(row) for row in found.curve]})
        if found.sha256 in (None, sha256_of(weights)):
            return found
    except (StorageError, ValidationError, FileNotFoundError):
        pass
    _log.warning("%s: damaged; this dense network is trained anew", weights)
    return None


def dense_name(plan: Plan, seed: int) -> str:
    """Return the name of the plan's dense network for ``seed``: the hash of all that determines it, the
    file's name without its suffix."""
    return hash_of({"train": _chosen(plan.train)} | what_determines(plan, seed))


def _chosen(train: Training) -> dict[str, Any]:
    """Return the settings that are not the defaults: one that is added later leaves all names as they are."""
    usual = asdict(Training())
    return {name: value for name, value in asdict(train).items() if value != usual[name]}


def what_determines(plan: Plan, seed: int) -> dict[str, Any]:
    """Return what a network's training depends on, besides its settings: the data's own content, the
    network with the content of the weights it starts from and of the user's module it comes from,
    the seed, and the machine."""
    task = {} if plan.task.usual else {"task": plan.task.model_dump(), "judge": _source_hash(plan.task.name)}
    return task | {
        "data": _fingerprint(_spec_text(plan)),
        "model": plan.model.model_dump(),
        "weights": None if plan.model.weights is None else sha256_of(Path(plan.model.weights)),
        "source": _source_hash(plan.model.name),
        "seed": seed,
        "threads": plan.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": str(pick_device(plan.device)),
    }


def _source_hash(name: str) -> str | None:
    if is_folder(name):
        return hash_of([sha256_of(file) for file in sorted(Path(name).iterdir()) if file.is_file()])
    if ":" not in name or name.startswith(TIMM):
        return None
    module = inspect.getmodule(find_factory(name, ModelError))
    file = getattr(module, "__file__", None)
    return None if file is None else sha256_of(Path(file))


@lru_cache(maxsize=64)
def _fingerprint(spec: str) -> str:
    return _loaded(spec).fingerprint


def _train_dense(
    model: nn.Module, plan: Plan, seed: int, data: Dataset, weights: Path, info: Path, on_epoch: OnEpoch
) -> _Dense:
    with Claim(weights.with_suffix(_TRAINING)) as claim:
        history = fit_resumed(
            claim,
            model,
            data,
            plan.train,
            task=plan.task.build(),
            seed=seed_of(seed, "dense"),
            on_epoch=partial(on_epoch, "dense"),
        )
        save_weights(weights, model)
        found = _Dense(curve=history.as_dicts(), seconds=history.seconds, sha256=sha256_of(weights))
        save_json(info, found.model_dump())
    return found


def seconds_an_epoch(plan: Plan) -> tuple[float, nn.Module]:
    """Return about how long an epoch of the plan's training takes here, and the network."""
    with on_threads(plan.threads):
        data = dataset_of(plan)
        model = make_model(plan.model, 0).to(pick_device(plan.device))
        number = min(len(data.train), 20 * (plan.train.batch_size or len(data.train)))
        few, task = data.train.drawn(number, 0), plan.task.build()
        once = plan.train.with_epochs(1)
        fit(model, few, data.validation, once, task=task)  # the first run imports and warms up
        start = time.perf_counter()
        fit(model, few, data.validation, once, task=task)
        evaluation_start = time.perf_counter()
        evaluate(model, data.validation, task)
        evaluation = time.perf_counter() - evaluation_start
    training = max(0.0, evaluation_start - start - evaluation)
    return training * len(data.train) / number + evaluation, model


def make_model(spec: ModelSpec, seed: int) -> nn.Module:
    return build_model(spec.name, seed=seed_of(seed, "init"), **(spec.model_extra or {}))


def early_weights(plan: Plan, seed: int, data: Dataset, epochs: int) -> Mapping[str, torch.Tensor]:
    """Return what the plan's dense network held after so many epochs of its training; 0: before it.

    They are trained again, and the last ones asked for are remembered: a loop of rewinding asks often.
    """
    name = dense_name(plan, seed), epochs
    if name not in _early:
        _early.clear()
        _early[name] = _early_network(plan, seed, data, epochs).state_dict()
    return _early[name]


_early: dict[tuple[str, int], Mapping[str, torch.Tensor]] = {}


def _early_network(plan: Plan, seed: int, data: Dataset, epochs: int) -> nn.Module:
    def stop(row: Epoch) -> None:
        if row.epoch == epochs:
            raise _Enough

    model = make_model(plan.model, seed).to(pick_device(plan.device))
    if epochs:
        with suppress(_Enough):
            fit(
                model,
                data.train,
                data.validation,
                plan.train,
                task=plan.task.build(),
                seed=seed_of(seed, "dense"),
                on_epoch=stop,
            )
    return model


class _Enough(Exception):
    """Ends a training that has come as far as was wanted."""


def scratch_model(plan: Plan, options: dict[str, Any], seed: int) -> nn.Module:
    """Build the plan's network anew with ``options`` put over its own."""
    spec = ModelSpec.model_validate({"name": plan.model.name} | (plan.model.model_extra or {}) | options)
    return make_model(spec, seed).to(pick_device(plan.device))


def load_dataset(spec: DataSpec) -> Dataset:
    return load_data(spec.name, validation=spec.validation, **(spec.model_extra or {}))


def dataset_of(plan: Plan) -> Dataset:
    """Load the plan's data set, or return the one loaded last where it is the same."""
    data = _loaded(_spec_text(plan))
    return data.of_inputs() if plan.task.build().of_inputs else data


def _spec_text(plan: Plan) -> str:
    return json.dumps(plan.data.model_dump(), sort_keys=True)


@lru_cache(maxsize=1)
def _loaded(spec: str) -> Dataset:
    return load_dataset(DataSpec(**json.loads(spec)))


def calibration_batches(train: Examples, number: int, seed: int) -> list[tuple[Any, Any]]:
    """Return ``number`` examples of the training split, drawn with ``seed``, in batches of 256."""
    return list(train.drawn(number, seed_of(seed, "calibration")).batches(256))


def hash_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
