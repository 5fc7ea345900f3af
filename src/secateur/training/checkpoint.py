"""A training run on disk, exactly: weights, best weights, optimizer state and history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import StorageError
from secateur.storage import load_tensors, save_tensors
from secateur.structure.saved import load

State = dict[str, Tensor]


def save_weights(path: str | Path, model: nn.Module, **metadata: Any) -> None:
    """Write the model's state dict as safetensors."""
    save_tensors(path, model.state_dict(), metadata)


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Load a state dict into ``model``; every tensor's name, shape and dtype is checked first."""
    tensors, _ = load_tensors(path)
    load_state(model, tensors, str(path))


def load_network(path: str | Path, model: nn.Module) -> bool:
    """Fill ``model`` with a state dict, or with what :func:`secateur.save` wrote, its shapes too; return
    whether it was the latter. Raises StorageError for a file of another kind or of another network."""
    tensors, metadata = load_tensors(path)
    kind = metadata.get("secateur")
    if isinstance(kind, str) and kind.startswith("model "):
        load(model, path)
        return True
    if isinstance(kind, str) and kind.startswith(("masks ", "training ")):
        raise StorageError(f"{path}: holds {kind.split()[0]}, not a network")
    load_state(model, tensors, str(path))
    return False


def load_state(model: nn.Module, tensors: State, where: str) -> None:
    expected = model.state_dict()
    for name in expected:
        if name not in tensors:
            raise StorageError(f"{where}: lacks {name!r}, which {type(model).__name__} has")
        if tensors[name].shape != expected[name].shape:
            raise StorageError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)} there and "
                f"{tuple(expected[name].shape)} in {type(model).__name__}"
            )
        if tensors[name].dtype != expected[name].dtype:
            raise StorageError(
                f"{where}: {name} is {tensors[name].dtype} there and {expected[name].dtype} in "
                f"{type(model).__name__}; convert one of them first"
            )
    extra = next((name for name in tensors if name not in expected), None)
    if extra is not None:
        raise StorageError(f"{where}: holds {extra!r}, which {type(model).__name__} does not have")
    model.load_state_dict(tensors)


def save_run(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, best: State, progress: dict[str, Any]
) -> None:
    """Write all that a run needs to go on as if it had never stopped."""
    tensors = {f"model/{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"best/{n}": t for n, t in best.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    save_tensors(path, tensors, {"secateur": "training 1", "optimizer": plain, "progress": progress})


def load_run(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Any]]:
    """Undo :func:`save_run`: load model and optimizer, return (best weights, progress)."""
    tensors, metadata = load_tensors(path)
    if metadata.get("secateur") != "training 1":
        raise StorageError(f"{path}: not a training checkpoint")
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in metadata["optimizer"].items()}
    groups: dict[str, State] = {"model": {}, "best": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            index, _, key = rest.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        else:
            groups[kind][rest] = tensor
    load_state(model, groups["model"], str(path))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return groups["best"], metadata["progress"]
