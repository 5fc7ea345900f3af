"""One trial: one point of a recipe with one seed, from the dense network to its measured result."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.data.dataset import Dataset
from secateur.errors import SecateurWarning
from secateur.experiments.actions import Action, Compact, Cut, CutTo, Refit, Scratch, actions
from secateur.experiments.choices import make
from secateur.experiments.dense import (
    OnEpoch,
    calibration_batches,
    dataset_of,
    dense_network,
    hash_of,
    scratch_model,
    what_determines,
)
from secateur.experiments.recipe import Plan, make_schedule
from secateur.experiments.structural import compacted, layer_rows, pruned_to, refit, traced
from secateur.measure.latency import time_inference
from secateur.measure.macs import count_macs
from secateur.measure.memory import measure_peak_memory
from secateur.measure.size import bytes_dense, bytes_sparse, count_nonzero, count_parameters
from secateur.pruning.masks import Masks
from secateur.pruning.prune import Block, prune
from secateur.pruning.targets import sparsity
from secateur.storage import load_tensors, pack_bits, save_json, save_tensors, unpack_bits
from secateur.structure.saved import load, save
from secateur.training.batches import seed_of
from secateur.training.checkpoint import State, load_state, save_weights
from secateur.training.evaluate import evaluate_on
from secateur.training.fit import fit


@dataclass
class TrialState:
    """How far a trial has come, all of it on disk after every action."""

    model: nn.Module
    done: int = 0
    masks: Masks | None = None
    pruned: State | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    retrained: bool = False
    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] | None = None
    structured: bool = False
    compacted: bool = False


def trial_id(plan: Plan, seed: int) -> str:
    """Return the hash of everything that determines the trial: its name in any study."""
    return hash_of({"config": plan.config, "method": plan.method} | what_determines(plan, seed))


def run_trial(plan: Plan, seed: int, folder: Path, dense_folder: Path, on_epoch: OnEpoch) -> dict[str, Any]:
    """Run one trial in ``folder`` and return its row of ``results.json``.

    A trial that was killed goes on from its last checkpoint. The test set is read at the end, once
    every choice has been made.
    """
    torch.set_num_threads(plan.threads)
    data = dataset_of(plan)
    dense, dense_info = dense_network(plan, seed, data, dense_folder, on_epoch)
    state = _begin(plan, seed, dense, folder, dense_info)
    todo = actions(plan)
    for index in range(state.done, len(todo)):
        _act(todo[index], state, plan, seed, data, dense, folder, on_epoch)
        state.done = index + 1
        _save(state, folder)
    result = _result(plan, seed, data, dense, state)
    if state.compacted:
        save(state.model, folder / "model.safetensors")
    else:
        save_weights(folder / "model.safetensors", state.model)
    if state.masks is not None:
        state.masks.save(folder / "masks.safetensors")
    save_json(folder / "result.json", result)
    for leftover in ("state.safetensors", "training.safetensors", "compact.safetensors"):
        (folder / leftover).unlink(missing_ok=True)
    return result


def failed_row(plan: Plan, seed: int, error: str) -> dict[str, Any]:
    """Return the row of a trial that has no result."""
    return {
        "id": trial_id(plan, seed),
        "method": plan.method,
        "state": "failed",
        "point": plan.point,
        "seed": seed,
        "requested": {"sparsity": None},
        "metrics": {},
        "layers": [],
        "curves": {},
        "seconds": {},
        "epochs": {},
        "notes": [f"{plan.method} {plan.point} seed {seed} failed: {error}"],
    }


def _act(
    action: Action,
    state: TrialState,
    plan: Plan,
    seed: int,
    data: Dataset,
    dense: nn.Module,
    folder: Path,
    on_epoch: OnEpoch,
) -> None:
    start = time.perf_counter()
    if isinstance(action, Cut):
        state.masks = _cut(action, state, data, seed)
        state.structured = state.structured or action.spec.units
        state.notes = list(state.masks.notes)
        state.pruned = _snapshot(state.model)
        kind, spent = "prune", time.perf_counter() - start
    elif isinstance(action, Refit):
        state.notes += refit(state.model, dense, state.masks, data, action.spec, seed)
        state.pruned = _snapshot(state.model)
        kind, spent = "refit", time.perf_counter() - start
    elif isinstance(action, CutTo):
        state.model, note = pruned_to(state.model, data, action.spec, seed)
        state.masks, state.pruned = None, _snapshot(state.model)
        state.notes.append(note)
        state.structured = state.compacted = True
        kind, spent = "prune", time.perf_counter() - start
    elif isinstance(action, Compact):
        state.model, state.masks, note = compacted(state.model, state.masks, data)
        state.notes.append(note)
        state.structured = state.compacted = True
        kind, spent = "compact", time.perf_counter() - start
    else:
        if isinstance(action, Scratch):
            state.model, state.options = scratch_model(plan, action.options, seed), action.options
            state.masks, state.pruned = None, None
        checkpoint = folder / "training.safetensors"
        history = fit(
            state.model,
            data.train,
            data.validation,
            action.training,
            seed=seed_of(seed, action.step),
            masks=state.masks,
            checkpoint=checkpoint,
            on_epoch=lambda row: on_epoch(action.step, row),
        )
        checkpoint.unlink(missing_ok=True)
        state.curves[action.step] = history.as_dicts()
        state.retrained = state.retrained or action.training.epochs > 0
        kind, spent = "retrain", history.seconds
    state.seconds[kind] = state.seconds.get(kind, 0.0) + spent


def _fits(model: nn.Module, state: State) -> bool:
    return all(tensor.shape == state[name].shape for name, tensor in model.state_dict().items())


def _snapshot(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _cut(action: Cut, state: TrialState, data: Dataset, seed: int) -> Masks:
    spec = action.spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecateurWarning)  # the masks' notes say the same in the report
        return prune(
            state.model,
            make("criterion", spec.criterion),
            make_schedule(spec)[action.level],
            shrinkage=None if spec.units else make("shrinkage", spec.shrinkage),
            granularity=None if spec.block is None else Block(*spec.block),
            data=calibration_batches(data.train, spec.calibration, seed),
            include=spec.include,
            exclude=spec.exclude,
            masks=state.masks,
            structure=traced(state.model, data) if spec.units else None,
            round_to=spec.round_to,
            min_kept=spec.min_kept,
        )


def _result(plan: Plan, seed: int, data: Dataset, dense: nn.Module, state: TrialState) -> dict[str, Any]:
    start = time.perf_counter()
    metrics = _sizes(dense, state) | _accuracies(data, dense, state) | _costs(plan, data, dense, state.model)
    state.seconds["measure"] = time.perf_counter() - start
    masks = state.masks
    return {
        "id": trial_id(plan, seed),
        "method": plan.method,
        "state": "finished",
        "point": plan.point,
        "seed": seed,
        "requested": {"sparsity": None if masks is None or state.structured else masks.requested_overall},
        "metrics": metrics,
        "layers": layer_rows(state.model, dense) if state.structured else masks.layers() if masks else [],
        "curves": state.curves,
        "seconds": state.seconds,
        "epochs": {"dense": len(state.curves.get("dense", [])), "retrain": _epochs(state)},
        "notes": [*([data.note] if data.note else []), *state.notes],
        "config": plan.config,
        "classes": len(data.classes),
    }


def _sizes(dense: nn.Module, state: TrialState) -> dict[str, Any]:
    parameters, nonzero = count_parameters(state.model), count_nonzero(state.model)
    return {
        "sparsity": sparsity(state.model, dense)
        if state.masks is None or state.structured
        else state.masks.sparsity,
        "compression_rate": count_parameters(dense) / max(1, nonzero),
        "parameters": parameters,
        "nonzero": nonzero,
        "bytes_dense": bytes_dense(state.model),
        "bytes_sparse": bytes_sparse(state.model),
    }


def _accuracies(data: Dataset, dense: nn.Module, state: TrialState) -> dict[str, Any]:
    networks: dict[str, nn.Module | None] = {"dense": dense, "pruned": None, "retrained": None}
    if state.pruned is not None:
        full_size = state.compacted and not _fits(state.model, state.pruned)
        networks["pruned"] = copy.deepcopy(dense if full_size else state.model)
        networks["pruned"].load_state_dict(state.pruned)
    if state.retrained:
        networks["retrained"] = state.model
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
    costs: dict[str, Any] = {"macs": macs.dense, "macs_effective": macs.effective}
    if "latency" in plan.measure:
        timings = time_inference({"model": model, "dense": dense}, example, seconds=0.3)
        costs["latency_ms"] = timings["model"].median * 1e3
        costs["latency_dense_ms"] = timings["dense"].median * 1e3
    if "memory" in plan.measure:
        peak = measure_peak_memory(model, example)
        costs["peak_memory_mb"] = None if peak is None else peak / 1e6
    return costs


def _epochs(state: TrialState) -> int:
    return sum(len(rows) for step, rows in state.curves.items() if step != "dense")


def _begin(plan: Plan, seed: int, dense: nn.Module, folder: Path, dense_info: dict[str, Any]) -> TrialState:
    state = TrialState(copy.deepcopy(dense))
    state.curves["dense"] = dense_info["curve"]
    state.seconds["train"] = dense_info["seconds"]
    path = folder / "state.safetensors"
    if not path.exists():
        return state
    tensors, saved = load_tensors(path)
    groups: dict[str, State] = {"model": {}, "pruned": {}, "mask": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        groups[kind][rest] = tensor
    if saved["options"] is not None:
        state.model, state.options = scratch_model(plan, saved["options"], seed), saved["options"]
    if saved["compacted"]:
        state.model = load(state.model, folder / "compact.safetensors")
    load_state(state.model, groups["model"], str(path))
    if groups["mask"]:
        kept = {n: unpack_bits(t, tuple(saved["shapes"][n])) for n, t in groups["mask"].items()}
        state.masks = Masks(
            state.model,
            {name: mask.to(next(state.model.parameters()).device) for name, mask in kept.items()},
            requested=saved["requested"],
            requested_overall=saved["requested_overall"],
            notes=tuple(saved["notes"]),
        )
    state.pruned = groups["pruned"] or None
    state.done, state.curves, state.seconds = saved["done"], saved["curves"], saved["seconds"]
    state.retrained, state.notes = saved["retrained"], saved["notes"]
    state.structured, state.compacted = saved["structured"], saved["compacted"]
    return state


def _save(state: TrialState, folder: Path) -> None:
    if state.compacted:
        save(state.model, folder / "compact.safetensors")
    tensors = {f"model/{n}": t for n, t in state.model.state_dict().items()}
    tensors |= {f"pruned/{n}": t for n, t in (state.pruned or {}).items()}
    masks = state.masks
    if masks is not None:
        tensors |= {f"mask/{n}": pack_bits(m) for n, m in masks.items()}
    metadata = {
        "done": state.done,
        "curves": state.curves,
        "seconds": state.seconds,
        "retrained": state.retrained,
        "notes": state.notes,
        "options": state.options,
        "structured": state.structured,
        "compacted": state.compacted,
        "shapes": {} if masks is None else {n: list(m.shape) for n, m in masks.items()},
        "requested": {} if masks is None else masks.requested,
        "requested_overall": None if masks is None else masks.requested_overall,
    }
    save_tensors(folder / "state.safetensors", tensors, metadata)
