"""One trial: one point of a recipe with one seed, from the dense network to its measured result."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.data.dataset import Dataset
from secateur.experiments.by_class import by_class
from secateur.experiments.claim import MASKS, MODEL, PACKED, Claim
from secateur.experiments.dense import (
    OnEpoch,
    dataset_of,
    dense_name,
    dense_network,
    hash_of,
    what_determines,
)
from secateur.experiments.plan import Plan
from secateur.experiments.schema import EMPTY
from secateur.experiments.state import TrialState, load_state
from secateur.experiments.work import Work
from secateur.measure.latency import time_inference
from secateur.measure.macs import count_macs
from secateur.measure.memory import measure_average_memory, measure_peak_memory
from secateur.measure.size import bytes_dense, bytes_sparse, count_nonzero, count_parameters
from secateur.pruning.selection import on_threads
from secateur.pruning.targets import find_targets, sparsity
from secateur.storage import sha256_of
from secateur.structure.saved import save
from secateur.training.checkpoint import save_weights
from secateur.training.evaluate import evaluate_on


def trial_id(plan: Plan, seed: int) -> str:
    """Return the hash of everything that determines the trial: its name in any study."""
    own = {"config": plan.config, "method": plan.method, "measure": plan.measure}
    code = _own_code(plan)
    return hash_of(own | ({"code": code} if code else {}) | what_determines(plan, seed))


def _own_code(plan: Plan) -> dict[str, str]:
    """Return the content, as a hash, of each module of the user's that a step names.

    The recipe was validated, so what it names has been imported: nothing is here.
    """
    text = json.dumps(plan.config["steps"], ensure_ascii=False)
    modules = {name: sys.modules.get(name) for name in re.findall(r'"([\w.]+):\w+"', text)}
    files = {name: getattr(module, "__file__", None) for name, module in modules.items()}
    return {name: sha256_of(Path(file)) for name, file in sorted(files.items()) if file is not None}


def run_trial(plan: Plan, seed: int, folder: Path, dense_folder: Path, on_epoch: OnEpoch) -> dict[str, Any]:
    """Run one trial in ``folder`` and return its row of ``results.json``.

    A trial that was killed goes on from its last checkpoint. The test set is read at the end, once
    every choice has been made.
    """
    with Claim(folder) as claim:
        return run_claimed(plan, seed, claim, dense_folder, on_epoch)


def run_claimed(plan: Plan, seed: int, claim: Claim, dense_folder: Path, on_epoch: OnEpoch) -> dict[str, Any]:
    """Do what ``run_trial`` does, in a folder that this process has claimed."""
    with on_threads(plan.threads):
        data = dataset_of(plan)
        dense, info = dense_network(plan, seed, data, dense_folder, on_epoch)
        begun: dict[str, Any] = {"curves": {"dense": info["curve"]}, "seconds": {"train": info["seconds"]}}
        state = load_state(plan, seed, dense, claim.folder) or TrialState(copy.deepcopy(dense), **begun)
        work = Work(plan, seed, data, dense, claim, on_epoch, state)
        for action in plan.actions[state.done :]:
            start, trained = time.perf_counter(), state.seconds.get("retrain", 0.0)
            action.run(work)
            trained = state.seconds.get("retrain", 0.0) - trained
            if action.timed_as != "retrain":
                work.spent(action.timed_as, time.perf_counter() - start - trained)
            state.done += 1
            work.save()
        result = _result(plan, seed, data, dense, state)
        claim.finish(result, _final_files(state, claim))
        return result


def _final_files(state: TrialState, claim: Claim) -> dict[str, Path]:
    """Write what the trial leaves, in parts, by the names that they are to have."""
    files = {MODEL: claim.part("final-model")}
    if state.compacted:
        save(state.model, files[MODEL])
    else:
        save_weights(files[MODEL], state.model)
    if state.masks is not None:
        files[MASKS] = claim.part("final-masks")
        state.masks.save(files[MASKS])
    if state.packed is not None:
        files[PACKED] = claim.part("final-packed")
        shutil.copyfile(state.packed, files[PACKED])  # the state keeps its own until the result is there
    return files


def failed_row(plan: Plan, seed: int, error: str) -> dict[str, Any]:
    """Return the row of a trial that has no result."""
    own = {"id": trial_id(plan, seed), "method": plan.method, "point": plan.point, "seed": seed}
    said = f"{plan.method} {plan.point} seed {seed} failed: {error}"
    return EMPTY | own | {"state": "failed", "notes": [said]}


def _result(plan: Plan, seed: int, data: Dataset, dense: nn.Module, state: TrialState) -> dict[str, Any]:
    start = time.perf_counter()
    metrics = _sizes(dense, state) | _accuracies(data, dense, state) | _costs(plan, data, dense, state.model)
    classes = by_class(data, dense, state.model)
    state.seconds["measure"] = time.perf_counter() - start
    epochs = {step: len(rows) for step, rows in state.curves.items()}
    masks, said = state.masks, [[data.note] if data.note else [], *state.notes.values()]
    return {
        "id": trial_id(plan, seed),
        "method": plan.method,
        "state": "finished",
        "point": plan.point,
        "seed": seed,
        "requested": {"sparsity": state.requested},
        "metrics": metrics,
        "layers": _layer_rows(state.model, dense) if state.structured else masks.layers() if masks else [],
        "curves": state.curves,
        "stages": state.stages,
        "seconds": state.seconds,
        "epochs": {"dense": epochs.pop("dense", 0), "retrain": sum(epochs.values())},
        "notes": list(dict.fromkeys(note for notes in said for note in notes)),
        "config": plan.config,
        "dense": None if plan.model.weights else dense_name(plan, seed),
        "classes": len(data.classes),
        "by_class": classes,
    }


def _sizes(dense: nn.Module, state: TrialState) -> dict[str, Any]:
    parameters, nonzero = count_parameters(state.model), count_nonzero(state.model)
    packed: dict[str, Any] = {}
    if state.bytes_packed is not None:
        rate = bytes_dense(dense) / state.bytes_packed
        packed = {"bytes_packed": state.bytes_packed, "compression_packed": rate}
    masks = None if state.structured else state.masks
    return {
        "sparsity": sparsity(state.model, dense) if masks is None else masks.sparsity,
        "compression_rate": count_parameters(dense) / max(1, nonzero),
        "parameters": parameters,
        "nonzero": nonzero,
        "bytes_dense": bytes_dense(state.model),
        "bytes_sparse": bytes_sparse(state.model),
        **packed,
    }


def _accuracies(data: Dataset, dense: nn.Module, state: TrialState) -> dict[str, Any]:
    retrained = state.model if state.retrained else None
    networks = {"dense": dense, "pruned": state.pruned, "retrained": retrained}
    result: dict[str, Any] = {}
    for name, network in networks.items():
        for split, suffix in ((data.test, ""), (data.validation, "_validation")):
            value = None if network is None else evaluate_on(network, split).accuracy
            result[f"accuracy_{name}{suffix}"] = value
    return result


def _costs(plan: Plan, data: Dataset, dense: nn.Module, model: nn.Module) -> dict[str, Any]:
    """What one inference costs, on a batch of one; of the timings, those the recipe asks for."""
    example = data.validation.inputs[:1].to(next(model.parameters()).device)
    macs = count_macs(model, example)
    costs: dict[str, Any] = {
        "macs": macs.dense,
        "macs_effective": macs.effective,
        "macs_dense": count_macs(dense, example).dense,
    }
    if "latency" in plan.measure:
        timings = time_inference({"model": model, "dense": dense}, example, seconds=0.3)
        costs["latency_ms"] = timings["model"].median * 1e3
        costs["latency_dense_ms"] = timings["dense"].median * 1e3
    if "memory" in plan.measure:
        for whose, network in (("", model), ("_dense", dense)):
            peak = measure_peak_memory(network, example)
            costs[f"peak_memory{whose}_mb"] = None if peak is None else peak / 1e6
            costs[f"average_memory{whose}_mb"] = measure_average_memory(network, example) / 1e6
    return costs


def _layer_rows(model: nn.Module, dense: nn.Module) -> list[dict[str, Any]]:
    """One row a target of the dense network: how many of its weights are left and not zero. A layer
    that went with its whole block has none."""
    now = find_targets(model)
    kept = {name: int(torch.count_nonzero(target.weight)) for name, target in now.items()}
    return [
        {
            "name": name,
            "shape": list(now[name].weight.shape) if name in now else [],
            "weights": target.weight.numel(),
            "kept": kept.get(name, 0),
            "sparsity": 1 - kept.get(name, 0) / target.weight.numel(),
            "requested": None,
        }
        for name, target in find_targets(dense).items()
    ]
