"""What counts as a number: a bool is none, nor is what no float holds."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def is_real(value: Any) -> bool:
    """Whether a value is a finite number; a bool is none."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def is_whole(value: Any) -> bool:
    """Whether a value is an integer; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
