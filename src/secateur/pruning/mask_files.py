"""What masks are outside the process: packed bits, and plain data that is checked before it is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import MaskError, StorageError
from secateur.graph.names import canonical_parameters
from secateur.numeric import is_real, is_whole
from secateur.shards import placed, settle, whole
from secateur.storage import pack_bits, unpack_bits
from secateur.text import nearest, shown

_KIND = "masks 1"
_METADATA = "secateur.masks"  # where a state dict, which holds tensors alone, keeps the rest


def packed(kept: Mapping[str, Tensor], fields: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (masks as bits, metadata) of masks and their other ``fields``."""
    shapes = {name: list(mask.shape) for name, mask in kept.items()}
    return {n: pack_bits(whole(m)) for n, m in kept.items()}, {"secateur": _KIND, "shapes": shapes, **fields}


def as_state(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return both in a flat dict of tensors, which any checkpoint can hold."""
    text = json.dumps(metadata, sort_keys=True, allow_nan=False).encode()
    return {**tensors, _METADATA: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def from_state(state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Undo ``as_state``; StorageError for what it did not make."""
    text = state.get(_METADATA) if isinstance(state, Mapping) else None
    if not isinstance(text, Tensor) or text.dtype != torch.uint8:
        raise StorageError(f"the state is not one of masks: it has no tensor {_METADATA!r} of bytes")
    try:
        metadata = json.loads(bytes(text.reshape(-1).tolist()))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"the state of masks is damaged: {error}") from error
    tensors = {name: tensor for name, tensor in state.items() if name != _METADATA}
    return tensors, metadata if isinstance(metadata, dict) else {}


def unpacked(
    tensors: Mapping[Any, Any], metadata: Mapping[str, Any], what: Any, model: nn.Module
) -> dict[str, Any]:
    """Return the masks and their other fields, checked against themselves and against ``model``.

    Raises StorageError for what no masks were ever saved as, MaskError for masks of another network.
    """
    shapes = metadata.get("shapes")
    if metadata.get("secateur") != _KIND or not isinstance(shapes, dict):
        raise StorageError(f"{what}: not a file of masks (its metadata lack 'secateur: {_KIND}')")
    if set(shapes) != set(tensors):
        raise StorageError(f"{what}: the shapes and the tensors do not name the same parameters")
    if not _by_name(lambda shape: isinstance(shape, list) and all(map(_is_count, shape)))(shapes):
        raise StorageError(f"{what}: its shapes are not lists of sizes by printable name")
    fields = {name: metadata.get(name, default) for name, (default, _, _) in FIELDS.items()}
    for name, (_, right, means) in FIELDS.items():
        if not right(fields[name]):
            raise StorageError(f"{what}: its {name!r} is {shown(repr(fields[name]))}; {means} is right")
    for name, number in fields["dense"].items():
        if name not in shapes or number < math.prod(shapes[name]):
            raise StorageError(
                f"{what}: its 'dense' gives {name!r} {number} entries, fewer than its mask has"
            )
    kept = _matched(tensors, shapes, what, model)
    units = {name: (left, of) for name, (left, of) in fields["units"].items()}
    return {**fields, "kept": kept, "notes": tuple(fields["notes"]), "units": units}


def _matched(
    tensors: Mapping[str, Any], shapes: dict[str, list[int]], what: Any, model: nn.Module
) -> dict[str, Tensor]:
    settle(model)
    parameters = canonical_parameters(model)
    kept = {}
    for name, shape in shapes.items():
        if name not in parameters:
            raise MaskError(
                f"{what}: {type(model).__name__} has no parameter {name!r}{nearest(name, parameters)}"
            )
        if list(parameters[name].shape) != shape:
            raise MaskError(
                f"{what}: {name} has shape {tuple(shape)} there and "
                f"{tuple(parameters[name].shape)} in the model"
            )
        if not isinstance(tensors[name], Tensor):
            raise StorageError(f"{what}: {name} is a {type(tensors[name]).__name__}, not a tensor")
        try:
            mask = unpack_bits(tensors[name].detach().cpu(), tuple(shape))
        except StorageError as error:
            raise StorageError(f"{what}: {name}: {error}") from error
        kept[name] = placed(mask, parameters[name]).to(parameters[name].device)
    return kept


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)) and value[0] <= value[1]


def _by_name(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(name.isprintable() and right(part) for name, part in value.items())
    )


FIELDS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "requested": ({}, _by_name(is_real), "a share by tensor or group"),
    "requested_overall": (None, lambda value: value is None or is_real(value), "a share or null"),
    "notes": (
        [],
        lambda value: isinstance(value, list) and all(isinstance(n, str) and n.isprintable() for n in value),
        "a list of printable lines",
    ),
    "units": ({}, _by_name(_is_part), "[kept, of how many] by group"),
    "dense": ({}, _by_name(_is_count), "a number of entries by tensor"),
}
