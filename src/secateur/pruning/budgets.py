"""How much goes, and from where: ``budget(scores, weights)`` gives one cut for each tensor.

A count budget takes exactly round(sparsity x N) entries (half to even); a value budget takes
what is strictly under a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from secateur.errors import BudgetError, NonFiniteError
from secateur.numeric import is_real, is_whole
from secateur.pruning.allocation import (
    AllScores,
    cut_as_many,
    cut_count,
    cut_keeping,
    cut_share,
    lamp_scores,
    share_out,
)
from secateur.pruning.selection import (
    CHUNK,
    AnyCut,
    Cut,
    PatternCut,
    RowCut,
    Scores,
    cut_globally,
)
from secateur.pruning.targets import matches
from secateur.shards import local

Weights = Mapping[str, Tensor]


class Budget(Protocol):
    """Decides the cut of every tensor from the scores and the weights.

    On whole units the scores are by group, one a unit, and the weights ones. What else it may say of itself:
    ``secateur.pruning.capabilities``.
    """

    def __call__(self, scores: AllScores, weights: Weights) -> Mapping[str, AnyCut]: ...


@dataclass(frozen=True)
class Share:
    """What budgets that take a ``sparsity``, as a number of entries, have in common."""

    sparsity: float
    amount: ClassVar[str] = "sparsity"
    cuts_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)


@dataclass(frozen=True)
class _KeepingShare(Share):
    min_kept: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_whole(self.min_kept) and self.min_kept >= 0):
            raise BudgetError(f"min_kept is {self.min_kept!r}; it counts entries, from 0")

    def _taken(self, scores: AllScores) -> dict[str, Cut]:
        """Take the share of the lowest scores of all tensors together."""
        count = round(self.sparsity * sum(s.numel for s in scores.values()))
        try:
            return cut_keeping(scores, count, self.min_kept)
        except BudgetError as error:
            raise BudgetError(f"{self} cannot be met: {error}") from None


@dataclass(frozen=True)
class Uniform(Share):
    """The same share of every layer: its lowest ``sparsity`` x N scores.

    The count is exact in every layer: round(sparsity x N), half to even, whatever the ties. Per row it is
    exact in the weights of every output, as Wanda compares them.

    Args:
        sparsity: the share that goes, from 0 to 1; of a layer's weights, or of a group's units.
        per: ``"layer"``, or ``"row"``: of the weights of each output, which are single ones, not units.

    Raises:
        BudgetError: for what is no such share.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}  # of 128 and 64
        {'0.weight': 32, '1.weight': 16}
        >>> masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75, per="row"))
        >>> masks["1.weight"].sum(1)
        tensor([4, 4, 4, 4])
    """

    per: Literal["layer", "row"] = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("layer", "row"):
            raise BudgetError(f"per is {self.per!r}; it is 'layer' or 'row'")

    @property
    def counts_units(self) -> bool | None:
        """False per row: units have none."""
        return False if self.per == "row" else None

    @property
    def granular(self) -> bool:
        return self.per == "layer"

    @property
    def called(self) -> str:
        return "Uniform" if self.per == "layer" else "Uniform per row"

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, AnyCut]:
        return dict(self.one_by_one(scores))

    def one_by_one(self, scores: AllScores) -> Iterator[tuple[str, AnyCut]]:
        of_one = self._of_layer if self.per == "layer" else self._of_rows
        return ((name, of_one(s)) for name, s in scores.items())

    def _of_layer(self, scores: Scores) -> Cut:
        return cut_share(scores, self.sparsity)

    def _of_rows(self, scores: Scores) -> Cut | RowCut:
        if len(scores.shape) < 2:
            return Cut(-math.inf, 0, note="no rows of weights")
        first, second = scores.shape[:2]
        outputs = {0: second, 1: first, 2: first * second}[scores.input_dim]
        return RowCut(round(self.sparsity * (scores.numel // outputs)), scores.input_dim, self.sparsity)


@dataclass(frozen=True)
class Global(_KeepingShare):
    """The lowest ``sparsity`` x N scores of all layers together.

    The count over the whole network is exact; what a layer loses depends on its scores.

    Args:
        sparsity: the share that goes, from 0 to 1; of all weights, or of all units.
        min_kept: entries that every layer keeps whatever their scores; with 0 a layer may be emptied.

    Raises:
        BudgetError: for an impossible share or number; when it is used, where ``min_kept`` leaves too few.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> net[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> net[1].weight.data = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
        >>> masks = sc.prune(net, sc.Magnitude(), sc.Global(0.5, min_kept=1))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'0.weight': 1, '1.weight': 3}
    """

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, Cut]:
        return self._taken(scores)


@dataclass(frozen=True)
class PerLayer:
    """A share for each layer named: ``PerLayer({"fc1": 0.9, "features.*": 0.5})``.

    The first pattern that matches a layer decides; layers that none matches keep everything.

    Args:
        sparsity: by pattern the share that goes, from 0 to 1. With whole units patterns name groups, or
            layers and parameters that make their units.

    Raises:
        BudgetError: for what is no such mapping; when it is used, for a pattern that matches nothing.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> masks = sc.prune(net, sc.Magnitude(), sc.PerLayer({"0": 0.75}))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}  # of 128 and 64
        {'0.weight': 32, '1.weight': 64}
    """

    sparsity: Mapping[str, float]
    amount: ClassVar[str] = "sparsity"
    cuts_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.sparsity, Mapping) or not all(isinstance(p, str) for p in self.sparsity):
            raise BudgetError(
                f'PerLayer: {self.sparsity!r} is no mapping of shares by pattern, like {{"fc1": 0.5}}'
            )
        if not self.sparsity:
            raise BudgetError('PerLayer({}) names no layer; give shares by pattern, like {"features.*": 0.5}')
        for pattern, share in self.sparsity.items():
            check_share(f"sparsity of {pattern!r}", share)

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, Cut]:
        return dict(self.one_by_one(scores))

    def one_by_one(self, scores: AllScores) -> Iterator[tuple[str, Cut]]:
        for pattern in self.sparsity:
            if not any(matches(name, pattern) for name in scores):
                raise BudgetError(f"PerLayer: {pattern!r} matches none of the targets: {', '.join(scores)}")
        shares = {
            name: next((s for p, s in self.sparsity.items() if matches(name, p)), 0.0) for name in scores
        }
        return ((name, cut_share(s, shares[name])) for name, s in scores.items())


@dataclass(frozen=True)
class Std:
    """In each layer, every score under ``sensitivity`` x the standard deviation of its weights.

    The population deviation of the signed weights, zeros included, so that pruning again with the same
    sensitivity finds nothing new. For single weights ranked by ``Magnitude``.

    Args:
        sensitivity: how many standard deviations, from 0.
        living: take the deviation over the weights that are not zero only.

    Raises:
        BudgetError: for what is no finite number from 0.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[1.0, -1.0, 7.0, -7.0]])  # their deviation is 5
        >>> sc.prune(layer, sc.Magnitude(), sc.Std(sensitivity=0.5))["weight"]
        tensor([[False, False,  True,  True]])
    """

    sensitivity: float
    living: bool = False
    amount: ClassVar[str] = "sensitivity"
    cuts_values: ClassVar[bool] = True
    compares_weights: ClassVar[bool] = True
    counts_units: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_value("sensitivity", self.sensitivity)
        if not isinstance(self.living, bool):
            raise BudgetError(f"living is {self.living!r}; it is True or False")

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, Cut]:
        wholes = ((name, s.gathered(local(weights[name]))) for name, s in scores.items())
        return {name: Cut(self.sensitivity * _std(name, weight, self.living)) for name, weight in wholes}


@dataclass(frozen=True)
class Threshold:
    """Every score under ``threshold``, the same in all layers.

    Strictly under it: a score that is equal stays.

    Args:
        threshold: in the unit of the scores, from 0.

    Raises:
        BudgetError: for what is no finite number from 0.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(3, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.25, -0.5, 1.0]])
        >>> sc.prune(layer, sc.Magnitude(), sc.Threshold(0.5))["weight"]
        tensor([[False,  True,  True]])
    """

    threshold: float
    amount: ClassVar[str] = "threshold"
    cuts_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_value("threshold", self.threshold)

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, Cut]:
        return dict.fromkeys(scores, Cut(self.threshold))


@dataclass(frozen=True)
class ERK(Share):
    """Each layer's density in proportion to (sum of its dims) / (their product): Erdos-Renyi-kernel.

    So small layers keep more. The count is exact over the whole network; for single weights only.

    Args:
        sparsity: the share of all weights that goes, from 0 to 1.

    Raises:
        BudgetError: for what is no such share; when it is used, where earlier masks leave too few weights.

    Source:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners" (ICML 2020).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 10))
        >>> for row in sc.prune(net, sc.Magnitude(), sc.ERK(0.9)).layers():
        ...     print(row["name"], row["weights"], row["kept"])
        0.weight 10000 710
        1.weight 1000 390
    """

    counts_units: ClassVar[bool] = False

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, Cut]:
        total = sum(s.numel for s in scores.values())
        number = total - round(self.sparsity * total)
        # A layer keeps no more than it has left: rounding may else give back one that is masked.
        room = {name: s.numel - s.number_masked for name, s in scores.items()}
        if sum(room.values()) < number:
            raise BudgetError(
                f"ERK({self.sparsity}) cannot be met: {number} entries should stay, and only "
                f"{sum(room.values())} are not masked yet"
            )
        kept = share_out(number, {name: float(sum(weights[name].shape)) for name in scores}, room)
        return {
            name: cut_count(s, s.numel - kept[name], (s.numel - kept[name]) / s.numel)
            for name, s in scores.items()
        }


@dataclass(frozen=True)
class LAMP(_KeepingShare):
    """Globally by score^2 over the sum of squares of the layer's scores that are at least as large.

    That is layer-adaptive magnitude pruning, which never empties a layer. It sorts each tensor, and keeps
    four bytes an entry while it decides.

    Args:
        sparsity: the share that goes, from 0 to 1; of all weights, or of all units.
        min_kept: entries that every layer keeps whatever their scores.

    Raises:
        BudgetError: for an impossible share or number; when it is used, where ``min_kept`` leaves too few.

    Source:
        Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (ICLR 2021).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> net[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> net[1].weight.data = torch.tensor([[10.0, 20.0], [30.0, 40.0]])  # its scale plays no part
        >>> masks = sc.prune(net, sc.Magnitude(), sc.LAMP(0.5))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'0.weight': 2, '1.weight': 2}
    """

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, Cut]:
        lamp = {name: lamp_scores(s) for name, s in scores.items()}
        ranked = {name: scores[name].ranked_by(values) for name, values in lamp.items()}
        return cut_as_many(scores, ranked.values(), self._taken(ranked))


@dataclass(frozen=True)
class MagnitudeRatios(Share):
    """From each layer as many as ``Global(sparsity)`` by |w| takes, by the criterion's own scores.

    So criteria are compared at equal ratios by layer. For single weights, not in blocks.

    Args:
        sparsity: the share of all weights that goes, from 0 to 1.

    Raises:
        BudgetError: for what is no such share.

    Source:
        Blalock et al., "What is the State of Neural Network Pruning?" (MLSys 2020).

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> net[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> net[1].weight.data = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
        >>> masks = sc.prune(net, sc.Random(), sc.MagnitudeRatios(0.25))
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'0.weight': 2, '1.weight': 4}
    """

    counts_units: ClassVar[bool] = False
    granular: ClassVar[bool] = False

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, Cut]:
        own = {name: local(w.detach()) for name, w in weights.items()}
        sizes = [replace(scores[name], rows=lambda rows, w=w: w[rows].abs()) for name, w in own.items()]
        count = round(self.sparsity * sum(s.numel for s in sizes))
        return cut_as_many(scores, sizes, cut_globally(sizes, count))


@dataclass(frozen=True)
class NM:
    """N:M: ``keep`` of every ``of`` weights along the input dim stay (2:4 is ``NM(2, 4)``).

    No CPU engine uses this pattern, and on a GPU only 2:4 in 16 bits does: expect no speed from it elsewhere.
    For single weights, and no schedule raises it. A tensor whose input dim does not divide by M stays dense,
    and the masks' notes name it.

    Args:
        keep: how many stay.
        of: of how many.

    Raises:
        BudgetError: for impossible numbers; when it is used, where no tensor's input dim divides.

    Source:
        Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021).

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.1, -0.4, 0.3, -0.2]])
        >>> sc.prune(layer, sc.Magnitude(), sc.NM(2, 4))["weight"]
        tensor([[False,  True,  True, False]])
    """

    keep: int
    of: int
    amount: ClassVar[None] = None
    counts_units: ClassVar[bool] = False
    cuts_values: ClassVar[bool] = False
    granular: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (is_whole(self.keep) and is_whole(self.of) and 0 < self.keep <= self.of):
            raise BudgetError(f"NM({self.keep}, {self.of}): keep 1 to {self.of} of every {self.of}")

    def __call__(self, scores: AllScores, weights: Weights) -> dict[str, AnyCut]:
        return dict(self.one_by_one(scores))

    def one_by_one(self, scores: AllScores) -> Iterator[tuple[str, AnyCut]]:
        if scores and not any(map(self._fits, scores.values())):
            name, s = next(iter(scores.items()))
            raise BudgetError(
                f"{name}: shape {s.shape} has no input dim that divides by {self.of}, nor has any other"
            )
        share = 1 - self.keep / self.of
        stays = Cut(-math.inf, 0, note=f"no input dim that divides by {self.of}")
        return (
            (name, PatternCut(self.keep, self.of, s.input_dim, share) if self._fits(s) else stays)
            for name, s in scores.items()
        )

    def _fits(self, scores: Scores) -> bool:
        return len(scores.shape) > 1 and scores.shape[scores.input_dim] % self.of == 0


def check_share(what: str, share: float) -> None:
    if not (is_real(share) and 0 <= share <= 1):
        raise BudgetError(f"{what} is {share!r}; it is a share between 0 and 1")


def check_value(what: str, value: float) -> None:
    if not (is_real(value) and value >= 0):
        raise BudgetError(f"{what} is {value!r}; it is a finite number from 0")


def _std(name: str, weight: Tensor, kept_only: bool) -> float:
    """The population standard deviation in float64, over ``CHUNK`` weights at a time."""

    def chunks() -> Iterator[Tensor]:
        for part in weight.detach().reshape(-1).split(CHUNK):
            part = part[part != 0] if kept_only else part
            yield part.to(torch.promote_types(part.dtype, torch.float64))

    number = sum(part.numel() for part in chunks())
    mean = sum(part.sum().item() for part in chunks()) / max(number, 1)
    squares = sum((part - mean).abs().square().sum().item() for part in chunks())
    if not math.isfinite(squares):
        raise NonFiniteError(f"{name}: its weights hold a NaN or an infinity")
    return math.sqrt(squares / max(number, 1))
