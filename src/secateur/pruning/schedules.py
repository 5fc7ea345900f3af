"""The way to a budget: one shot, iterative or cubic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Protocol

from secateur.errors import BudgetError
from secateur.numeric import is_real, is_whole
from secateur.pruning.capabilities import amount_of, changed, name_of, says
from secateur.text import shown


class Schedule(Protocol):
    """Gives the amounts on the way to the ``final`` one, the last being ``final`` itself.

    One that says it is ``one_shot`` serves budgets without an amount too.
    """

    def __call__(self, final: float) -> list[float]: ...


@dataclass(frozen=True)
class OneShot:
    """All at once.

    It serves budgets without an amount too, like ``NM``.

    Example:
        >>> import secateur as sc
        >>> sc.OneShot()(0.9)
        [0.9]
    """

    one_shot: ClassVar[bool] = True

    def __call__(self, final: float) -> list[float]:
        return [final]


@dataclass(frozen=True)
class _Stepwise:
    """A way of ``steps`` from ``initial`` on."""

    steps: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not (is_whole(self.steps) and self.steps >= 1):
            raise BudgetError(f"{self}: steps count from 1")
        if not (is_real(self.initial) and 0 <= self.initial < 1):
            raise BudgetError(f"{self}: initial is the sparsity to begin from, from 0 to under 1")

    def _check(self, final: float) -> None:
        if final < self.initial:
            raise BudgetError(f"{self} begins at {self.initial}, past the budget of {final}")


@dataclass(frozen=True)
class Iterative(_Stepwise):
    """The same share of what is left, ``steps`` times.

    The density falls geometrically from 1 - ``initial``. The last step is the budget's own amount, under 1.

    Args:
        steps: how many, from 1.
        initial: the sparsity to begin from, from 0 to under 1.

    Raises:
        BudgetError: for such numbers as cannot be; when it is used, for a budget under ``initial``, or of 1.

    Source:
        Han et al. (NeurIPS 2015); Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019).

    Example:
        >>> import secateur as sc
        >>> sc.Iterative(steps=3)(0.875)  # half of what is left goes, three times
        [0.5, 0.75, 0.875]
    """

    def __call__(self, final: float) -> list[float]:
        self._check(final)
        if final >= 1:
            raise BudgetError(f"{self} never reaches {final}: it keeps a share of what is left")
        start, end = 1 - self.initial, 1 - final
        way = [1 - start * (end / start) ** (i / self.steps) for i in range(1, self.steps)]
        return [*way, final]


@dataclass(frozen=True)
class Cubic(_Stepwise):
    """s_t = s_f + (s_i - s_f) (1 - t / n)^3 for t = 1..n: fast while there is much to spare, slow at the end.

    The last step is the budget's own amount.

    Args:
        steps: how many, n.
        initial: the sparsity to begin from, s_i, from 0 to under 1.

    Raises:
        BudgetError: for such numbers as cannot be; when it is used, for a budget under ``initial``.

    Source:
        Zhu & Gupta, "To prune, or not to prune" (2017).

    Example:
        >>> import secateur as sc
        >>> [round(share, 3) for share in sc.Cubic(steps=4)(0.96)]
        [0.555, 0.84, 0.945, 0.96]
    """

    def __call__(self, final: float) -> list[float]:
        self._check(final)
        gap = self.initial - final
        return [final + gap * (1 - t / self.steps) ** 3 for t in range(1, self.steps)] + [final]


def budgets_along(budget: Any, schedule: Schedule) -> list[Any]:
    """Return the budget at each step of the schedule; the last is ``budget`` itself."""
    if isinstance(schedule, type) or not callable(schedule):
        raise BudgetError(f"schedule is {schedule!r}; it is an instance, like Cubic(4)")
    final = amount_of(budget)
    if final is None:
        if says(schedule, "one_shot"):
            return [budget]
        raise BudgetError(f"{budget} has no amount that a schedule could raise; use OneShot()")
    if isinstance(final, Mapping):
        ways = {name: _way(schedule, share) for name, share in final.items()}
        steps = len(next(iter(ways.values()), []))
        levels: list[Any] = [{n: way[i] for n, way in ways.items()} for i in range(steps)]
    else:
        levels = _way(schedule, final)
    return [changed(budget, **{budget.amount: level}) for level in levels]


def _way(schedule: Schedule, final: float) -> list[float]:
    way: Any = schedule(final)
    if not isinstance(way, Iterable) or not (way := list(way)) or not all(isinstance(a, Real) for a in way):
        raise BudgetError(
            f"{name_of(schedule)} gave {shown(way)}; a schedule gives a list of amounts that ends in {final}"
        )
    return way
