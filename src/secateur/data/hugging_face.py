"""A folder of Hugging Face's ``datasets`` on disk: Arrow or Parquet files, read as data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.data.assemble import Arrays, assemble, by_name, fifth_as_test
from secateur.data.checks import MAX_VALUES, check_path, reading
from secateur.data.dataset import Dataset
from secateur.errors import DataError
from secateur.factories import need
from secateur.text import nearest

Array = np.ndarray[Any, Any]
_TEST = ("test", "validation")


def hf_folder(
    *,
    path: str | Path,
    inputs: Sequence[str],
    label: str = "label",
    normalise: bool = True,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A folder of Hugging Face datasets: of save_to_disk, or with *.parquet files; columns by name.

    ``inputs``: the columns that the forward takes; one alone is its first argument, several go by their
    names. Whole numbers stay what they are (tokens, of one length each), numbers and images are normalised as
    ``npz`` has it. ``label``: a column of classes, of numbers, or of maps or tokens. The splits "train" and
    "test" (or "validation") are used; where there is one alone, 20 % of it become test, whatever ``seed`` is.
    Raises DataError for a column that is not there, or rows of several lengths.
    """
    root = check_path("path", path)
    if isinstance(inputs, str) or not inputs:
        raise DataError(f"inputs is {inputs!r}; it is a list of columns, like [input_ids, attention_mask]")
    parts = _parts(root)
    read = [_columns(part, [*inputs, label], f"{root}: {name}") for name, part in parts.items()]
    pairs = [(_joined(columns, inputs), columns[label]) for columns in read]
    arrays = Arrays(*pairs[0], *pairs[1]) if len(pairs) == 2 else fifth_as_test(str(root), *pairs[0])
    labels = arrays.train_labels
    classes = labels.dtype.kind in "iu" and labels.ndim == 1
    columns = by_name(arrays.train_inputs)
    return assemble(
        "hf-folder",
        arrays,
        tuple(map(str, range(int(labels.max()) + 1))) if classes else (),
        validation=validation,
        seed=seed,
        options={"inputs": list(inputs), "label": label, "normalise": normalise},
        normalise=normalise,
        whole=[name for name, column in columns.items() if column.dtype.kind in "iu"],
    )


def _parts(root: Path) -> dict[str, Any]:
    """Return the training part and, where there is one, the test part."""
    datasets = need("datasets", extra="datasets")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; one of save_to_disk, or with *.parquet files, is right")
    with reading(f"{root}: not a folder of datasets", Exception):
        if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
            found: Any = datasets.load_from_disk(str(root))
        else:
            files = {name: sorted(root.rglob(f"*{name}*.parquet")) for name in ("train", *_TEST)}
            named = {name: found for name, found in files.items() if found}
            named = named or {"train": sorted(root.rglob("*.parquet"))}
            if not named.get("train"):
                raise DataError(f"{root}: holds neither dataset_dict.json nor *.parquet of a training part")
            found = {
                name: datasets.concatenate_datasets([datasets.Dataset.from_parquet(str(f)) for f in of])
                for name, of in named.items()
            }
    if not isinstance(found, dict):
        return {"train": found}
    if "train" not in found:
        raise DataError(f"{root}: has the splits {', '.join(found)}; train is missing")
    test = next((name for name in _TEST if name in found), None)
    return {name: found[name] for name in ("train", test) if name is not None}


def _columns(part: Any, names: Sequence[str], shown: str) -> dict[str, Array]:
    for name in names:
        if name not in part.column_names:
            raise DataError(f"{shown} has no column {name!r}{nearest(name, part.column_names)}")
    found: dict[str, Array] = {}
    for name in names:
        with reading(f"{shown}: column {name!r} is no array", Exception):
            found[name] = _array(part[name][:], f"{shown}: column {name!r}")
    return found


def _array(values: Any, shown: str) -> Array:
    """Return a column as one array: numbers, lists of one length, or images as (N, C, H, W)."""
    if values and hasattr(values[0], "convert"):  # images of Pillow
        values = [np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1) for image in values]
    shapes = {np.shape(value) for value in values}
    if len(shapes) != 1:
        raise DataError(f"{shown}: rows of shapes {sorted(shapes)[:3]}; one is right: pad, or cut, them")
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{shown}: {array.dtype}; numbers, or lists of them, are right: tokenise text first")
    if array.size > MAX_VALUES:
        raise DataError(f"{shown}: {array.size} values; at most {MAX_VALUES} are right")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{shown}: holds a NaN or an infinity")
    return array.astype(np.int64) if array.dtype.kind in "iub" and array.ndim < 4 else array


def _joined(columns: dict[str, Array], names: Sequence[str]) -> Any:
    if len(names) > 1:
        return {name: columns[name] for name in names}
    array = columns[names[0]]
    return array[:, None] if array.ndim == 1 else array
