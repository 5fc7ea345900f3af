"""How far a trial has come: in memory and, after every action, on disk."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ValidationError, create_model
from torch import Tensor, nn

from secateur.errors import SecateurError, StorageError
from secateur.experiments.claim import Claim, Snapshot, newest_snapshots, write_snapshot
from secateur.experiments.dense import scratch_model
from secateur.experiments.plan import Plan
from secateur.experiments.schema import renewed
from secateur.pruning.masks import Masks
from secateur.storage import load_tensors, save_tensors
from secateur.structure.saved import load, save

_log = logging.getLogger(__name__)


@dataclass
class TrialState:
    """The network and what has been done to it.

    ``pruned``: the network after its last pruning, before what was trained since; ``retrained``: whether
    anything was. ``requested``: the sparsity of the dense network that was asked for last. ``structured``:
    whole units are gone, in masks or (``compacted``) for real. ``options``: those of a network from
    scratch. ``notes``: by step. ``stages``: those of an annealing, by step, and ``annealed`` the tensors
    of the network with branches that is under way. ``packed``: the file that holds the network, and
    ``bytes_packed`` its size.
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
    packed: Path | None = None
    bytes_packed: int | None = None


# What a saved state has files for, besides the packed one, and what writes them.
_WRITTEN: dict[str, Callable[[Any, Path], None]] = {
    "model": save,
    "pruned": save,
    "masks": Masks.save,
    "annealed": lambda tensors, path: save_tensors(path, tensors),
}
_PLAIN: Any = {
    name: (kind, ...)
    for name, kind in get_type_hints(TrialState).items()
    if name not in (*_WRITTEN, "packed")
}
_Values = create_model("_Values", **_PLAIN)


def save_state(state: TrialState, claim: Claim) -> None:
    """Write the state; a kill at any moment leaves this one or the one before."""
    files = {} if state.packed is None else {"packed": state.packed}
    for name, write in _WRITTEN.items():
        if getattr(state, name) is not None:
            files[name] = claim.part(f"state-{name}")
            write(getattr(state, name), files[name])
    values = {name: getattr(state, name) for name in _Values.model_fields}
    write_snapshot(claim, "state", values, files, ends=("training",))


def fresh_network(plan: Plan, seed: int, dense: nn.Module, options: dict[str, Any] | None) -> nn.Module:
    """Return a network at its full size, to take the shapes and values of a saved one; ``options``: those
    of one from scratch."""
    return scratch_model(plan, options, seed) if options else copy.deepcopy(dense)


def load_state(plan: Plan, seed: int, dense: nn.Module, folder: Path) -> TrialState | None:
    """Return the newest state in a trial's folder that is whole, or None."""
    begun = any(folder.glob("state*.json"))
    for snapshot in newest_snapshots(folder, "state"):
        try:
            return _restored(snapshot, plan, seed, dense)
        except (SecateurError, ValidationError):
            continue  # of another version of secateur, say
    if begun:
        _log.warning("%s: no state there is whole and of this version; the trial starts anew", folder)
    return None


def _restored(snapshot: Snapshot, plan: Plan, seed: int, dense: nn.Module) -> TrialState:
    values: Any = _Values.model_validate(snapshot.values)
    files = snapshot.files
    if "model" not in files:
        raise StorageError("a state without its network")

    def network(file: str) -> nn.Module:
        return load(fresh_network(plan, seed, dense, values.options), files[file])

    model = network("model")
    values.curves = {step: [renewed(row) for row in rows] for step, rows in values.curves.items()}
    return TrialState(
        model,
        masks=Masks.load(files["masks"], model) if "masks" in files else None,
        pruned=network("pruned") if "pruned" in files else None,
        annealed=load_tensors(files["annealed"])[0] if "annealed" in files else None,
        packed=files.get("packed"),
        **dict(values),
    )
