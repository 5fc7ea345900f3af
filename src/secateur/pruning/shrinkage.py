"""What becomes of a weight at the cut: ``shrinkage(weight, pruned, cut)`` changes it in place.

It returns what it zeroed, which is where the mask comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from secateur.errors import BudgetError
from secateur.numeric import is_real
from secateur.pruning.selection import AnyCut, Cut, Scores, cut_globally


class Shrinkage(Protocol):
    """Changes a weight in place and returns the bool tensor of what it zeroed.

    What else it may say of itself: ``secateur.pruning.capabilities``.
    """

    def __call__(self, weight: Tensor, pruned: Tensor, cut: AnyCut) -> Tensor: ...


@dataclass(frozen=True)
class Hard:
    """0 where the cut takes it, else unchanged.

    It is the default of ``secateur.prune``, and goes with everything.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.5, -1.0, 2.0, -4.0]])
        >>> _ = sc.prune(layer, sc.Magnitude(), sc.Threshold(1.0), shrinkage=sc.Hard())
        >>> layer.weight.data
        tensor([[ 0., -1.,  2., -4.]])
    """

    def __call__(self, weight: Tensor, pruned: Tensor, cut: AnyCut) -> Tensor:
        weight.masked_fill_(pruned, 0)
        return pruned


@dataclass(frozen=True)
class Soft:
    """sign(w) max(|w| - t, 0) at the cut's value t; goes with Magnitude only.

    What stays moves towards zero by t, so it is done once, not along a schedule, and not in blocks.

    Source:
        Donoho, "De-noising by soft-thresholding" (1995).

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.5, -1.0, 2.0, -4.0]])
        >>> _ = sc.prune(layer, sc.Magnitude(), sc.Threshold(1.0), shrinkage=sc.Soft())
        >>> layer.weight.data
        tensor([[ 0.,  0.,  1., -3.]])
    """

    shrinks: ClassVar[bool] = True

    def __call__(self, weight: Tensor, pruned: Tensor, cut: AnyCut) -> Tensor:
        return _shrink("Soft", weight, pruned, cut, soft_threshold)


@dataclass(frozen=True)
class Trimmed:
    """Trimmed thresholding: the largest weights stay, those at most t go, and the rest lose t.

    It goes with Magnitude and value budgets (Threshold, Std) only, once, and not in blocks.

    Args:
        upper: weights at or above this quantile of |w| in the layer stay as they are; between 0 and 1.

    Raises:
        BudgetError: for what is no such quantile.

    Source:
        After Fang & Huang.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.5, -1.0, 2.0, -4.0]])
        >>> _ = sc.prune(layer, sc.Magnitude(), sc.Threshold(1.0), shrinkage=sc.Trimmed(upper=0.75))
        >>> layer.weight.data
        tensor([[ 0.,  0.,  1., -4.]])
    """

    upper: float = 0.99
    shrinks: ClassVar[bool] = True
    needs_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (is_real(self.upper) and 0 < self.upper < 1):
            raise BudgetError(f"upper is {self.upper!r}; it is a quantile between 0 and 1, like 0.99")

    def __call__(self, weight: Tensor, pruned: Tensor, cut: AnyCut) -> Tensor:
        if not isinstance(cut, Cut) or cut.ties is not None:
            raise BudgetError("Trimmed goes with a value budget (Threshold, Std), not with a count")
        size = Scores("weight", tuple(weight.shape), lambda rows: weight[rows].abs())
        count = min(size.numel, round(self.upper * size.numel) + 1)
        upper = cut_globally([size], count)["weight"].value
        shrunk = lambda part, t: torch.where(part.abs() >= upper, part, soft_threshold(part, t))  # noqa: E731
        pruned = (weight.abs() < upper) & (weight.abs() <= cut.value)
        return _shrink("Trimmed", weight, pruned, cut, shrunk, widen=False)


@dataclass(frozen=True)
class Smooth:
    """0 where |w| <= t, else w (1 - (t / |w|)^a): a smooth form of thresholding.

    It is Soft at ``a`` = 1, and nearer to Hard as it grows; as Soft it goes with Magnitude only.

    Args:
        a: the power, over 0.

    Raises:
        BudgetError: for a power that is not over 0.

    Source:
        Fang & Huang.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[0.5, -1.0, 2.0, -4.0]])
        >>> _ = sc.prune(layer, sc.Magnitude(), sc.Threshold(1.0), shrinkage=sc.Smooth(a=2.0))
        >>> layer.weight.data
        tensor([[ 0.0000,  0.0000,  1.5000, -3.7500]])
    """

    a: float = 2.0
    shrinks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (is_real(self.a) and self.a > 0):
            raise BudgetError(f"a is {self.a!r}; it is a power above 0")

    def __call__(self, weight: Tensor, pruned: Tensor, cut: AnyCut) -> Tensor:
        def shrunk(part: Tensor, t: float) -> Tensor:
            factor = 1 - (t / part.abs().clamp(min=t or 1.0)).pow(self.a)
            return part * factor if t else part

        return _shrink("Smooth", weight, pruned, cut, shrunk)


def soft_threshold(weight: Tensor, threshold: float) -> Tensor:
    """Return sign(w) max(|w| - t, 0): the proximal map of t times the L1 norm."""
    if weight.is_complex():
        return weight.sgn() * torch.nn.functional.softshrink(weight.abs(), threshold)
    return torch.nn.functional.softshrink(weight, threshold)


def _shrink(
    name: str,
    weight: Tensor,
    pruned: Tensor,
    cut: AnyCut,
    shrunk: Callable[[Tensor, float], Tensor],
    widen: bool = True,
) -> Tensor:
    if not isinstance(cut, Cut):
        raise BudgetError(f"{name} needs a threshold, which neither N:M nor a budget per row has; use Hard")
    threshold = max(cut.value, 0.0)
    if widen and cut.ties is None:
        pruned = pruned | (weight.abs() <= threshold)
    weight.copy_(shrunk(weight, threshold).masked_fill(pruned, 0))
    return pruned
