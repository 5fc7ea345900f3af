"""When a search that makes a network smaller has got there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import BudgetError
from secateur.measure.latency import time_inference
from secateur.measure.macs import count_macs
from secateur.measure.size import count_parameters
from secateur.pruning.targets import sparsity as sparsity_of
from secateur.structure.labels import Array
from secateur.structure.surgery import removed_by
from secateur.structure.units import Structure

_SHARES = ("sparsity", "parameters", "macs")


@dataclass(frozen=True)
class Goal:
    """``name`` of what is limited, and the ``limit``; ``score`` is for the search itself to watch."""

    name: str
    limit: float
    _left: Callable[[nn.Module, Structure | None, Mapping[str, Array]], float]

    def __str__(self) -> str:
        given = 1 - self.limit if self.name == "sparsity" else self.limit
        return f"{self.name}={given:g}"

    def met(
        self, model: nn.Module, structure: Structure | None = None, doomed: Mapping[str, Array] | None = None
    ) -> bool:
        """Whether a network is there; masked (of ``structure`` the units ``doomed``) or compacted."""
        return self._left(model, structure, doomed or {}) <= self.limit


def goal_of(dense: nn.Module, example_inputs: Any, **wanted: float | None) -> Goal:
    """Return the one goal that is given: ``sparsity``, ``parameters``, ``macs``, ``latency_ms``, ``score``.

    Raises BudgetError where it is not exactly one, or cannot be a share, a time or a score.
    """
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise BudgetError(f"give exactly one of {', '.join(f'{name}=' for name in wanted)}; got {len(given)}")
    (name, limit), *_ = given.items()
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not math.isfinite(limit):
        raise BudgetError(f"{name} is {limit!r}; it is a number")
    if name in _SHARES and not 0 < limit < 1:
        raise BudgetError(f"{name} is {limit}; it is a share of the dense network's, between 0 and 1")
    if name == "latency_ms" and limit <= 0:
        raise BudgetError(f"latency_ms is {limit}; it is a positive number of milliseconds")
    all_macs = dense_macs(dense, example_inputs) if name == "macs" else 0

    def left(model: nn.Module, structure: Structure | None, doomed: Mapping[str, Array]) -> float:
        if name == "sparsity":
            return 1 - sparsity_of(model, dense)
        if name == "parameters":
            return _parameters_left(model, structure, doomed) / count_parameters(dense)
        if name == "macs":
            return count_macs(model, example_inputs).effective / all_macs
        if name == "latency_ms" and structure is None:
            return time_inference({"small": model}, example_inputs)["small"].median * 1e3
        return math.inf

    return Goal(name, 1 - limit if name == "sparsity" else limit, left)


def dense_macs(model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None = None) -> int:
    """Return the multiply-adds of which a share may be left; raises BudgetError where there are none."""
    macs = count_macs(model, example_inputs, kwargs).dense
    if not macs:
        raise BudgetError(f"{type(model).__name__} has no multiply-adds to limit; give parameters= instead")
    return macs


def _parameters_left(model: nn.Module, structure: Structure | None, doomed: Mapping[str, Array]) -> int:
    """The parameters of a model once the units ``doomed`` are cut out."""
    gone = {} if structure is None else removed_by(structure, doomed)
    total = 0
    for name, parameter in model.named_parameters():
        kept = [size - len(gone.get((name, dim), ())) for dim, size in enumerate(parameter.shape)]
        total += math.prod(kept)
    return total
