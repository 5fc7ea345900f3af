"""What the options of the networks can be, checked before anything is made of them."""

from __future__ import annotations

from typing import Any

from secateur.errors import ModelError
from secateur.numeric import is_real, is_whole

_MOST_UNITS = 100_000


def check_counts(**counts: Any) -> None:
    """Raise ModelError where a number of classes, features or neurons is none."""
    for name, count in counts.items():
        if not (is_whole(count) and 1 <= count <= _MOST_UNITS):
            raise ModelError(f"{name} is {count!r}; it is a whole number from 1 to {_MOST_UNITS:,}")


def check_number(name: str, value: Any, low: float, most: float) -> None:
    """Raise ModelError where ``value`` is no number from ``low`` to ``most``."""
    if not (is_real(value) and low <= value <= most):
        raise ModelError(f"{name} is {value!r}; it is a number from {low} to {most}")


def check_flag(name: str, value: Any) -> None:
    """Raise ModelError where ``value`` is not a bool."""
    if not isinstance(value, bool):
        raise ModelError(f"{name} is {value!r}; it is true or false")
