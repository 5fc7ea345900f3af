"""A user's own table, from a CSV file: numbers as they are, categories as one column each."""

from __future__ import annotations

import csv as reader
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from secateur.data.assemble import Arrays, assemble, hold_out
from secateur.data.checks import MAX_VALUES, check_flag, check_path, reading
from secateur.data.dataset import Dataset
from secateur.errors import DataError
from secateur.text import nearest

Array = np.ndarray[Any, Any]
Row = list[str]


def csv(
    *,
    path: str | Path,
    target: str | Sequence[str],
    labels: Literal["classes", "numbers"] = "classes",
    categorical: Sequence[str] = (),
    ignore: Sequence[str] = (),
    delimiter: str = ",",
    fill: bool = False,
    test: float = 0.2,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Your own table: a CSV with a line of names; columns of numbers, of categories, and of the target.

    Inputs are (N, columns), a ``categorical`` column being one for each category of the rows that are not for
    testing; each gets mean 0 and deviation 1 by the training split. ``labels``: "classes" (sorted texts), or
    "numbers", as they are. Empty cells are refused, or with ``fill`` become the mean of those rows, and no
    category. ``test``: the share set aside, whatever ``seed`` is.
    """
    file = check_path("path", path)
    check_flag("fill", fill)
    if labels not in ("classes", "numbers"):
        raise DataError(f"labels is {labels!r}; it is one of classes, numbers")
    if isinstance(test, bool) or not isinstance(test, float) or not 0 < test < 1:
        raise DataError(f"test is {test!r}; it is a share between 0 and 1")
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise DataError(f"delimiter is {delimiter!r}; it is one character")
    names, rows = _read(file, delimiter)
    targets = [target] if isinstance(target, str) else list(target)
    for name in (*targets, *categorical, *ignore):
        if name not in names:
            raise DataError(f"{file}: no column {name!r}{nearest(str(name), names)}")
    if not targets or (labels == "classes" and len(targets) > 1):
        raise DataError(f"target is {target!r}; one column for classes, one or more for numbers")
    held = round(test * len(rows))
    if not 1 <= held < len(rows) - 1:
        raise DataError(f"{file}: {len(rows)} rows; a share of {test:g} for testing needs more")
    kept, taken = hold_out(len(rows), held, 0)
    columns = [name for name in names if name not in (*targets, *ignore)]
    if not columns:
        raise DataError(f"{file}: no column is left for the inputs")
    inputs = np.concatenate([
        _categories(file, name, _cells(file, rows, names, name, fill), kept) if name in categorical
        else _numbers(file, name, _cells(file, rows, names, name, fill), kept)[:, None]
        for name in columns
    ], 1)  # fmt: skip
    wanted = [_cells(file, rows, names, name, False) for name in targets]
    classes: tuple[str, ...] = ()
    if labels == "classes":
        classes = tuple(sorted(set(wanted[0])))
        found = np.array([classes.index(cell) for cell in wanted[0]], np.int64)
    else:
        found = np.stack([_numbers(file, n, c, kept) for n, c in zip(targets, wanted, strict=True)], 1)
        found = found[:, 0] if len(targets) == 1 else found
    arrays = Arrays(inputs[kept], found[kept], inputs[taken], found[taken])
    options = {
        "target": targets,
        "labels": labels,
        "categorical": list(categorical),
        "fill": fill,
        "test": test,
    }
    return assemble("csv", arrays, classes, validation=validation, seed=seed, options=options)


def _read(file: Path, delimiter: str) -> tuple[Row, list[Row]]:
    with (
        reading(f"{file}: not a CSV of UTF-8 text", OSError, UnicodeDecodeError, reader.Error),
        file.open(encoding="utf-8-sig", newline="") as stream,
    ):
        lines = reader.reader(stream, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(lines, [])]
        if len(set(names)) != len(names) or not all(names):
            raise DataError(
                f"{file}: its first line is {names[:12]}; a name for each column, each once, is right"
            )
        rows: list[Row] = []
        for row in lines:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(f"{file}: line {lines.line_num} has {len(row)} cells; {len(names)} are right")
            rows.append([cell.strip() for cell in row])
            if len(rows) * len(names) > MAX_VALUES // 64:
                raise DataError(f"{file}: over {MAX_VALUES // 64:,} cells; everything lives in memory")
    if len(rows) < 4:
        raise DataError(f"{file}: {len(rows)} rows; three parts need 4 at least")
    return names, rows


def _cells(file: Path, rows: list[Row], names: Row, name: str, fill: bool) -> Row:
    at = names.index(name)
    cells = [row[at] for row in rows]
    if not fill and "" in cells:
        raise DataError(
            f"{file}: column {name!r} is empty in row {cells.index('') + 1}; "
            "fill: true, or a whole table, is right"
        )
    return cells


def _numbers(file: Path, name: str, cells: Row, kept: Array) -> Array:
    found = np.empty(len(cells))
    for index, cell in enumerate(cells):
        try:
            found[index] = float(cell) if cell else math.nan
        except ValueError:
            found[index] = math.inf
        if math.isinf(found[index]) or (cell and math.isnan(found[index])):
            raise DataError(
                f"{file}: column {name!r} holds {cell[:40]!r} in row {index + 1}; numbers are right, "
                "or else name it as categorical or ignore it"
            )
    if np.isnan(found[kept]).all():
        raise DataError(f"{file}: column {name!r} is empty in every row for training; ignore it")
    return np.where(np.isnan(found), np.nanmean(found[kept]), found)


def _categories(file: Path, name: str, cells: Row, kept: Array) -> Array:
    known = sorted({cells[index] for index in kept} - {""})
    if not known or len(known) > 1000:
        raise DataError(f"{file}: column {name!r} has {len(known)} categories; 1 to 1000 are right")
    return np.array([[float(cell == category) for category in known] for cell in cells])
