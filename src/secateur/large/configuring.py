"""What a configuration must say of a network whose blocks were cut, or are fewer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.errors import ModelError
from secateur.graph.compare import difference
from secateur.pretrained.config_search import Setting, find_config, leaves, shapes_of
from secateur.pretrained.inputs import inputs_of
from secateur.pretrained.skeleton import skeleton
from secateur.running import forward_once

_CLOSE = 1e-5
Kept = Mapping[str, Sequence[int]]
"""By path of a list of blocks, the numbers of those that stay."""


def lists_of(blocks: Sequence[str]) -> dict[str, list[int]]:
    """Return by path of a list the numbers of the blocks in it."""
    found: dict[str, list[int]] = {}
    for path in blocks:
        place, _, number = path.rpartition(".")
        found.setdefault(place, []).append(int(number))
    return found


def with_fewer(model: Any, kept: Kept) -> Any:
    """Return the configuration of a model with fewer blocks; raises ModelError where none says so."""
    config = model.config
    sizes = {place: len(model.get_submodule(place)) for place in kept}
    for place, numbers in kept.items():
        if len(numbers) == sizes[place]:
            continue
        config = _shorter(type(model), config, place, sizes[place], numbers, sizes)
        sizes[place] = len(numbers)
    return config


def _shorter(
    kind: Any, config: Any, place: str, before: int, numbers: Sequence[int], sizes: Mapping[str, int]
) -> Any:
    plain = config.to_dict()
    wanted = {**sizes, place: len(numbers)}
    for path, value in leaves(plain):
        for lists in (True, False) if value == before else ():
            changed = copy.deepcopy(plain)
            if lists:
                changed = _picked(changed, before, numbers)
            holder: Any = changed
            for part in path[:-1]:
                holder = holder[part]
            holder[path[-1]] = len(numbers)
            try:
                found = _from(config, changed)
                made = skeleton(kind, found)
                if {own: len(made.get_submodule(own)) for own in wanted} == wanted:
                    return found
            except Exception:  # whatever a class says to numbers that do not go together
                continue
    raise ModelError(
        f"{kind.__name__}: no number of its configuration says that {place} holds {len(numbers)} blocks "
        f"instead of {before}"
    )


def _picked(value: Any, before: int, numbers: Sequence[int]) -> Any:
    """Return nested values in which each list of an entry a block has those alone that stay."""
    if isinstance(value, dict):
        return {name: _picked(part, before, numbers) for name, part in value.items()}
    if isinstance(value, list) and len(value) == before and not any(isinstance(v, float) for v in value):
        return [value[number] for number in numbers]
    return value


def _from(config: Any, plain: dict[str, Any]) -> Any:
    found = type(config).from_dict(plain)
    found._attn_implementation = config._attn_implementation
    return found


def stock_config(model: Any, blocks: Mapping[str, nn.Module]) -> tuple[Any, tuple[Setting, ...]] | None:
    """Return the configuration that says the sizes of ``blocks``, as they have become, and what is changed
    in it; None where there is none.

    It is sought on a network of as few blocks as there are kinds of them, which must give the same outputs,
    and then taken where a whole one that is built from it has all the shapes.
    """
    kept: dict[str, list[int]] = {}
    seen: set[Any] = set()
    for path, block in blocks.items():
        place, _, number = path.rpartition(".")
        kind = (place, *sorted((name, tuple(t.shape)) for name, t in block.state_dict().items()))
        if kind not in seen or len(kept[place]) < 2:
            kept.setdefault(place, []).append(int(number))
        seen.add(kind)
    try:
        few = skeleton(type(model), with_fewer(model, kept))
    except ModelError:
        return None
    for place, numbers in kept.items():
        for new, number in enumerate(numbers):
            few.set_submodule(f"{place}.{new}", copy.copy(blocks[f"{place}.{number}"]))
    _fill(few, model)
    inputs = inputs_of(few)
    expected = forward_once(few, inputs)

    def same(config: Any) -> bool:
        try:
            other = skeleton(type(few), config)
            other.load_state_dict(few.state_dict(), assign=True)
            other.tie_weights()
            return difference(expected, forward_once(other, inputs)) <= _CLOSE
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ModelError):
            return False

    found = find_config(few, same)
    if found is None:
        return None
    _, settings = found
    plain = model.config.to_dict()
    for setting in settings:
        holder = plain
        for part in setting.path[:-1]:
            holder = holder[part]
        holder[setting.path[-1]] = setting.new
    config = _from(model.config, plain)
    whole = shapes_of(model)
    for path, block in blocks.items():
        whole |= {f"{path}.{name}": shape for name, shape in shapes_of(block).items()}
    return (config, settings) if shapes_of(skeleton(type(model), config)) == whole else None


def _fill(few: Any, model: Any) -> None:
    """Give what stands around the blocks of a short network the values that it has in the long one."""
    own = model.state_dict()
    around = {name: own[name] for name, tensor in few.state_dict().items() if tensor.is_meta}
    few.load_state_dict(around, strict=False, assign=True)
    few.tie_weights()
