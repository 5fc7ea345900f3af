"""How far a trial has come: in memory and, after every action, on disk."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.experiments.dense import scratch_model
from secateur.experiments.recipe import Plan
from secateur.pruning.masks import Masks
from secateur.storage import load_json, load_tensors, save_json, save_tensors
from secateur.structure.saved import load, save

_FILE = "state.json"


@dataclass
class TrialState:
    """The network and what has been done to it.

    ``pruned``: the network after its last pruning, before what was trained since; ``retrained``: whether
    anything was. ``requested``: the sparsity of the dense network that was asked for last. ``structured``:
    whole units are gone, in masks or (``compacted``) for real. ``options``: those of a network from
    scratch. ``notes``: by step. ``stages``: those of an annealing, by step, and ``annealed`` the tensors
    of the network with branches that is under way. ``bytes_packed``: of the file that holds the network.
    """

    model: nn.Module
    done: int = 0
    masks: Masks | None = None
    pruned: nn.Module | None = None
    requested: float | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    stages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    annealed: dict[str, Tensor] | None = None
    retrained: bool = False
    structured: bool = False
    compacted: bool = False
    options: dict[str, Any] | None = None
    bytes_packed: int | None = None


_PLAIN = (
    "done",
    "requested",
    "curves",
    "seconds",
    "notes",
    "stages",
    "retrained",
    "structured",
    "compacted",
    "options",
    "bytes_packed",
)


def save_state(state: TrialState, folder: Path) -> None:
    """Write the state; a kill at any moment leaves this one or the one before."""
    progress = [*state.curves.values(), *state.stages.values()]
    stamp = f"{state.done}-{sum(map(len, progress))}.part"
    files = {"model": f"model-{stamp}"}
    save(state.model, folder / files["model"])
    if state.pruned is not None:
        files["pruned"] = f"pruned-{stamp}"
        save(state.pruned, folder / files["pruned"])
    if state.masks is not None:
        files["masks"] = f"masks-{stamp}"
        state.masks.save(folder / files["masks"])
    if state.annealed is not None:
        files["annealed"] = f"annealed-{stamp}"
        save_tensors(folder / files["annealed"], state.annealed)
    save_json(folder / _FILE, {name: getattr(state, name) for name in _PLAIN} | {"files": files})
    _remove(folder, set(files.values()))


def fresh_network(plan: Plan, seed: int, dense: nn.Module, options: dict[str, Any] | None) -> nn.Module:
    """Return a network at its full size, to take the shapes and values of a saved one; ``options``: those
    of one from scratch."""
    return scratch_model(plan, options, seed) if options else copy.deepcopy(dense)


def load_state(plan: Plan, seed: int, dense: nn.Module, folder: Path) -> TrialState | None:
    """Return the state in a trial's folder, or None."""
    if not (folder / _FILE).exists():
        return None
    saved = load_json(folder / _FILE)

    def network(file: str) -> nn.Module:
        return load(fresh_network(plan, seed, dense, saved["options"]), folder / file)

    files = saved["files"]
    model = network(files["model"])
    return TrialState(
        model,
        masks=Masks.load(folder / files["masks"], model) if "masks" in files else None,
        pruned=network(files["pruned"]) if "pruned" in files else None,
        annealed=load_tensors(folder / files["annealed"])[0] if "annealed" in files else None,
        **{name: saved[name] for name in _PLAIN if name in saved},
    )


def remove_state(folder: Path) -> None:
    """Remove what only an unfinished trial needs."""
    (folder / _FILE).unlink(missing_ok=True)
    (folder / "training.safetensors").unlink(missing_ok=True)
    _remove(folder, set())


def _remove(folder: Path, keep: set[str]) -> None:
    for part in folder.glob("*.part"):
        if part.name not in keep:
            part.unlink()
