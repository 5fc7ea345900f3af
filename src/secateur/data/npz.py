"""A user's own arrays, from a NumPy .npz archive; headers are checked before memory is taken."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy

from secateur.data.assemble import CHUNK, Arrays, assemble, by_name, fifth_as_test
from secateur.data.checks import MAX_VALUES, check_flag, check_path, reading
from secateur.data.dataset import Dataset
from secateur.errors import DataError

FOUR = ("x_train", "y_train", "x_test", "y_test")
TWO = ("x", "y")
MAX_BYTES = 2**34
MAX_HEADER = 2**16
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # numpy's own; the others unpack without a limit
_DAMAGED = (zipfile.BadZipFile, OSError, EOFError, zlib.error)
MAX_SMALL, MAX_RATIO = 2**26, 200  # what is larger than the first may not unpack to so many times its size

Array = np.ndarray[Any, Any]


def npz(
    *,
    path: str | Path,
    labels: Literal["classes", "numbers", "maps"] = "classes",
    normalise: bool = True,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Your own arrays: an .npz with x_train, y_train, x_test, y_test, or x, y (20 % become test).

    Inputs are (N, features), (N, H, W), which become (N, 1, H, W), or (N, C, H, W); several are named
    ``x_train/NAME`` (``x/NAME``), as the network's forward names them, and whole numbers stay what they are
    among several: tokens. ``labels``: "classes", whole numbers 0 to K - 1; "numbers", (N,) or (N, K);
    "maps" of whole numbers over pixels or positions. ``normalise``: each channel or feature to mean 0 and
    deviation 1 by the training split. The 20 % do not depend on ``seed``. Raises DataError for anything else.
    """
    file = check_path("path", path)
    check_flag("normalise", normalise)
    if labels not in _CHECKS:
        raise DataError(f"labels is {labels!r}; it is one of {', '.join(_CHECKS)}")
    found, ignored = read_arrays(file, _wanted)
    parts: dict[str, Any] = {}
    for name, array in found.items():
        base, _, own = name.partition("/")
        if base.startswith("y"):
            _CHECKS[labels](f"{file}: {name}", array)
            parts[base] = array.astype(np.float64 if labels == "numbers" else np.int64)
        else:
            _check_inputs(f"{file}: {name}", array)
            held = parts.setdefault(base, {})
            held[own] = array if own and array.dtype.kind in "iu" else _as_examples(array)
    read = [_alone(part) for part in parts.values()]
    names = list(parts)
    for x, y in zip(names[::2], names[1::2], strict=True):
        for own, array in parts[x].items():
            if len(array) != len(parts[y]):
                raise DataError(
                    f"{file}: {x}{own and '/'}{own} holds {len(array)} examples and {y} {len(parts[y])}; "
                    "as many is right"
                )
    arrays = Arrays(*read) if len(read) == 4 else fifth_as_test(str(file), *read)
    whole = [own for own, array in by_name(arrays.train_inputs).items() if own and array.dtype.kind in "iu"]
    return assemble(
        "npz",
        arrays,
        _classes(str(file), arrays) if labels == "classes" else (),
        validation=validation,
        seed=seed,
        options={"normalise": normalise} | ({} if labels == "classes" else {"labels": labels}),
        normalise=normalise,
        note=f"arrays not read: {', '.join(ignored)}" if ignored else "",
        whole=whole,
    )


def _alone(part: Any) -> Any:
    """Return what is named, or what stands alone without a name."""
    return part[""] if isinstance(part, dict) and "" in part else part


def read_arrays(
    file: Path, wanted_of: Callable[[Path, Mapping[str, Any]], Sequence[str]]
) -> tuple[dict[str, Array], list[str]]:
    """Return the arrays of an .npz that ``wanted_of`` picks from its names, and the names of the others.

    Raises DataError for a file that is none, is damaged, or holds what is no array of plain numbers.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; the path of an .npz is right")
    with (  # zip methods not built in, encryption, a header that does not parse: anything may be raised
        reading(f"{file}: an array in it cannot be read", Exception),
        reading(f"{file}: not a whole .npz archive (numpy.savez)", *_DAMAGED),
        zipfile.ZipFile(file) as archive,
    ):
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise DataError(f"{file}: two arrays of one name; each once is right")
        wanted = wanted_of(file, members)
        found = {name: _array(archive, members[name], f"{file}: {name}") for name in wanted}
        return found, [name for name in members if name not in wanted]


def read_array(file: Path) -> Array:
    """Return the array of an .npy; raises DataError as ``read_arrays`` does."""
    if not file.is_file():
        raise DataError(f"{file}: no such file; the path of an .npy is right")
    with reading(f"{file}: not a whole .npy file (numpy.save)", Exception), open(file, "rb") as stream:
        head = io.BytesIO(stream.read(MAX_HEADER))
        _checked_header(head, file.stat().st_size, f"{file}")
        stream.seek(0)
        return npy.read_array(stream, allow_pickle=False)


def _wanted(file: Path, members: Mapping[str, Any]) -> tuple[str, ...]:
    bases = {name.partition("/")[0] for name in members}
    for wanted, others in ((FOUR, TWO), (TWO, FOUR)):
        if bases >= set(wanted) and bases.isdisjoint(others):
            return tuple(name for base in wanted for name in _of(file, base, members))
    shown = ", ".join(sorted(members)[:12]) or "nothing"
    raise DataError(f"{file}: holds {shown}; {', '.join(FOUR)}, or else x, y, are right")


def _of(file: Path, base: str, members: Mapping[str, Any]) -> Sequence[str]:
    """Return the array of a name, or the inputs that stand under it."""
    under = [name for name in members if name.startswith(f"{base}/")] if base.startswith("x") else []
    if base in members and under:
        raise DataError(f"{file}: holds {base} and {under[0]}; one input, or several under {base}/, is right")
    if base not in members and not under:
        raise DataError(f"{file}: labels are one array: {base} is right")
    return under or [base]


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, shown: str) -> Array:
    if member.compress_type not in METHODS:
        raise DataError(f"{shown}: zip method {member.compress_type}; numpy.savez stores or deflates")
    if member.file_size > MAX_SMALL and member.file_size > MAX_RATIO * member.compress_size:
        raise DataError(
            f"{shown}: {member.compress_size} bytes that unpack to {member.file_size}; at most {MAX_RATIO} "
            "times as many are read (numpy.savez does not compress)"
        )
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(MAX_HEADER))
    _checked_header(head, member.file_size, shown)
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _checked_header(head: IO[bytes], size: int, shown: str) -> None:
    """Refuse an array of ``size`` bytes, of which this is the beginning, before memory is taken for it."""
    shape, dtype = _header(head, shown)
    start = head.tell()
    if dtype.hasobject:
        raise DataError(f"{shown}: Python objects, which only pickle can read; plain numbers are right")
    if dtype.kind not in "fiub":
        raise DataError(f"{shown}: {dtype}; real numbers are right")
    count = math.prod(shape)
    if count > MAX_VALUES or count * dtype.itemsize > MAX_BYTES:
        raise DataError(f"{shown}: shape {shape}; at most {MAX_VALUES} values are right")
    if start + count * dtype.itemsize != size:
        raise DataError(
            f"{shown}: shape {shape} of {dtype} needs {count * dtype.itemsize} bytes, "
            f"the archive has {size - start}"
        )


def _header(stream: IO[bytes], shown: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{shown}: .npy version {version}; 1.0 and 2.0 are right for plain numbers")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _check_inputs(shown: str, array: Array) -> None:
    if array.ndim not in (2, 3, 4) or not array.size:
        raise DataError(f"{shown}: shape {array.shape}; (N, features), (N, H, W) or (N, C, H, W) is right")
    if array.ndim == 4 and array.shape[1] == array.shape[2] > 4 >= array.shape[3]:
        raise DataError(
            f"{shown}: shape {array.shape} looks like (N, H, W, C); (N, C, H, W) is right, "
            "as transpose(0, 3, 1, 2) gives"
        )
    if array.dtype.kind == "f":
        step = max(1, CHUNK // math.prod(array.shape[1:]))
        for at in range(0, len(array), step):
            bad = ~np.isfinite(array[at : at + step]).reshape(len(array[at : at + step]), -1).all(axis=1)
            if bad.any():
                raise DataError(f"{shown}: example {at + int(bad.argmax())} holds a NaN or an infinity")


def _as_examples(array: Array) -> Array:
    return array[:, None] if array.ndim == 3 else array


def _check_labels(shown: str, array: Array) -> None:
    if array.ndim != 1 or not array.size:
        raise DataError(f"{shown}: shape {array.shape}; (N,) is right")
    if array.dtype.kind not in "iu":
        raise DataError(f"{shown}: labels of {array.dtype}; integers are right")
    if array.min() < 0 or array.max() >= 2**31:
        raise DataError(f"{shown}: labels from {array.min()} to {array.max()}; 0 to K - 1 are right")


def _check_numbers(shown: str, array: Array) -> None:
    if array.ndim not in (1, 2) or not array.size:
        raise DataError(f"{shown}: shape {array.shape}; (N,) or (N, K) is right")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DataError(f"{shown}: labels of {array.dtype}; finite numbers are right")


def _check_maps(shown: str, array: Array) -> None:
    if array.ndim < 2 or not array.size or array.dtype.kind not in "iu":
        raise DataError(f"{shown}: {array.dtype} of shape {array.shape}; whole numbers (N, H, W) are right")


_CHECKS = {"classes": _check_labels, "numbers": _check_numbers, "maps": _check_maps}


def _classes(shown: str, arrays: Arrays) -> tuple[str, ...]:
    present = np.unique(arrays.train_labels)
    if not np.array_equal(present, np.arange(len(present))):
        gap = int(np.argmax(present != np.arange(len(present))))
        raise DataError(
            f"{shown}: no training example has label {gap}; labels 0 to K - 1 without gaps are right"
        )
    if len(present) < 2:
        raise DataError(f"{shown}: one class only; two at least are right")
    if arrays.test_labels.max() >= len(present):
        raise DataError(
            f"{shown}: a test label is {arrays.test_labels.max()}; "
            f"the training ones are 0 to {len(present) - 1}"
        )
    return tuple(str(label) for label in present)
