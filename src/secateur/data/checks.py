"""Small checks of options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import DataError

MAX_VALUES = 2**31  # of one data set: 8 GiB as float32; everything lives in memory


def check_flag(option: str, value: object) -> bool:
    """Return ``value`` if it is a bool; raise DataError naming ``option`` otherwise."""
    if not isinstance(value, bool):
        raise DataError(f"{option} is {value!r}; it is true or false")
    return value


def check_whole(option: str, value: object, low: int, high: int) -> int:
    """Return ``value`` if it is an int from ``low`` to ``high``; raise DataError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(f"{option} is {value!r}; it is a whole number from {low} to {high}")
    return value


def check_path(option: str, value: object) -> Path:
    """Return ``value`` as a path with ``~`` expanded; raise DataError for what is no path."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise DataError(f"{option} is {value!r}; it is the path of a file or folder")
    return Path(os.fsdecode(value)).expanduser()


@contextmanager
def reading(what: str, *kinds: type[Exception], then: str = "") -> Iterator[None]:
    """What goes wrong in here with another library's errors is a DataError: ``what``, and what it says."""
    try:
        yield
    except DataError:
        raise
    except kinds as error:
        raise DataError(f"{what}: {one_line(error)}{then}") from error


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an error of another library's as one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
