"""What one process ranks of tensors that several hold, and how they count together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.errors import TargetError
from secateur.pruning.ranks import Peers, where_of
from secateur.shards import as_sharded, local, own, places, sharded, whole


@dataclass(frozen=True, eq=False)
class Part:
    """What this process holds of ``weight``, which it ranks together with ``peers``. ``counted``: its entries
    count here; where another process holds the same ones, they count there."""

    weight: Tensor
    peers: Peers
    counted: bool
    places: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        found = places(self.weight) if sharded(self.weight) else map(torch.arange, self.weight.shape)
        object.__setattr__(self, "places", list(found))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.places))

    def positions(self, rows: slice) -> Tensor:
        """Return where entries of some rows lie in the whole tensor, read row by row."""
        found, stride = torch.zeros((), dtype=torch.int64), 1
        for dim in reversed(range(len(self.places))):
            index = self.places[dim][rows] if dim == 0 else self.places[dim]
            found = found + (index * stride).view(-1, *[1] * (len(self.places) - 1 - dim))
            stride *= self.weight.shape[dim]
        return found

    def add(self, tensor: Tensor, step: str) -> None:
        """Add up over the processes, in place, what each counts, where all have come to the same ``step``."""
        self.peers.gather(None, step)  # one that failed has nothing to add
        self.peers.add([tensor])

    def total(self, number: int) -> int:
        """Return the sum of what each process counts in its own part."""
        return sum(self.peers.gather(number if self.counted else 0, "total"))

    def whole(self, part: Tensor) -> Tensor:
        """Return a tensor of the weight's shape, from the part of each process."""
        self.peers.gather(None, f"gather {tuple(self.weight.shape)}")
        return whole(as_sharded(part, self.weight))

    def own(self, whole: Tensor) -> Tensor:
        return own(whole, self.weight)


def parts_of(weights: Mapping[str, Tensor], peers: Peers) -> dict[str, Part]:
    """Return by name this process's parts of some weights; none where nothing is sharded.

    Raises TargetError where the processes do not hold all of a weight together.
    """
    if not any(map(sharded, weights.values())):
        return {}
    told = peers.gather({name: (where_of(w)[1], local(w).numel()) for name, w in weights.items()})
    parts = {}
    for name, weight in weights.items():
        sizes = dict(said[name] for said in told)
        if (held := sum(sizes.values())) != weight.numel():
            raise TargetError(
                f"{name}: sharded over processes, and those that prune together hold {held} of its "
                f"{weight.numel()} entries; all that share the network call this, and group= names them "
                "where they are not all there are"
            )
        first = next(rank for rank, said in enumerate(told) if said[name][0] == told[peers.rank][name][0])
        parts[name] = Part(weight, peers, first == peers.rank)
    return parts


def adding(parts: Iterable[Part | None], tensor: Tensor, step: str) -> None:
    """Add up, in place, what processes count of tensors that these are parts of, where all have come to the
    same ``step``; nothing where all are whole."""
    some = next((part for part in parts if part is not None), None)
    if some is not None:
        some.add(tensor, step)
