"""How far a trial has come: in memory and, after every action, on disk."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.experiments.dense import scratch_model
from secateur.experiments.recipe import Plan
from secateur.pruning.masks import Masks
from secateur.storage import load_tensors, pack_bits, save_tensors, unpack_bits
from secateur.structure.saved import load, save

_FILE = "state.safetensors"


@dataclass
class TrialState:
    """The network and what has been done to it.

    ``pruned``: the network after its last pruning, before what was trained since; ``retrained``: whether
    anything was. ``requested``: the sparsity of the dense network that was asked for last. ``structured``:
    whole units are gone, in masks or (``compacted``) for real. ``options``: those of a network from
    scratch. ``notes``: by step.
    """

    model: nn.Module
    done: int = 0
    masks: Masks | None = None
    pruned: nn.Module | None = None
    requested: float | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    retrained: bool = False
    structured: bool = False
    compacted: bool = False
    options: dict[str, Any] | None = None


_PLAIN = (
    "done",
    "requested",
    "curves",
    "seconds",
    "notes",
    "retrained",
    "structured",
    "compacted",
    "options",
)


def save_state(state: TrialState, folder: Path) -> None:
    """Write the state; a kill at any moment leaves this one or the one before."""
    stamp = f"{state.done}-{sum(map(len, state.curves.values()))}"
    files: dict[str, str | None] = {"model": f"model-{stamp}.part", "pruned": None}
    save(state.model, folder / f"model-{stamp}.part")
    if state.pruned is not None:
        files["pruned"] = f"pruned-{stamp}.part"
        save(state.pruned, folder / f"pruned-{stamp}.part")
    masks = state.masks
    kept = {} if masks is None else dict(masks.items())
    metadata = {name: getattr(state, name) for name in _PLAIN} | {
        "files": files,
        "masks": None
        if masks is None
        else {
            "shapes": {name: list(mask.shape) for name, mask in kept.items()},
            "requested": masks.requested,
            "requested_overall": masks.requested_overall,
            "notes": list(masks.notes),
        },
    }
    save_tensors(folder / _FILE, {name: pack_bits(mask) for name, mask in kept.items()}, metadata)
    _remove(folder, set(files.values()))


def load_state_of(plan: Plan, seed: int, dense: nn.Module, folder: Path) -> TrialState | None:
    """Return the state in a trial's folder, or None."""
    if not (folder / _FILE).exists():
        return None
    tensors, saved = load_tensors(folder / _FILE)
    networks: dict[str, nn.Module | None] = {"pruned": None}
    for name, file in saved["files"].items():
        if file is not None:
            again = scratch_model(plan, saved["options"], seed) if saved["options"] else copy.deepcopy(dense)
            networks[name] = load(again, folder / file)
    model = networks["model"]
    assert model is not None
    masks, about = None, saved["masks"]
    if about is not None:
        device = next(model.parameters()).device
        kept = {n: unpack_bits(t, tuple(about["shapes"][n])).to(device) for n, t in tensors.items()}
        masks = Masks(
            model,
            kept,
            requested=about["requested"],
            requested_overall=about["requested_overall"],
            notes=tuple(about["notes"]),
        )
    plain = {name: saved[name] for name in _PLAIN}
    return TrialState(model, masks=masks, pruned=networks["pruned"], **plain)


def remove_state(folder: Path) -> None:
    """Remove what only an unfinished trial needs."""
    (folder / _FILE).unlink(missing_ok=True)
    (folder / "training.safetensors").unlink(missing_ok=True)
    _remove(folder, set())


def _remove(folder: Path, keep: set[str | None]) -> None:
    for part in folder.glob("*.part"):
        if part.name not in keep:
            part.unlink()
