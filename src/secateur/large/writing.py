"""A folder written from blocks as they have become: shards, index, configuration, and all else as it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.graph.names import unwrapped
from secateur.large.configuring import stock_config
from secateur.large.mapped import INDEX, SINGLE, Mapped, shards_of
from secateur.pretrained.auto_classes import auto_class_of
from secateur.pretrained.config_search import Setting
from secateur.pretrained.plan import plan_of
from secateur.pretrained.skeleton import skeleton
from secateur.pretrained.writing import write_plan
from secateur.storage import load_json, save_json, write_safetensors


@dataclass(frozen=True)
class Written:
    """How a folder says what it holds: by its configuration, ``changed`` where it was cut, or by a plan."""

    auto: str
    remote_code: bool
    changed: tuple[Setting, ...]


def write_folder(source: Mapped, opened: Mapped, blocks: Mapping[str, nn.Module], target: Path) -> Written:
    """Write the network of ``opened`` with its ``blocks`` as they are now, in shards like those of the
    ``source``, of which ``opened`` may hold fewer blocks.

    Blocks hold their tensors in the dtypes that are written.
    """
    model = opened.model
    whole = model.state_dict() | {
        f"{path}.{name}": tensor
        for path, block in blocks.items()
        for name, tensor in block.state_dict().items()
    }
    cut = any(whole[name].shape != tensor.shape for name, tensor in model.state_dict().items())
    cut = cut or source.model.config.to_dict() != model.config.to_dict()
    _copy_others(source.folder, target)
    auto, settings, plan = auto_class_of(model), tuple[Setting, ...](), None
    if cut:
        found = stock_config(model, blocks)
        config, settings = found or (model.config, ())
        if found is None:
            plan, buffers = _plan(model, blocks)
            whole |= buffers
            auto = auto if auto.startswith("Auto") else "AutoModel"
        config.save_pretrained(target)
        if plan is not None:
            write_plan(target, plan, auto, type(model), config)
    _write_shards(source, opened, whole, target)
    return Written(auto, plan is not None, settings)


def _plan(model: Any, blocks: Mapping[str, nn.Module]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the plan of a network with such blocks, and its buffers that must stand in the files."""
    whole = skeleton(type(model), model.config)
    for path, block in blocks.items():
        whole.set_submodule(path, block)
    plan = plan_of(whole, model.config)
    buffers = dict(unwrapped(whole).named_buffers())
    return plan, {name: buffers[name] for name in plan["buffers"]}


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder's files, as they are."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)


def _copy_others(source: Path, target: Path) -> None:
    """Copy what is neither weights nor their index: the tokenizer, the configuration, generation's."""
    weights = {*shards_of(source), INDEX}
    for file in sorted(source.iterdir()):
        other = file.suffix in (".bin", ".pth", ".pt", ".safetensors") or file.name.endswith(".index.json")
        if file.is_file() and not file.name.startswith(".") and file.name not in weights and not other:
            shutil.copyfile(file, target / file.name)


def _write_shards(source: Mapped, opened: Mapped, whole: Mapping[str, Tensor], target: Path) -> None:
    """Write each tensor under the name that the source's files have for it, into the shard that it was in."""
    from transformers.core_model_loading import revert_weight_conversion

    shard_of = _shards(source.folder)
    parts: dict[str, dict[str, Tensor]] = {shard: {} for shard in dict.fromkeys(shard_of.values())}
    last = next(reversed(parts))
    merged: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        if name in opened.mergers:
            merged[name] = tensor
        elif name in opened.names:
            parts[shard_of[opened.names[name]]][source.names.get(name, name)] = tensor
        elif not _tied(opened.model, name):
            parts[last][name] = tensor  # a buffer that no file held before
    for merger in {m.first: m for m in opened.mergers.values()}.values():
        own = {n: merged[n] for n, of in opened.mergers.items() if of is merger}
        where = parts[shard_of[merger.stored[0][1]]]
        where |= {n: t.contiguous() for n, t in revert_weight_conversion(source.model, own).items()}
    filled = [tensors for tensors in parts.values() if tensors]
    names = [*parts] if len(filled) == len(parts) else _numbered(len(filled))
    index: dict[str, str] = {}
    for file, tensors in zip(names, filled, strict=True):
        with (target / file).open("wb") as out:
            write_safetensors(out, {n: t.contiguous() for n, t in tensors.items()}, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    if len(names) > 1:
        size = sum(t.nbytes for tensors in filled for t in tensors.values())
        save_json(
            target / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        )


def _shards(folder: Path) -> dict[str, str]:
    names = shards_of(folder)
    if names == [SINGLE] and not (folder / INDEX).is_file():
        from secateur.large.mapped import tensors_in_file

        return dict.fromkeys(tensors_in_file(folder / SINGLE), SINGLE)
    return dict(sorted(load_json(folder / INDEX)["weight_map"].items(), key=lambda pair: pair[1]))


def _numbered(number: int) -> list[str]:
    if number == 1:
        return [SINGLE]
    return [f"model-{place:05}-of-{number:05}.safetensors" for place in range(1, number + 1)]


def _tied(model: Any, name: str) -> bool:
    """Whether a tensor stands in the files under another name."""
    return any(name == own for own in (model.all_tied_weights_keys or {}))
