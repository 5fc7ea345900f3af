"""A folder of transformers as a model whose parameters are pages of its files: nothing is loaded.

Files may hold what the class has under other names, or in parts (each expert by itself, say, where the class
has a stack). Transformers' own table says how; such parameters have values only where they are asked for.
"""

from __future__ import annotations

import copy
import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.errors import ModelError, StorageError
from secateur.large.configuring import with_fewer
from secateur.pretrained.opening import class_of, narrowed, plan_in
from secateur.pretrained.skeleton import skeleton
from secateur.pretrained.writing import PLAN
from secateur.storage import DTYPES, load_json
from secateur.text import first_line

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_HEADER = 100 << 20  # bytes, as the safetensors library has it


@dataclass(frozen=True)
class _Merger:
    """How one or several parameters are made of several tensors of the files."""

    rule: Any
    first: str
    stored: tuple[tuple[str, str], ...]  # (the rule's pattern, the name in the files)
    moved: Callable[[str], str | None]

    def made(self, model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters of the model that are made, by the names that they have there now."""
        rule = copy.deepcopy(self.rule)
        for pattern, name in self.stored:
            rule.add_tensor(self.first, name, pattern, tensors[name])
        made = rule.convert(self.first, model=model, config=model.config)
        whole = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        return {new: value for name, value in whole.items() if (new := self.moved(name)) is not None}


@dataclass(frozen=True)
class Mapped:
    """A model of transformers over the files of its folder.

    ``stored``: the tensors of the files by their names there. ``names``: by parameter or buffer of the model
    its name in the files; ``mergers``: by parameter how it is made, where it is no tensor of theirs.
    """

    folder: Path
    model: Any
    stored: dict[str, Tensor]
    names: dict[str, str] = field(default_factory=dict)
    mergers: dict[str, _Merger] = field(default_factory=dict)
    pages: tuple[np.memmap, ...] = ()

    def block(self, path: str, *, float32: bool = True) -> nn.Module:
        """Return a copy of the module at ``path`` with all its values, in float32 or as the files have it."""
        with self._filled(path):
            block = copied(self.model.get_submodule(path)).eval().requires_grad_(True)
        return block.float() if float32 else block

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Yield the model so that it runs: what has to be made of several tensors is, while it is used."""
        with ExitStack() as stack:
            for path in {name.rpartition(".")[0] for name in self.mergers}:
                inner: list[ExitStack] = []
                module = self.model.get_submodule(path)
                before = module.register_forward_pre_hook(partial(self._enter, path, inner))
                after = module.register_forward_hook(lambda *_, inner=inner: inner.pop().close())
                stack.callback(before.remove)
                stack.callback(after.remove)
            for path, module in self.model.named_modules():
                if path.rpartition(".")[2].isdigit():  # a child of a list: its pages have been read
                    stack.callback(module.register_forward_hook(lambda *_: self.release()).remove)
            yield self.model

    def _enter(self, path: str, inner: list[ExitStack], *_: Any) -> None:
        inner.append(ExitStack())
        inner[-1].enter_context(self._filled(path))

    @contextmanager
    def _filled(self, path: str) -> Iterator[None]:
        """Give the parameters in a module that are made of several tensors their values, for a while."""
        prefix = f"{path}." if path else ""
        wanted = {m.first: m for name, m in self.mergers.items() if name.startswith(prefix)}
        empty: list[tuple[nn.Module, str, nn.Parameter]] = []
        for merger in wanted.values():
            for name, value in merger.made(self.model, self.stored).items():
                holder, _, leaf = name.rpartition(".")
                module = self.model.get_submodule(holder)
                empty.append((module, leaf, module._parameters[leaf]))
                module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        try:
            yield
        finally:
            for module, leaf, parameter in empty:
                module._parameters[leaf] = parameter

    def release(self) -> None:
        """Let the system have the memory of pages that were read: the files still hold them."""
        for whole in self.pages:
            whole._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


@contextmanager
def mapped(
    folder: Path,
    *,
    writable: bool = False,
    remote_code: bool = False,
    kept: Mapping[str, Sequence[int]] | None = None,
    plan: bool = False,
) -> Iterator[Mapped]:
    """Yield the model of a folder, its parameters and stored buffers mapped from the files: what is read
    comes from the disk, and with ``writable`` what is changed goes there.

    ``remote_code``: run the code that came with the folder, where its class is of that. ``kept``: by path of
    a list of blocks the numbers of those that the model has alone; they count anew. ``plan``: take a folder
    whose sizes a plan says.

    Raises StorageError for a folder that is none of transformers', or whose files are not those of its class;
    ModelError for one that is quantised.
    """
    kind = _remote_class(folder) if remote_code else class_of(folder)
    _check_plain(folder, plan)
    maps = {shard: _map(folder / shard, writable) for shard in shards_of(folder)}
    tensors: dict[str, Tensor] = {}
    for shard, whole in maps.items():
        tensors |= tensors_in_file(folder / shard, whole)
    eighth = next((name for name, t in tensors.items() if t.is_floating_point() and t.itemsize < 2), None)
    if eighth is not None:
        raise ModelError(f"{folder}: {eighth} is {tensors[eighth].dtype}: quantised; {_WHOLE}")
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        model = skeleton(kind, config)
    except Exception as error:  # whatever transformers and torch raise, this line names the folder
        raise StorageError(
            f"{folder}: cannot be opened: {type(error).__name__}: {first_line(error)}"
        ) from error
    if (folder / PLAN).exists():
        narrowed(model, plan_in(folder, kind))
    if kept is not None:
        whole, model = model, skeleton(kind, with_fewer(model, kept))
    else:
        whole = model
    found = Mapped(folder, model, tensors, pages=() if writable else tuple(maps.values()))
    _assign(found, whole, kept or {})
    yield found
    if writable:
        for whole in maps.values():
            whole.flush()


_WHOLE = "weights in float32, bfloat16 or float16 are right, as before it was quantised"


def _check_plain(folder: Path, plan: bool) -> None:
    if not plan and (folder / PLAN).exists():
        raise StorageError(
            f"{folder}: its sizes stand in {PLAN}; secateur.from_pretrained opens it, to be pruned in memory"
        )
    config = load_json(folder / "config.json")
    said = config.get("quantization_config")
    if said is not None:
        method = said.get("quant_method", "some method") if isinstance(said, dict) else "some method"
        raise ModelError(f"{folder}: its weights are quantised ({method!s:.40}); {_WHOLE}")


def _remote_class(folder: Path) -> Any:
    """Return the class that a folder names, its own code's where ``auto_map`` says so."""
    config = load_json(folder / "config.json")
    named, places = config.get("architectures"), config.get("auto_map")
    places = places if isinstance(places, dict) else {}
    for place in places.values():
        if isinstance(place, str) and named == [place.rpartition(".")[2]]:
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            return get_class_from_dynamic_module(place, str(folder), local_files_only=True)
    return class_of(folder)


def _moved(kept: Mapping[str, Sequence[int]], name: str) -> str | None:
    """Return the name that a tensor has where some blocks are gone; None of one that is gone."""
    for place, numbers in kept.items():
        if name.startswith(f"{place}."):
            number, _, rest = name.removeprefix(f"{place}.").partition(".")
            if not number.isdigit():
                return name
            return f"{place}.{numbers.index(int(number))}.{rest}" if int(number) in numbers else None
    return name


def _assign(found: Mapped, full: Any, kept: Mapping[str, Sequence[int]]) -> None:
    """Give the skeleton its tensors, and say how those are made that are made of several; the files are those
    of the ``full`` one."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model, folder = found.model, found.folder
    kind, own, every = type(model).__name__, model.state_dict(), full.state_dict()
    moved = partial(_moved, kept)
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    parts: dict[str, list[tuple[str, str]]] = {}
    whole: dict[str, Tensor] = {}
    strange: list[str] = []
    for name in sorted(found.stored, key=_natural):
        prefix = model.base_model_prefix
        target, pattern = rename_source_key(name, renamings, converters, prefix, every)
        if target not in every and name in every:
            target, pattern = name, None
        if target not in every:
            if not _ignored(model, name):
                strange.append(name)
            continue
        if pattern is not None:
            parts.setdefault(target, []).append((pattern, name))
        elif (new := moved(target)) is not None:
            whole[new], found.names[new] = found.stored[name], name
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    shapes = {name: tensor.to("meta") for name, tensor in found.stored.items()} if parts else {}
    for first, stored in parts.items():
        merger = _Merger(by_pattern[stored[0][0]], first, tuple(stored), moved)
        for name, value in merger.made(model, shapes).items():
            if name not in own or own[name].shape != value.shape:
                raise StorageError(f"{folder}: its weights do not make the {name!r} of {kind}")
            found.mergers[name] = merger
            holder, _, leaf = name.rpartition(".")
            model.get_submodule(holder)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    try:
        model.load_state_dict(whole, strict=False, assign=True)
        model.tie_weights()
    except Exception as error:
        raise StorageError(
            f"{folder}: cannot be opened: {type(error).__name__}: {first_line(error)}"
        ) from error
    for name, parameter in model.named_parameters():
        if parameter.is_meta and name not in found.mergers:
            raise StorageError(f"{folder}: its weights lack {name!r}, which {kind} has")
        parameter.requires_grad_(False)
    if strange:
        raise StorageError(f"{folder}: its weights hold {strange[0]!r}, which {kind} has not under that name")


def _ignored(model: Any, name: str) -> bool:
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _natural(name: str) -> list[tuple[int, Any]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def shards_of(folder: Path) -> list[str]:
    """Return the names of the files that hold a folder's weights."""
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise StorageError(f"{folder}: holds no {SINGLE}, as save_pretrained writes it")
        return [SINGLE]
    index = load_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise StorageError(f"{folder / INDEX}: names no shards in 'weight_map'")
    found = sorted(set(names.values()))
    wrong = next((name for name in found if Path(name).name != name or not (folder / name).is_file()), None)
    if wrong is not None:
        raise StorageError(f"{folder / INDEX}: {wrong!r} is no file of the folder")
    return found


def _map(file: Path, writable: bool) -> np.memmap:
    if file.stat().st_size < 8:
        raise StorageError(f"{file}: not a complete safetensors file")
    return np.memmap(file, dtype=np.uint8, mode="r+" if writable else "c")


def tensors_in_file(file: Path, whole: np.memmap | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as views of its pages; checked as the library checks them."""
    whole = _map(file, False) if whole is None else whole
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
