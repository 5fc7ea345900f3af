"""Which choices of criterion, budget, shrinkage and granularity go together."""

from __future__ import annotations

from typing import Any

from secateur.errors import BudgetError, CriterionError
from secateur.numeric import is_whole
from secateur.pruning.capabilities import name_of, says
from secateur.pruning.shrinkage import Hard

_UNITS = "pass structure=trace(model, example_inputs), or units: true in a recipe"


def check(
    criterion: Any,
    budget: Any,
    *,
    shrinkage: Any = None,
    granularity: Any = None,
    units: bool = False,
    scheduled: bool = False,
    round_to: int = 1,
    min_kept: int = 1,
    alike: bool = False,
) -> None:
    """Refuse choices that do not go together; see ``secateur.pruning.capabilities`` for what decides it.

    ``units``: whole units are pruned. ``scheduled``: along a schedule of more than one step. Needs no model,
    so that it can be called long before one is pruned.

    Args:
        criterion: a criterion, of the user's own or one of secateur's.
        budget: a budget, likewise.
        shrinkage: what becomes of a weight at the cut; None is Hard.
        granularity: a ``Block``, or None for single weights.
        units: whether whole units are pruned.
        scheduled: whether a schedule takes more than one step to the budget.
        round_to: what the number of units kept is a multiple of.
        min_kept: how many units every group keeps.
        alike: whether groups of one kind lose as many units each.

    Raises:
        CriterionError: for a criterion that is none, or is for whole units where single weights are pruned.
        BudgetError: for any other choice that does not go with the rest.

    Example:
        >>> import secateur as sc
        >>> from secateur.pruning.prune import check
        >>> check(sc.Magnitude(), sc.Std(1.0), shrinkage=sc.Soft())
        >>> check(sc.Random(), sc.Std(1.0))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        secateur.errors.BudgetError: Std reads the size of the weights, ... not with Random
    """
    _check_kinds(criterion, budget, shrinkage, granularity)
    if says(criterion, "sequential"):
        _check_sequential(criterion, budget, granularity, units)
    if units:
        _check_units(budget, shrinkage, granularity, round_to, min_kept, alike)
        return
    _check_weights(criterion, budget, granularity)
    if (round_to, min_kept, alike) != (1, 1, False):
        raise BudgetError(f"round_to, min_kept and alike count whole units: {_UNITS}")
    if shrinkage is not None:
        _check_shrinkage(criterion, budget, shrinkage, granularity, scheduled)


def _check_kinds(criterion: Any, budget: Any, shrinkage: Any, granularity: Any) -> None:
    order = "prune(model, criterion, budget) takes the criterion first"
    if hasattr(type(criterion), "amount"):
        raise CriterionError(f"criterion is {criterion}, a budget; {order}")
    if isinstance(criterion, type) or not callable(criterion):
        raise CriterionError(f"criterion is {criterion!r}; it is an instance, like Magnitude()")
    if hasattr(type(budget), "reads_data"):
        raise BudgetError(f"budget is {budget}, a criterion; {order}")
    for what, value, like in (("budget", budget, "Global(0.9)"), ("shrinkage", shrinkage, "Soft()")):
        if isinstance(value, type) or not ((value is None and what == "shrinkage") or callable(value)):
            raise BudgetError(f"{what} is {value!r}; it is an instance, like {like}")
    if granularity is not None and not callable(getattr(granularity, "gather", None)):
        raise BudgetError(f"granularity is {granularity!r}; it is a Block, like Block(4, 4)")


def _check_sequential(criterion: Any, budget: Any, granularity: Any, units: bool) -> None:
    if units or granularity is not None:
        raise CriterionError(f"{name_of(criterion)}: sequential is for single weights; leave it out")
    if says(budget, "one_by_one") is None:
        raise BudgetError(
            f"{name_of(criterion)}: sequential cuts each layer before the next is ranked, and "
            f"{name_of(budget)} compares them; Uniform, PerLayer and NM cut within a layer"
        )


def _check_units(
    budget: Any, shrinkage: Any, granularity: Any, round_to: int, min_kept: int, alike: bool
) -> None:
    if says(budget, "counts_units") is False:
        raise BudgetError(
            f"{name_of(budget)} does not go with whole units; one of Uniform, Global, PerLayer, Threshold, "
            "LAMP and ParameterShare does"
        )
    if granularity is not None or shrinkage not in (None, Hard()):
        raise BudgetError("whole units are masked: they go with neither a shrinkage nor a block")
    if not all(is_whole(number) and number >= 1 for number in (round_to, min_kept)):
        raise BudgetError(f"round_to is {round_to!r} and min_kept {min_kept!r}; both count units, from 1")
    if not isinstance(alike, bool):
        raise BudgetError(f"alike is {alike!r}; it is True or False")
    if alike and says(budget, "counts_units"):
        raise BudgetError(
            f"{name_of(budget)} weighs each group by itself, not blocks alike; Uniform, Global, PerLayer, "
            "Threshold and LAMP do, and prune_to(..., parameters=, alike=True)"
        )


def _check_weights(criterion: Any, budget: Any, granularity: Any) -> None:
    if says(criterion, "counts_units"):
        raise CriterionError(f"{name_of(criterion)} ranks whole units: {_UNITS}")
    if says(budget, "counts_units"):
        raise BudgetError(f"{name_of(budget)} counts whole units: {_UNITS}; Global counts single weights")
    if granularity is not None and not says(budget, "granular"):
        raise BudgetError(f"{name_of(budget)} counts single weights, so it does not go with blocks")
    if says(budget, "compares_weights") and not says(criterion, "is_magnitude"):
        raise BudgetError(_reads_weights(budget, criterion))


def _check_shrinkage(criterion: Any, budget: Any, shrinkage: Any, granularity: Any, scheduled: bool) -> None:
    name = name_of(shrinkage)
    if says(shrinkage, "needs_values") and says(budget, "cuts_values") is False:
        raise BudgetError(
            f"{name} goes with a value budget (Threshold, Std), not with a count: not with {name_of(budget)}"
        )
    if not says(shrinkage, "shrinks"):
        return
    if not says(criterion, "is_magnitude"):
        raise BudgetError(_reads_weights(shrinkage, criterion))
    if granularity is not None:
        raise BudgetError(f"{name} works on single weights, not on blocks")
    if scheduled:
        raise BudgetError(
            f"{name} would shrink the same weights at each step of a schedule; use Hard, or no schedule"
        )


def _reads_weights(choice: Any, criterion: Any) -> str:
    return (
        f"{name_of(choice)} reads the size of the weights, so it goes with Magnitude alone, not with "
        f"{name_of(criterion)}"
    )
