"""When a search has got there, as recipes say it. Stands in for ``secateur.methods.goals.check_goal``."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import BudgetError


def check_goal(allowed: Sequence[str], **wanted: float | None) -> tuple[str, float]:
    """Return the one goal that is given, by name.

    Raises:
        BudgetError: it is not exactly one of ``allowed``, or cannot be met.
    """
    given = [(name, limit) for name, limit in wanted.items() if limit is not None]
    if len(given) != 1:
        raise BudgetError(f"give exactly one of {', '.join(allowed[:-1])} and {allowed[-1]}")
    name, limit = given[0]
    if name in ("sparsity", "parameters", "macs") and not 0 < limit < 1:
        raise BudgetError(f"{name} is {limit}; it is a share of the dense network's, between 0 and 1")
    if name == "latency_ms" and limit <= 0:
        raise BudgetError(f"{name} is {limit}; it is a positive number of milliseconds")
    if name == "accuracy_drop" and not 0 <= limit < 100:
        raise BudgetError(f"{name} is {limit}; it is in percentage points, from 0")
    return name, limit
