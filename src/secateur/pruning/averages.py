"""Where an average of a network keeps its weights, whose class it ever is (torch's, timm's, diffusers')."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import MaskError
from secateur.graph.names import canonical_parameters

_DEPTH = 4  # a callback, its AveragedModel, the module that trains, the network in it


def weights_in(average: Any, model: nn.Module, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an average of ``model`` that correspond to ``wanted`` parameters of it.

    They are found by their names: in the object itself, in the networks, dicts of tensors, and lists of
    one tensor a parameter (diffusers' ``shadow_params``) that it holds.

    Raises MaskError where nothing in it fits, or several things do.
    """
    live = canonical_parameters(model)
    layer = [average]
    for _ in range(_DEPTH):
        found = [weights for thing in layer if (weights := _fitting(thing, live, wanted)) is not None]
        distinct = {
            tuple(map(id, weights.values())): weights
            for weights in found
            if not all(tensor is live.get(name) for name, tensor in weights.items())  # what is averaged
        }
        if len(distinct) > 1:
            raise MaskError(
                f"{type(average).__name__} holds {len(distinct)} networks that the masks fit; "
                "give the one that is meant"
            )
        if distinct:
            return next(iter(distinct.values()))
        layer = [part for thing in layer for part in _parts(thing)]
    raise MaskError(
        f"{type(average).__name__} holds no network, and no dict or list of tensors, with the masked "
        f"parameters of {type(model).__name__}; give the averaged network itself"
    )


def averages_among(things: Iterable[Any]) -> Iterator[Any]:
    """Yield what is an average of a network by the name of its class."""
    return (thing for thing in things if re.search(r"[Aa]verag|EMA|Ema(?![a-z])", type(thing).__name__))


def _fitting(
    thing: Any, live: Mapping[str, nn.Parameter], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    if isinstance(thing, nn.Module):
        tensors: Mapping[Any, Any] = canonical_parameters(thing)
    elif isinstance(thing, (list, tuple)):
        trained = [name for name, parameter in live.items() if parameter.requires_grad]
        names = next((n for n in (list(live), trained) if len(n) == len(thing)), [])
        tensors = dict(zip(names, thing, strict=False))
    else:
        tensors = thing if isinstance(thing, Mapping) else {}
    fits = all(isinstance(tensors.get(n), Tensor) and tensors[n].shape == t.shape for n, t in wanted.items())
    return {name: tensors[name] for name in wanted} if fits and tensors else None


def _parts(thing: Any) -> list[Any]:
    held = list(thing.children()) if isinstance(thing, nn.Module) else []
    plain = [
        v for v in getattr(thing, "__dict__", {}).values() if isinstance(v, (nn.Module, Mapping, list, tuple))
    ]
    return held + plain
