"""A training run on disk, exactly: weights, best weights, optimizer state and history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.errors import StorageError
from secateur.storage import all_finite, load_tensors, save_tensors
from secateur.structure.saved import check_finite, load

State = dict[str, Tensor]
T = TypeVar("T")


def save_weights(path: str | Path, model: nn.Module, **metadata: Any) -> None:
    """Write the model's state dict as safetensors."""
    save_tensors(path, model.state_dict(), metadata)


def load_network(path: str | Path, model: nn.Module) -> bool:
    """Fill ``model`` with a state dict, or with what ``secateur.save`` wrote, its shapes too; return
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
    """Load a state dict that has been read from the file ``where``, all of it or nothing."""
    tensors = _under_todays_names(model, tensors)
    _check_state(model, tensors, where)
    model.load_state_dict(tensors)


def _under_todays_names(model: nn.Module, tensors: State) -> State:
    """Return a state dict as the model's own hooks on loading read it: they know older names (those of
    ``torch.nn.utils.weight_norm``) and what older files lack (batch norm's counter)."""
    if tensors.keys() == model.state_dict(keep_vars=True).keys():
        return tensors
    skeleton = deepcopy(model).to("meta")
    try:
        differ = skeleton.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError:  # sizes, which the check names
        return tensors
    return tensors if differ.missing_keys or differ.unexpected_keys else skeleton.state_dict()


def _check_state(model: nn.Module, tensors: State, where: str) -> None:
    expected = model.state_dict(keep_vars=True)
    for name in expected:
        if name not in tensors:
            raise StorageError(
                f"{where}: lacks {name!r}, which {type(model).__name__} has"
                + _under_another_prefix(name, tensors)
            )
        if tensors[name].shape != expected[name].shape:
            raise StorageError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)} there and "
                f"{tuple(expected[name].shape)} in {type(model).__name__}"
            )
        if tensors[name].dtype != expected[name].dtype:
            raise StorageError(
                f"{where}: {name} is {tensors[name].dtype} there and {expected[name].dtype} in "
                f"{type(model).__name__}; secateur convert --dtype makes it another"
            )
    extra = next((name for name in tensors if name not in expected), None)
    if extra is not None:
        raise StorageError(
            f"{where}: holds {extra!r}, which {type(model).__name__} does not have; "
            "secateur convert --drop leaves out what a network does not need"
        )
    check_finite(expected, tensors, where)


def _under_another_prefix(name: str, tensors: State) -> str:
    _, _, inner = name.partition(".")
    if inner in tensors:
        return f"; it has {inner!r}: load it into the inner network, in the factory"
    outer = next((other for other in tensors if other.endswith(f".{name}")), None)
    return "" if outer is None else f"; it has {outer!r}: convert strips a prefix of all names"


def save_run(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: State,
    progress: dict[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Write all that a run needs to go on as if it had never stopped."""
    states = {"model": model.state_dict(), "best": best}
    states |= {} if average is None else {"average": average.state_dict()}
    tensors = {f"{kind}/{name}": tensor for kind, state in states.items() for name, tensor in state.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    save_tensors(path, tensors, {"secateur": "training 1", "optimizer": plain, "progress": progress})


def load_run(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress_of: Callable[[Any], T],
    average: nn.Module | None = None,
) -> tuple[State, T]:
    """Undo ``save_run``: load model, optimizer and average, return (best weights, progress).

    ``progress_of`` makes the progress of what was saved. A ValueError, TypeError or KeyError of its means
    a damaged file, as everything does that does not fit: a StorageError, and nothing has been changed.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("secateur") != "training 1":
        raise StorageError(f"{path}: not a training checkpoint")
    groups: dict[str, State] = {"model": {}, "best": {}, "optimizer": {}, "average": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind not in groups:
            raise StorageError(f"{path}: {name!r} is no part of a training checkpoint")
        groups[kind][rest] = tensor
    for part in ("model", "best", *([] if average is None else ["average"])):
        _check_state(model, groups[part], str(path))
    try:
        progress = progress_of(metadata["progress"])
        state = _optimizer_state(groups["optimizer"], metadata["optimizer"], optimizer)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(f"{path}: its progress or its optimizer's state is damaged: {error}") from error
    model.load_state_dict(groups["model"])
    if average is not None:
        average.load_state_dict(groups["average"])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return groups["best"], progress


def _optimizer_state(
    tensors: State, plain: Mapping[str, Mapping[str, Any]], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """Return the state by parameter; raises ValueError where it cannot be that of ``optimizer``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain.items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    keys = {frozenset(values) for values in state.values()}
    if len(keys) > 1 or not state.keys() <= set(range(len(parameters))):
        raise ValueError("it is not of this optimizer's parameters, or not the same for all of them")
    for index, values in state.items():
        for key, value in values.items():
            shape = value.shape if isinstance(value, Tensor) else ()
            if shape not in ((), parameters[index].shape) or not _finite(value):
                raise ValueError(f"{key!r} of parameter {index} has another shape, or is not finite")
    return state


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return all_finite(value)
    return value is None or type(value) in (int, float, bool)
