"""What criteria, budgets, shrinkages and schedules say of themselves: plain attributes, of an object or of
its class, that anybody's may have. Where there is none, the default in brackets holds.

Of a criterion:

- ``counts_units`` (None): True, it is called with a structure and gives one score a unit; else one an entry.
- ``score_units`` (None): a method called in that way, where a unit is not worth the sum of its entries.
- ``scores_vectors`` (True): False, biases and the like have no scores.
- ``reads_data`` (None): True, scores that are all the same are an error; None, where data are given.
- ``reads_norms`` (False): True, only for networks with norms.
- ``is_magnitude`` (False): True, scores are sizes of weights.
- ``sequential`` (False): True, layers are pruned in running order, each by ``of_input(weight, rms)``: its
  scores from the rms of the inputs that it has by then.

Of a budget:

- ``counts_units`` (None): True, for units alone, called as ``budget(scores, structure, min_kept)``; False,
  for single weights alone; None, for either, called as ``budget(scores, weights)``.
- ``amount`` (None): the name of the field that a schedule raises.
- ``min_kept`` (None): a field, what each tensor or group keeps; raised to what the caller wants.
- ``granular`` (True): False, not for blocks.
- ``compares_weights`` (False): True, it cuts at sizes of weights: only where the criterion ``is_magnitude``.
- ``cuts_values`` (None): True, it takes what is under a value; False, a number of entries.
- ``share`` (None): a method, ``share(structure, pruned)`` of what it counts, where that is not units.
- ``one_by_one`` (None): a method, ``one_by_one(scores)``, which yields (name, cut) in the order of the
  scores, each before it reads those of the next.
- ``counted`` (None): what that is a share of, in words.
- ``called`` (the name of its class): what messages call it.

Of a shrinkage:

- ``shrinks`` (False): True, it moves weights that stay by the cut's value, so only where the criterion
  ``is_magnitude``, once, and not in blocks.
- ``needs_values`` (False): True, not with a budget that takes a number of entries.

Of a schedule:

- ``one_shot`` (False): True, it has one step and raises nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

from secateur.errors import BudgetError, SecateurWarning

_DEFAULTS: dict[str, Any] = {
    "counts_units": None,
    "score_units": None,
    "scores_vectors": True,
    "reads_data": None,
    "reads_norms": False,
    "is_magnitude": False,
    "sequential": False,
    "one_by_one": None,
    "amount": None,
    "min_kept": None,
    "granular": True,
    "compares_weights": False,
    "cuts_values": None,
    "share": None,
    "counted": None,
    "shrinks": False,
    "needs_values": False,
    "one_shot": False,
}


def says(thing: Any, name: str) -> Any:
    """Return what a criterion, budget, shrinkage or schedule says of itself, or the default."""
    if name == "counts_units" and not hasattr(thing, name) and hasattr(thing, "whole_units"):
        warnings.warn(
            f"{name_of(thing)}: whole_units is called counts_units now; the old name goes soon",
            SecateurWarning,
            stacklevel=3,
        )
        return thing.whole_units
    return getattr(thing, name, _DEFAULTS[name])


def name_of(thing: Any) -> str:
    """Return the name of a function, what a thing is called, or the class of anything else."""
    return getattr(thing, "__name__", None) or getattr(thing, "called", type(thing).__name__)


def amount_of(budget: Any) -> Any:
    """Return the amount of a budget that schedules raise, a number or one by pattern; None without one."""
    name = says(budget, "amount")
    if name is not None and not (isinstance(name, str) and hasattr(budget, name)):
        raise BudgetError(f"{name_of(budget)}: amount is {name!r}; it names a field, like 'sparsity'")
    return None if name is None else getattr(budget, name)


def changed(budget: Any, **fields: Any) -> Any:
    """Return a budget's like with other fields."""
    if dataclasses.is_dataclass(budget):
        return dataclasses.replace(budget, **fields)  # type: ignore[type-var]
    like = copy.copy(budget)
    vars(like).update(fields)
    return like


def requested_share(budget: Any) -> float | None:
    """Return the share of what is pruned that a budget asks for, where it asks for one."""
    share = getattr(budget, "sparsity", None)
    counts_others = says(budget, "counts_units") is True  # parameters, say
    return share if isinstance(share, (int, float)) and not counts_others else None
