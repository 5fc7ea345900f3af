"""When a search that makes a network smaller has got there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import BudgetError
from secateur.graph.capture import all_tensors
from secateur.measure.latency import time_inference
from secateur.measure.macs import Macs, count_macs
from secateur.measure.size import count_parameters
from secateur.numeric import is_real
from secateur.pruning.targets import sparsity as sparsity_of
from secateur.structure.labels import Array
from secateur.structure.surgery import entries_left, parameters_left, removed_by
from secateur.structure.units import Structure

_LEFT = "a share of the dense network's, between 0 and 1 (1: all of them)"
_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    "macs": (lambda share: 0 < share <= 1, _LEFT),
    "parameters": (lambda share: 0 < share <= 1, _LEFT),
    "sparsity": (
        lambda share: 0 <= share < 1,
        "a share of the dense network's weights, between 0 and 1 (0: none gone)",
    ),
    "latency_ms": (lambda limit: limit > 0, "a positive number of milliseconds"),
    "score": (lambda limit: True, "a number"),
    "drop": (lambda points: points >= 0, "in the score's unit (percentage points of accuracy), from 0"),
}


def check_goal(allowed: Sequence[str], **wanted: float | None) -> tuple[str, float]:
    """Return the name and the limit of the one goal that is wanted. Shares of what may be left (``macs``,
    ``parameters``) are over 0, up to 1; the share that is gone (``sparsity``) is from 0, under 1.

    Args:
        allowed: the goals that the search knows.
        **wanted: the goals by name, of which one is not None.

    Returns:
        The name and the limit.

    Raises:
        BudgetError: where it is not exactly one of those allowed, or its limit is impossible.

    Example:
        >>> from secateur.methods.goals import check_goal
        >>> check_goal(("macs", "parameters"), macs=0.5, parameters=None)
        ('macs', 0.5)
    """
    given = {name: limit for name, limit in wanted.items() if limit is not None}
    if len(given) != 1 or not given.keys() <= set(allowed):
        *names, last = allowed
        raise BudgetError(
            f"give exactly one of {', '.join(names)} and {last}; got {' and '.join(given) or 'none'}"
        )
    (name, limit), *_ = given.items()
    fits, right = _LIMITS[name]
    if not is_real(limit):
        raise BudgetError(f"{name} is {limit!r}; it is a number")
    if not fits(limit):
        raise BudgetError(f"{name} is {limit!r}; it is {right}")
    return name, limit


@dataclass(frozen=True)
class Goal:
    """``name`` of what is limited, and the ``limit``; a ``score`` is for the search itself to watch.

    ``total``: how much there is of it in the network ``dense``. Multiply-adds are dense ones.
    """

    name: str
    limit: float
    dense: nn.Module
    example_inputs: Any
    kwargs: Mapping[str, Any] | None
    total: int

    def __str__(self) -> str:
        return f"{self.name}={self.limit:g}"

    def met(self, cost: float) -> bool:
        """Whether a network of this cost is there."""
        return cost >= self.limit if self.name == "sparsity" else cost <= self.limit

    def cost(self, model: nn.Module) -> float:
        """Return what a network has of what is limited, as the limit is given."""
        if self.name == "latency_ms":
            return time_inference({"small": model}, self.example_inputs)["small"].median * 1e3
        if self.name == "sparsity":
            return sparsity_of(model, self.dense)
        if self.name == "macs":
            return count_macs(model, self.example_inputs, self.kwargs).dense / self.total
        return count_parameters(model) / self.total if self.name == "parameters" else math.inf

    def meter(self, model: nn.Module, structure: Structure) -> Callable[[Mapping[str, Array]], float]:
        """Return what gives, from the units of a masked network that are masked, the cost that it will have
        without them; where only the small network shows that, an infinity."""
        if self.name == "sparsity":
            return lambda pruned: self.cost(model)
        if self.name == "macs":
            macs = count_macs(model, self.example_inputs, self.kwargs)
            return lambda pruned: _macs_left(macs, structure, pruned) / self.total
        if self.name == "parameters":
            return lambda pruned: parameters_left(structure, pruned) / self.total
        return lambda pruned: math.inf

    def missed(self, min_kept: int, cost: float) -> BudgetError:
        """Return the error of a search that has nothing left to remove."""
        return BudgetError(f"{self} cannot be met: with {min_kept} units left in each group it is {cost:.3g}")


def goal_of(
    dense: nn.Module,
    example_inputs: Any,
    kwargs: Mapping[str, Any] | None,
    allowed: Sequence[str],
    **wanted: float | None,
) -> Goal:
    """Return the one goal that is wanted, measured against ``dense``; raises as ``check_goal``, and where
    the network has nothing of what is limited."""
    name, limit = check_goal(allowed, **wanted)
    if name == "latency_ms" and kwargs:
        raise BudgetError("latency_ms is measured on example_inputs alone; pass a dict instead of kwargs=")
    total = count_parameters(dense) if name == "parameters" else 1
    if name == "macs":
        total = count_macs(dense, example_inputs, kwargs).dense
        if not total:
            raise BudgetError(
                f"{type(dense).__name__} has no multiply-adds to limit; give parameters= instead"
            )
    return Goal(name, limit, dense, example_inputs, kwargs, total)


def _macs_left(macs: Macs, structure: Structure, pruned: Mapping[str, Array]) -> float:
    """The multiply-adds without some units: those of each weight fall with its entries."""
    removed, tensors = removed_by(structure, pruned), dict(all_tensors(structure.model))
    less = sum(
        number * (1 - entries_left(tensors[name], name, removed) / tensors[name].numel())
        for name, number in macs.weights.items()
        if name in tensors
    )
    return macs.dense - less
