"""The way to a budget: one shot, iterative or cubic, between epochs or every k optimizer steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from secateur.errors import BudgetError, MaskError, SecateurWarning, nearest
from secateur.pruning.budgets import Budget
from secateur.pruning.criteria import Criterion
from secateur.pruning.masks import Holder, Masks
from secateur.pruning.prune import prune
from secateur.pruning.shrinkage import Hard
from secateur.pruning.structured import ParameterShare, select_groups
from secateur.pruning.targets import find_targets
from secateur.pruning.unit_criteria import UnitCriterion
from secateur.structure.names import unwrapped
from secateur.structure.units import Structure

_OPTIONS = (
    "shrinkage", "granularity", "data", "loss", "include", "exclude", "structure", "round_to", "min_kept",
)  # fmt: skip


class Schedule(Protocol):
    """Gives the amounts on the way to the ``final`` one, the last being ``final`` itself."""

    def __call__(self, final: float) -> list[float]: ...


@dataclass(frozen=True)
class OneShot:
    """All at once."""

    def __call__(self, final: float) -> list[float]:
        return [final]


@dataclass(frozen=True)
class Iterative:
    """The same share of what is left, ``steps`` times (Han et al., 2015; Frankle & Carbin, 2019):
    the density falls geometrically from 1 - ``initial``.
    """

    steps: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self)

    def __call__(self, final: float) -> list[float]:
        _check_order(self, final)
        start, end = 1 - self.initial, 1 - final
        way = [1 - start * (end / start) ** (i / self.steps) for i in range(1, self.steps)]
        return [*way, final]


@dataclass(frozen=True)
class Cubic:
    """s_t = s_f + (s_i - s_f) (1 - t / n)^3 for t = 1..n (Zhu & Gupta, 2017): fast while there is
    much to spare, slow towards the end.
    """

    steps: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self)

    def __call__(self, final: float) -> list[float]:
        _check_order(self, final)
        gap = self.initial - final
        return [final + gap * (1 - t / self.steps) ** 3 for t in range(1, self.steps)] + [final]


def gradually(
    model: nn.Module,
    criterion: Criterion | UnitCriterion,
    budget: Budget | ParameterShare,
    schedule: Schedule,
    *,
    start: int = 0,
    masks: Masks | None = None,
    **options: Any,
) -> Iterator[Masks]:
    """Prune ``model`` along ``schedule`` to ``budget``, yielding the masks of each step; train in
    the loop's body. What an earlier step masked stays masked.

    ``start``: the step to resume at, with ``masks`` those of the step before. ``options`` are those
    of :func:`secateur.prune`, ``structure`` for whole units among them.

    >>> for masks in gradually(model, Magnitude(), Global(0.98), Cubic(steps=10)):  # doctest: +SKIP
    ...     with masks.held(optimizer):
    ...         train(model, optimizer)
    """
    way = budgets_along(budget, schedule)
    _check_start(start, len(way), masks)
    _check_options(options, len(way))
    return _steps(way[start:], model, criterion, masks, options)


def _steps(
    way: list[Any], model: nn.Module, criterion: Any, masks: Masks | None, options: Any
) -> Iterator[Masks]:
    for budget in way:
        masks = prune(model, criterion, budget, masks=masks, **options)
        yield masks


class GradualPruning:
    """Pruning under way inside :func:`during`: the ``masks`` in force, optimizer ``steps`` taken,
    and ``level``, how many of the schedule's amounts have been reached."""

    def __init__(self, way: list[Any], every: int, level: int, steps: int, masks: Masks | None) -> None:
        self.way = way
        self.every = every
        self.level = level
        self.steps = steps
        self.masks = masks


@contextmanager
def during(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    criterion: Criterion | UnitCriterion,
    budget: Budget | ParameterShare,
    schedule: Schedule,
    *,
    every: int,
    start: int = 0,
    steps: int = 0,
    masks: Masks | None = None,
    **options: Any,
) -> Iterator[GradualPruning]:
    """Prune while any loop trains: on entry, then after every ``every`` steps of ``optimizer``,
    one step of ``schedule``; the masks are held in between and to the end of the block.

    Warns where the block ends before the schedule does. To resume, give ``start``, ``steps`` and
    ``masks`` as the ``level``, ``steps`` and ``masks`` of what was yielded stood: ``masks`` are then
    held until the next step of the schedule is due. ``options`` are those of :func:`secateur.prune`.
    """
    way = budgets_along(budget, schedule)
    _check_start(start, len(way) + 1, masks)  # past the last step there is still holding to do
    _check_options(options, len(way))
    if every < 1:
        raise BudgetError(f"every is {every}; it counts optimizer steps, from 1")
    _check_optimizer(optimizer, model, options)  # before the first weight goes
    state = GradualPruning(way, every, start, steps, masks)

    def tighten() -> Holder:
        state.masks = prune(model, criterion, way[state.level], masks=state.masks, **options)
        state.level += 1
        return Holder(state.masks, optimizer)

    if start and masks is not None:
        state.masks = masks.bind(model).apply()
        holder = Holder(state.masks, optimizer)
    else:
        holder = tighten()

    def before(opt: Any, args: Any, kwargs: Any) -> Any:
        return holder.before(opt, args, kwargs)

    def after(opt: Any, args: Any, kwargs: Any) -> None:
        nonlocal holder
        holder.after(opt, args, kwargs)
        state.steps += 1
        if state.steps % every == 0 and state.level < len(way):
            holder = tighten()

    handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        yield state
    finally:
        for handle in handles:
            handle.remove()
    holder.check_finite()
    assert state.masks is not None
    state.masks.check()
    if state.level < len(way):
        warnings.warn(
            f"training ended after {state.steps} optimizer steps, at step {state.level} of "
            f"{len(way)} of the schedule: sparsity {state.masks.sparsity:.2%} of the budget {budget}",
            SecateurWarning,
            stacklevel=3,
        )


def budgets_along(budget: Any, schedule: Schedule) -> list[Any]:
    """Return the budget at each step of the schedule; the last is ``budget`` itself."""
    amount = getattr(budget, "amount", None)
    if amount is None:
        if isinstance(schedule, OneShot):
            return [budget]
        raise BudgetError(f"{budget} has no amount that a schedule could raise; use OneShot()")
    final = getattr(budget, amount)
    if isinstance(final, Mapping):
        ways = {name: schedule(share) for name, share in final.items()}
        steps = len(next(iter(ways.values()), []))
        levels: list[Any] = [{n: way[i] for n, way in ways.items()} for i in range(steps)]
    else:
        levels = list(schedule(final))
    return [replace(budget, **{amount: level}) for level in levels]  # type: ignore[type-var]


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, options: dict[str, Any]) -> None:
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    patterns = options.get("include"), options.get("exclude")
    structure = options.get("structure")
    if isinstance(structure, Structure):
        groups = select_groups(structure, *patterns).values()
        names = {part.name for group in groups for part in group.slices}
        wanted = [p for name, p in unwrapped(model).named_parameters() if name in names]
    else:
        wanted = [target.weight for target in find_targets(model, *patterns).values()]
    if not any(id(parameter) in mine for parameter in wanted):
        raise MaskError(
            f"the optimizer updates none of what would be pruned; make it from this {type(model).__name__}'s "
            "parameters()"
        )


def _check_options(options: dict[str, Any], steps: int) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise BudgetError(f"prune has no option {name!r}{nearest(name, _OPTIONS)}")
    if steps > 1 and not isinstance(options.get("shrinkage") or Hard(), Hard):
        name = type(options["shrinkage"]).__name__
        raise BudgetError(
            f"{name} would shrink the same weights at each of {steps} steps; use Hard, or OneShot()"
        )
    if steps > 1 and isinstance(options.get("data"), Iterator):
        raise BudgetError(
            f"data is an iterator, which gives its batches once, not {steps} times; pass a list"
        )


def _check_steps(schedule: Iterative | Cubic) -> None:
    if schedule.steps < 1:
        raise BudgetError(f"{schedule}: steps count from 1")
    if not 0 <= schedule.initial < 1:
        raise BudgetError(f"{schedule}: initial is the sparsity to begin from, from 0 to under 1")


def _check_order(schedule: Iterative | Cubic, final: float) -> None:
    if final < schedule.initial:
        raise BudgetError(f"{schedule} begins at {schedule.initial}, past the budget of {final}")
    if isinstance(schedule, Iterative) and final >= 1:
        raise BudgetError(f"{schedule} never reaches {final}: it keeps a share of what is left")


def _check_start(start: int, steps: int, masks: Masks | None) -> None:
    if not 0 <= start < steps:
        raise BudgetError(f"start is {start}; the schedule has steps 0 to {steps - 1}")
    if start and masks is None:
        raise BudgetError(f"resuming at step {start} needs masks=, those of step {start - 1}")
