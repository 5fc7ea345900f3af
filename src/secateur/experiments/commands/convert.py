"""``secateur convert``: a checkpoint of ``torch.save`` made a safetensors state dict, no code of it run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import StorageError
from secateur.storage import save_tensors
from secateur.text import first_line, nearest

State = dict[str, Tensor]
DTYPES = ("float32", "float64", "bfloat16", "float16")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile: no name of anybody's own
_OUTER = ("model.", "net.", "network.", "backbone.")  # of trainers; stripped where every name has it
_USUAL = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
_NOT_WEIGHTS = ("optimizer", "optim", "scheduler", "scaler", "callbacks", "loops", "rng", "hyper_parameters")


def convert(
    source: Path,
    target: Path,
    *,
    key: str | None = None,
    keep_prefix: bool = False,
    strip: str | None = None,
    drop: Sequence[str] = (),
    dtype: str | None = None,
) -> str:
    """Write the weights in a file of ``torch.save`` as safetensors, and return what was done as text.

    It is read on the CPU with ``weights_only=True``: tensors, numbers and containers of them, and no code.
    The state dict is the part that ``key`` names (``ema/module``, say), else the largest in the file under a
    usual name. Tensors whose names match a pattern of ``drop`` are left out. ``module.`` and ``_orig_mod.``
    go from the other names, and what a trainer puts before every one of them, unless ``keep_prefix``;
    ``strip`` is a prefix that goes instead. Masks of ``torch.nn.utils.prune`` are applied. ``dtype``: what
    numbers that are no integers become, where the network's are others.

    Raises StorageError for a file that is not there, that holds more than data, or no state dict.
    """
    found = dict(_states(_read(source)))
    name = _chosen(source, found, key)
    said = [f"{source}: " + (f"its part {name!r}" if name else "a state dict")]
    others = [other for other in found if other != name and not other.startswith(f"{name}/" if name else "/")]
    if others:
        said.append(f"left: {', '.join(repr(other) for other in others)} (--key takes another)")
    state, done = _dropped(source, found[name], drop)
    said += done
    state, done = _named(state, keep_prefix) if strip is None else _stripped(source, state, strip)
    said += done
    state, done = _masked(state)
    said += done
    tensors, done = _plain(source, state)
    said += done
    if dtype is not None:
        tensors = {name: _as(tensor, dtype) for name, tensor in tensors.items()}
    save_tensors(target, tensors)
    number = sum(t.numel() for t in tensors.values())
    kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    return "\n".join([*said, f"{target}: {len(tensors):,} tensors, {number:,} values ({kinds})"])


def _read(source: Path) -> Any:
    if not source.is_file():
        raise StorageError(f"{source}: there is no such file")
    try:
        if zipfile.is_zipfile(source):
            names = zipfile.ZipFile(source).namelist()
            if any(name.endswith("constants.pkl") for name in names):
                raise StorageError(
                    f"{source}: a TorchScript program, which is code; torch.jit.load it where you trust it "
                    "and torch.save its state_dict()"
                )
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), first_line(error))
        raise StorageError(
            f"{source}: holds more than data ({what}), which weights_only=True does not read; where you "
            "trust it, torch.load it with weights_only=False beside the code that it needs, and torch.save "
            "its state_dict()"
        ) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise StorageError(f"{source}: not a file of torch.save: {first_line(error)}") from error


def _states(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield the parts of a file that are state dicts, the outermost first: names with tensors."""
    if not isinstance(value, Mapping) or depth > 4:
        return
    tensors = {key: part for key, part in value.items() if isinstance(key, str) and isinstance(part, Tensor)}
    if tensors:
        yield path, tensors
    for key, part in value.items():
        if isinstance(key, str) and not key.lower().startswith(_NOT_WEIGHTS):
            yield from _states(part, f"{path}/{key}".lstrip("/"), depth + 1)


def _chosen(source: Path, found: Mapping[str, State], key: str | None) -> str:
    if not found:
        raise StorageError(f"{source}: holds no state dict (names with tensors), at no depth")
    if key is not None:
        if key not in found:
            known = nearest(key, [name for name in found if name]) if any(found) else "; leave --key out"
            raise StorageError(f"{source}: holds no state dict {key!r}{known}")
        return key
    usual = [name for name in found if name.rpartition("/")[2] in _USUAL]
    return max(usual or found, key=lambda name: (len(found[name]), -len(name)))


def _named(state: State, keep_prefix: bool) -> tuple[State, list[str]]:
    said = []
    for wrapper in _WRAPPERS:
        parts = {name: name.replace(f".{wrapper}", ".").removeprefix(wrapper) for name in state}
        if any(name != new for name, new in parts.items()) and len({*parts.values()}) == len(state):
            state = {parts[name]: tensor for name, tensor in state.items()}
            said.append(f"{wrapper!r} stripped from the names")
    for outer in () if keep_prefix else _OUTER:
        if len(state) > 1 and all(name.startswith(outer) for name in state):
            state = {name.removeprefix(outer): tensor for name, tensor in state.items()}
            said.append(f"{outer!r} stripped, which every name began with (--keep-prefix leaves it)")
            break  # what stands behind it is the network's own
    return state, said


def _stripped(source: Path, state: State, prefix: str) -> tuple[State, list[str]]:
    other = next((name for name in state if not name.startswith(prefix) or name == prefix), None)
    if other is not None:
        raise StorageError(f"{source}: --strip {prefix}: {other} does not begin so; --drop leaves it out")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}, [f"{prefix!r} stripped"]


def _as(tensor: Tensor, dtype: str) -> Tensor:
    if dtype not in DTYPES:
        raise StorageError(f"--dtype {dtype}: is none of {', '.join(DTYPES)}")
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor


def _dropped(source: Path, state: State, patterns: Sequence[str]) -> tuple[State, list[str]]:
    """Leave out what the network does not have, by the names in the file."""
    gone = [name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in gone):
            raise StorageError(f"{source}: --drop {pattern}: no tensor is called so{nearest(pattern, state)}")
    left = {name: tensor for name, tensor in state.items() if name not in gone}
    return left, [f"dropped: {_some(gone)}"] if gone else []


def _masked(state: State) -> tuple[State, list[str]]:
    """Apply the masks of torch.nn.utils.prune."""
    pairs = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    pairs = [name for name in pairs if f"{name}_mask" in state]
    made = dict(state)
    for name in pairs:
        original, mask = made.pop(f"{name}_orig"), made.pop(f"{name}_mask")
        if original.shape != mask.shape:
            raise StorageError(f"{name}_mask is {tuple(mask.shape)}, {name}_orig {tuple(original.shape)}")
        made[name] = original * mask.to(original.dtype)
    return made, [f"{len(pairs)} masks of torch.nn.utils.prune applied ({_some(pairs)})"] if pairs else []


def _plain(source: Path, state: State) -> tuple[State, list[str]]:
    """Return contiguous tensors that share nothing, and what was done to have them."""
    tensors: State = {}
    where: dict[tuple[Any, ...], str] = {}
    tied, turned, unsparse = [], [], []
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.is_nested:
            raise StorageError(f"{source}: {name} is quantized or nested, which safetensors cannot hold")
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
            unsparse.append(name)
        if not tensor.is_contiguous():
            turned.append(name)
        if tensor.numel():
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
            if (first := where.setdefault(place, name)) != name:
                tied.append(f"{name} is {first}")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    lists = ((tied, "tied, written each"), (turned, "laid out row by row"), (unsparse, "made dense"))
    return tensors, [f"{what}: {_some(names)}" for names, what in lists if names]


def _some(names: list[str]) -> str:
    return ", ".join([*names[:3], *["..."] * (len(names) > 3)])
