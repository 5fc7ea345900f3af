"""What stands for one layer of low rank: two thin ones, the first with the layer's own kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import ModelError, StorageError
from secateur.numeric import is_whole

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class TwoLayers(nn.Sequential):
    """A layer to ``rank`` channels and one back, in the place of one; else a Sequential like any other."""

    @property
    def rank(self) -> int:
        first: Any = self[0]
        return first.weight.shape[0]


def can_be_two(module: nn.Module) -> bool:
    """Whether a module is a plain layer, in one group, with a weight of its own."""
    return (
        type(module) in KINDS
        and getattr(module, "groups", 1) == 1
        and module._parameters.get("weight") is not None
    )


def two_layers(module: Any, rank: int) -> TwoLayers:
    """Return two layers of the shapes that stand for ``module`` at a rank, on its device, of its dtype."""
    weight, bias = module.weight, module.bias is not None
    like = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(module, nn.Linear):
        first = nn.Linear(module.in_features, rank, bias=False, **like)
        last: Any = nn.Linear(rank, module.out_features, bias=bias, **like)
    else:
        settings = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        kind = type(module)
        first = kind(module.in_channels, rank, module.kernel_size, bias=False, **settings, **like)
        last = kind(rank, module.out_channels, 1, bias=bias, **like)
    made = TwoLayers(first, last).train(module.training)
    for parameter in made.parameters():
        parameter.requires_grad_(weight.requires_grad)
    return made


def ranks_of(model: nn.Module) -> dict[str, int]:
    """Return by name the ranks of the layers that have become two."""
    return {name: module.rank for name, module in model.named_modules() if isinstance(module, TwoLayers)}


@contextmanager
def as_two(model: nn.Module, ranks: Any, path: str | Path) -> Iterator[None]:
    """Put two layers of the ``ranks`` that a file gives in the place of each of these; put them back where
    the block raises. Raises StorageError for ranks that are none, ModelError for layers that cannot be two.
    """
    if not isinstance(ranks, Mapping) or not all(is_whole(rank) and rank >= 1 for rank in ranks.values()):
        raise StorageError(f"{path}: what it says of layers of low rank is damaged")
    own = dict(model.named_modules())
    for name, rank in ranks.items():
        module: Any = own.get(name)
        if isinstance(module, TwoLayers) and module.rank == rank:
            continue
        if not name or module is None or not can_be_two(module):
            raise ModelError(f"{path}: two layers stand for {name!r} there, which the model has not as one")
        weight: Any = module.weight
        most = min(len(weight), weight[0].numel())
        if rank > most:
            raise ModelError(f"{path}: {name} has rank {rank:,} there; in this model it has {most:,} at most")
    changed = {name: own[name] for name in ranks if not isinstance(own[name], TwoLayers)}
    try:
        for name, module in changed.items():
            model.set_submodule(name, two_layers(module, ranks[name]))
        yield
    except BaseException:
        for name, module in changed.items():
            model.set_submodule(name, module)
        raise
