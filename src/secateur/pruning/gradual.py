"""Pruning along a schedule: between epochs, or every k optimizer steps of any loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.errors import BudgetError, SecateurWarning, StorageError
from secateur.graph.capture import parameters_of
from secateur.graph.names import unwrapped
from secateur.pruning.budgets import Budget
from secateur.pruning.capabilities import amount_of, says
from secateur.pruning.criteria import Criterion
from secateur.pruning.holding import Optimizers, check_updates, levels_of
from secateur.pruning.masks import Masks
from secateur.pruning.prune import check, prune
from secateur.pruning.remembered import check_same, settings_of
from secateur.pruning.schedules import Schedule, budgets_along
from secateur.pruning.structured import UnitBudget, already_pruned, select_groups
from secateur.pruning.targets import count_nonzero, find_targets
from secateur.pruning.unit_criteria import UnitCriterion
from secateur.pruning.zeros import Holder
from secateur.shards import fitted, local, total
from secateur.structure.units import Structure
from secateur.text import nearest

_OPTIONS = (
    "shrinkage", "granularity", "data", "loss", "include", "exclude", "structure", "round_to", "min_kept",
    "group", "removable_only", "alike",
)  # fmt: skip
_CHOICES = ("shrinkage", "granularity", "round_to", "min_kept", "alike")


def gradually(
    model: nn.Module,
    criterion: Criterion | UnitCriterion,
    budget: Budget | UnitBudget,
    schedule: Schedule,
    *,
    start: int = 0,
    masks: Masks | None = None,
    **options: Any,
) -> Iterator[Masks]:
    """Prune ``model`` along ``schedule`` to ``budget``, yielding the masks of each step; train in the loop's
    body. What an earlier step masked stays masked.

    Args:
        model: the network.
        criterion: as for ``secateur.prune``.
        budget: where the way ends.
        schedule: the amounts on the way there.
        start: the step to resume at.
        masks: those of the step before ``start``.
        **options: those of ``secateur.prune``, ``structure`` for whole units among them.

    Returns:
        An iterator of the masks of each step.

    Raises:
        BudgetError, CriterionError: for choices that do not go together; for a network that is sparser than
            the first step would leave it.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Linear(8, 16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for masks in sc.gradually(model, sc.Magnitude(), sc.Global(0.75), sc.Iterative(steps=2)):
        ...     with masks.held(optimizer):
        ...         model(torch.randn(4, 8)).square().mean().backward()
        ...         optimizer.step()
        ...     print(masks.sparsity)
        0.5
        0.75
    """
    way = budgets_along(budget, schedule)
    _check_start(start, len(way), masks)
    _check_options(criterion, budget, options, len(way))
    if not start:
        _check_entry(way, model, masks, options)
    return _steps(way[start:], model, criterion, masks, options)


def _steps(
    way: list[Any], model: nn.Module, criterion: Any, masks: Masks | None, options: Any
) -> Iterator[Masks]:
    for budget in way:
        masks = prune(model, criterion, budget, masks=masks, **options)
        yield masks


@dataclass(eq=False, repr=False)
class GradualPruning:
    """Pruning under way inside ``during``: the ``masks`` in force, optimizer ``steps`` taken,
    and ``level``, how many of the schedule's amounts have been reached."""

    model: nn.Module
    way: list[Any]
    every: int
    settings: dict[str, str]
    _take: Callable[[Any, Masks | None], Masks]
    _optimizer: Optimizers
    _averaged: Any
    level: int = 0
    steps: int = 0
    masks: Masks | None = None

    def __post_init__(self) -> None:
        self._holder = Holder(self._optimizer, self._averaged, self._stepped)

    def state_dict(self) -> dict[str, Any]:
        """Return where the pruning stands, as numbers and tensors, for a checkpoint of any kind."""
        assert self.masks is not None
        return {
            "level": self.level,
            "levels": len(self.way),
            "steps": self.steps,
            "every": self.every,
            "settings": self.settings,
            "masks": self.masks.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state_dict``. Load the network's weights inside the block too: what entering
        it pruned is then gone.

        Raises StorageError for what is no such state, MaskError for masks of another network, BudgetError
        for other settings: criterion, budget, schedule, ``every`` or options of ``secateur.prune``.
        """
        names = ("level", "steps", "levels", "every")
        numbers = [state.get(name) if isinstance(state, Mapping) else None for name in names]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise StorageError(
                "the state is not one of during(): level, levels, steps and every are numbers there"
            )
        level, steps, *schedule = numbers
        if schedule != [len(self.way), self.every] or not 1 <= level <= len(self.way):  # type: ignore[operator]
            raise BudgetError(
                f"the state is of step {level} of {schedule[0]}, one every {schedule[1]} optimizer steps; "
                f"this schedule has {len(self.way)}, one every {self.every}"
            )
        check_same(state.get("settings"), self.settings)
        masks = Masks(self.model, {})
        masks.load_state_dict(state.get("masks", {}))
        self._go_on(level, steps, masks)  # type: ignore[arg-type]

    def _go_on(self, level: int, steps: int, masks: Masks) -> None:
        self._holder.hold(masks)
        self.level, self.steps, self.masks = level, steps, masks

    def _tighten(self) -> None:
        self._go_on(self.level + 1, self.steps, self._take(self.way[self.level], self.masks))

    def _stepped(self) -> None:
        self.steps += 1
        if self.steps % self.every == 0 and self.level < len(self.way):
            self._tighten()

    @contextmanager
    def _under_way(self, level: int, steps: int, masks: Masks | None, state: Any) -> Iterator[None]:
        if state is not None:
            self.load_state_dict(state)
        elif level and masks is not None:
            self._go_on(level, steps, masks.bind(self.model))
        else:
            self.steps, self.masks = steps, masks
            self._tighten()
        with self._holder.holding():
            yield


@contextmanager
def during(
    optimizer: Optimizers,
    model: nn.Module,
    criterion: Criterion | UnitCriterion,
    budget: Budget | UnitBudget,
    schedule: Schedule,
    *,
    every: int,
    start: int = 0,
    steps: int = 0,
    masks: Masks | None = None,
    state: Mapping[str, Any] | None = None,
    averaged: Any = None,
    **options: Any,
) -> Iterator[GradualPruning]:
    """Prune while any loop trains: on entry, then after every ``every`` steps of ``optimizer``, one step of
    ``schedule``. The masks are held in between and to the end of the block, which warns where it comes before
    the schedule's.

    To resume, give the ``state`` that the ``state_dict`` of what was yielded returned, or ``start``,
    ``steps`` and ``masks`` as its ``level``, ``steps`` and ``masks`` stood: those are held until the next
    step of the schedule is due.

    Args:
        optimizer: the one that trains the model, or a list, of which the steps of the first are counted.
        model: the network.
        criterion: as for ``secateur.prune``.
        budget: where the way ends.
        schedule: the amounts on the way there.
        every: how many steps of the optimizer one of the schedule takes.
        start: the step of the schedule to resume at.
        steps: how many steps of the optimizer have been taken.
        masks: those in force at ``start``.
        state: where the pruning stood, instead of the last three; it goes on with the settings it was saved
            with, while the last three go with any.
        averaged: see ``secateur.Masks.held``.
        **options: those of ``secateur.prune``.

    Returns:
        A context manager that gives the ``GradualPruning`` under way.

    Raises:
        BudgetError, CriterionError: for choices that do not go together; for a network that is sparser than
            the first step would leave it; for a ``state`` of other settings.
        MaskError: for an optimizer that updates nothing of what would be pruned.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Linear(8, 16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> schedule = sc.Iterative(steps=2)
        >>> with sc.during(optimizer, model, sc.Magnitude(), sc.Global(0.75), schedule, every=1) as pruning:
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> pruning.masks.sparsity
        0.75
    """
    way = budgets_along(budget, schedule)
    _check_start(start, len(way) + 1, masks)  # past the last step there is still holding to do
    _check_options(criterion, budget, options, len(way))
    if every < 1:
        raise BudgetError(f"every is {every}; it counts optimizer steps, from 1")
    _check_optimizer(optimizer, model, options)  # before the first weight goes
    if not start and state is None:
        _check_entry(way, model, masks, options)

    def take(step: Any, before: Masks | None) -> Masks:
        return prune(model, criterion, step, masks=before, **options)

    settings = settings_of(criterion, budget, schedule, options)  # before training changes any of it
    pruning = GradualPruning(model, way, every, settings, take, optimizer, averaged)
    with pruning._under_way(start, steps, masks, state):
        yield pruning
    assert pruning.masks is not None
    if pruning.level < len(way):
        warnings.warn(
            f"the masks are those after {pruning.steps} optimizer steps, of step {pruning.level} of "
            f"{len(way)} of the schedule: sparsity {pruning.masks.sparsity:.2%} of the budget {budget}",
            SecateurWarning,
            stacklevel=3,
        )


def _check_entry(way: list[Any], model: nn.Module, masks: Masks | None, options: dict[str, Any]) -> None:
    """Refuse a network that is sparser than the first of several steps would leave it: the schedule would
    mask little or nothing until it caught up."""
    if len(way) < 2 or way[0].amount != "sparsity":
        return
    amounts = [amount_of(budget) for budget in way]
    named = amounts[0] if isinstance(amounts[0], Mapping) else {None: amounts[0]}
    for pattern, first in named.items():
        share, slack = _share_zero(way[0], pattern, model, masks, options)
        if share > first + slack:
            levels = [amount if pattern is None else amount[pattern] for amount in amounts]
            fits = sum(level <= share + slack for level in levels)
            raise BudgetError(
                f"{pattern or type(model).__name__} is already {share:.2%} sparse, more than the {first:.2%} "
                f"of the schedule's first step: go on with start={fits} and masks= those of step {fits - 1} "
                f"(or a state=, in during), or begin the schedule there, initial={share:.4f}"
            )


def _share_zero(
    budget: Any, pattern: str | None, model: nn.Module, masks: Masks | None, options: dict[str, Any]
) -> tuple[float, float]:
    """Return the share, of what the budget counts, that is zero or masked, and how far counts round."""
    include = options.get("include") if pattern is None else pattern
    structure = options.get("structure")
    if isinstance(structure, Structure):
        groups = select_groups(
            structure, include, options.get("exclude"), options.get("removable_only", True)
        )
        pruned = already_pruned(replace(structure, groups=groups), masks, model)
        if (share := says(budget, "share")) is not None:
            return share(structure, pruned), 1e-9
        number = sum(map(len, pruned.values()))
        return sum(int(units.sum()) for units in pruned.values()) / number, len(pruned) / 2 / number + 1e-9
    targets = find_targets(model, include, options.get("exclude"))
    kept = {} if masks is None else masks.bind(model)
    nonzero = 0
    for name, target in targets.items():
        weight = local(target.weight.detach())
        alive = weight * fitted(kept[name], target.weight) if name in kept else weight
        nonzero += total(count_nonzero(alive), target.weight)
    number = sum(target.weight.numel() for target in targets.values())
    return 1 - nonzero / number, len(targets) / 2 / number + 1e-9


def _check_optimizer(optimizer: Optimizers, model: nn.Module, options: dict[str, Any]) -> None:
    levels = levels_of(optimizer)
    patterns = options.get("include"), options.get("exclude")
    structure = options.get("structure")
    if isinstance(structure, Structure):
        groups = select_groups(structure, *patterns, options.get("removable_only", True)).values()
        names = {part.name for group in groups for part in group.slices}
        wanted = [p for name, p in parameters_of(unwrapped(model)) if name in names]
    else:
        wanted = [target.weight for target in find_targets(model, *patterns).values()]
    trained = [weight for weight in wanted if weight.requires_grad]
    if trained:  # nothing moves what is frozen, as all is under adapters
        check_updates(levels, trained, "what would be pruned", model)


def _check_options(criterion: Any, budget: Any, options: dict[str, Any], steps: int) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise BudgetError(f"prune has no option {name!r}{nearest(name, _OPTIONS)}")
    chosen = {name: options[name] for name in _CHOICES if name in options}
    check(criterion, budget, units=options.get("structure") is not None, scheduled=steps > 1, **chosen)
    if steps > 1 and isinstance(options.get("data"), Iterator):
        raise BudgetError(
            f"data is an iterator, which gives its batches once, not {steps} times; pass a list"
        )


def _check_start(start: int, steps: int, masks: Masks | None) -> None:
    if not 0 <= start < steps:
        raise BudgetError(f"start is {start}; the schedule has steps 0 to {steps - 1}")
    if start and masks is None:
        raise BudgetError(f"resuming at step {start} needs masks=, those of step {start - 1}")
