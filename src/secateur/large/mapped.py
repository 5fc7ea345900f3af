"""A folder of transformers as a model whose parameters are pages of its files: nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import StorageError
from secateur.pretrained.opening import class_of
from secateur.pretrained.writing import PLAN
from secateur.storage import DTYPES, load_json
from secateur.text import first_line

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_HEADER = 100 << 20  # bytes, as the safetensors library has it


@contextmanager
def mapped(folder: Path, *, writable: bool = False) -> Iterator[Any]:
    """Yield the model of a folder, its parameters and stored buffers mapped from the files: what is read
    comes from the disk, and with ``writable`` what is changed goes there.

    It is there to be looked at and changed, not to run: buffers that no file holds have no values.

    Raises StorageError for a folder that is none of transformers', or whose files are not those of its class.
    """
    kind = class_of(folder)
    if (folder / PLAN).exists():
        raise StorageError(f"{folder}: its sizes stand in {PLAN}; open it with secateur.from_pretrained")
    maps = {shard: _map(folder / shard, writable) for shard in shards_of(folder)}
    tensors: dict[str, Tensor] = {}
    for shard, whole in maps.items():
        tensors |= _tensors(folder / shard, whole)
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = kind._from_config(config).eval()
        differ = model.load_state_dict(tensors, strict=False, assign=True)
        model.tie_weights()
    except Exception as error:  # whatever transformers and torch raise, this line names the folder
        raise StorageError(
            f"{folder}: cannot be opened: {type(error).__name__}: {first_line(error)}"
        ) from error
    bare = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if bare is not None:
        raise StorageError(f"{folder}: its weights lack {bare!r}, which {kind.__name__} has")
    if differ.unexpected_keys:
        name = differ.unexpected_keys[0]
        raise StorageError(
            f"{folder}: its weights hold {name!r}, which {kind.__name__} has not under that name"
        )
    yield model
    if writable:
        for whole in maps.values():
            whole.flush()


def shards_of(folder: Path) -> list[str]:
    """Return the names of the files that hold a folder's weights."""
    if not (folder / _INDEX).is_file():
        if not (folder / _SINGLE).is_file():
            raise StorageError(f"{folder}: holds no {_SINGLE}, as save_pretrained writes it")
        return [_SINGLE]
    index = load_json(folder / _INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise StorageError(f"{folder / _INDEX}: names no shards in 'weight_map'")
    found = sorted(set(names.values()))
    wrong = next((name for name in found if Path(name).name != name or not (folder / name).is_file()), None)
    if wrong is not None:
        raise StorageError(f"{folder / _INDEX}: {wrong!r} is no file of the folder")
    return found


def _map(file: Path, writable: bool) -> np.memmap:
    if file.stat().st_size < 8:
        raise StorageError(f"{file}: not a complete safetensors file")
    return np.memmap(file, dtype=np.uint8, mode="r+" if writable else "c")


def _tensors(file: Path, whole: np.memmap) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as views of its pages; checked as the library checks them."""
    length = int.from_bytes(whole[:8].tobytes(), "little")
    if length > min(_HEADER, len(whole) - 8):
        raise StorageError(f"{file}: not a complete safetensors file")
    start, found = 8 + length, dict[str, Tensor]()
    pages = torch.from_numpy(whole)
    try:
        header = json.loads(whole[8:start].tobytes())
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
            if not 0 <= begin <= end <= len(whole) - start:
                raise ValueError(f"{name} lies beyond its end")
            found[name] = pages[start + begin : start + end].view(dtype).view(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise StorageError(f"{file}: not a complete safetensors file: {first_line(error)}") from error
    return found
