"""What criteria, budgets and shrinkages give back. They may be anybody's, so it is checked before it is used,
and weights that they spoil are put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from secateur.errors import BudgetError, CriterionError, SecateurError
from secateur.pruning.capabilities import name_of
from secateur.pruning.selection import AnyCut
from secateur.pruning.shrinkage import Hard
from secateur.text import first_line, nearest, shown


@contextmanager
def put_back(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield copies of some weights, and on any error make the weights what they were."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    storages = {name: weight.data for name, weight in weights.items()}
    try:
        yield before
    except BaseException:
        for name, weight in weights.items():
            weight.data = storages[name]  # one of another shape may have taken its place
            weight.data.copy_(before[name])
        raise


def scores_given(
    criterion: Any,
    call: Callable[..., Any],
    weights: Mapping[str, Tensor],
    subject: Any,
    data: Any,
    loss: Any,
) -> Mapping[str, Any]:
    """Return what a criterion gives when it is asked by ``call``, having changed no weight.

    Raises CriterionError where it changes one, and where it gives no dict.
    """
    packaged = type(criterion).__module__.startswith("secateur.")  # ours only read, so no copies are needed
    with put_back({} if packaged else weights) as before:
        scores = call(subject, data, loss)
        for name, old in before.items():
            if not torch.equal(old, weights[name].detach()) and not old.isnan().any():
                raise CriterionError(f"{name_of(criterion)} changed {name}; a criterion only reads weights")
    if not isinstance(scores, Mapping):
        raise CriterionError(f"{name_of(criterion)} gave {shown(scores)}; it gives a dict of scores by name")
    return scores


def check_scores(
    criterion: Any, name: str, raw: Any, shape: tuple[int, ...], own: tuple[int, ...] | None = None
) -> None:
    """Raise CriterionError for what are no scores of a tensor of this shape: neither a tensor of it nor a
    function from a slice of rows to theirs; those rows are of this process's part, which has the shape
    ``own``."""
    if callable(raw) and not isinstance(raw, Tensor):
        length, *others = own or shape
        raw, shape = raw(slice(0, 1)), (min(1, length), *others)
    if not isinstance(raw, Tensor):
        raise CriterionError(
            f"{name}: {name_of(criterion)} gave {shown(raw)}; scores are a tensor, or a function from a "
            "slice of rows to one"
        )
    if tuple(raw.shape) != shape:
        raise CriterionError(f"{name}: the scores have shape {tuple(raw.shape)}, the weight {shape}")
    if not raw.is_floating_point():
        raise CriterionError(f"{name}: the scores are of {raw.dtype}; floating-point ones can be ranked")


def check_cuts(budget: Any, cuts: Any, names: Iterable[str]) -> Mapping[str, AnyCut]:
    """Return what a budget gives; raises BudgetError where that is no cut for each name."""
    who = name_of(budget)
    if not isinstance(cuts, Mapping):
        raise BudgetError(
            f"{who} gave {shown(cuts)}; a budget gives a dict of cuts by name, like sc.Cut(0.5)"
        )
    for name in names:
        if name not in cuts:
            raise BudgetError(f"{who} gave no cut for {name!r}{nearest(name, map(str, cuts))}")
        if not isinstance(cuts[name], AnyCut):
            raise BudgetError(f"{name}: {who} gave {shown(cuts[name])}; it gives a cut, like sc.Cut(0.5)")
    return cuts


def cannot_spoil(shrinkage: Any) -> bool:
    """Whether nothing that a shrinkage does is worth a look, which would take as long as pruning."""
    return type(shrinkage) is Hard


def zeroed_by(shrinkage: Any, name: str, weight: Tensor, pruned: Tensor, cut: AnyCut) -> Tensor:
    """Let a shrinkage change a weight and return the bool tensor of what it zeroed.

    Raises BudgetError where it raises anything but a SecateurError, does not say what it zeroed, or leaves
    there or elsewhere what cannot be.
    """
    if cannot_spoil(shrinkage):
        return shrinkage(weight, pruned, cut)
    who, shape = f"{name}: {name_of(shrinkage)}", weight.shape
    try:
        zeroed = shrinkage(weight, pruned, cut)
    except SecateurError:
        raise
    except Exception as error:
        raise BudgetError(f"{who} failed: {type(error).__name__}: {first_line(error)}") from error
    if not (isinstance(zeroed, Tensor) and zeroed.dtype == torch.bool and zeroed.shape == shape):
        what = f"a {zeroed.dtype} of {tuple(zeroed.shape)}" if isinstance(zeroed, Tensor) else shown(zeroed)
        raise BudgetError(
            f"{who} returned {what}; it returns a bool tensor of {tuple(shape)}: what it zeroed"
        )
    if weight.shape != shape or not weight.isfinite().all():
        raise BudgetError(f"{who} left a weight of another shape, or a NaN or an infinity in it")
    if ((weight != 0) & zeroed).count_nonzero():
        raise BudgetError(f"{who} says that it zeroed weights that are not zero; it changes them in place")
    return zeroed
