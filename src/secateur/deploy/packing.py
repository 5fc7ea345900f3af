"""Pack a pruned network into a small file that holds no code, and restore it.

Every tensor is stored in the smallest of the ways that ``secateur.runtime.contents`` describes. Pieces of
one kind from all tensors make one stream, so that small tensors do not each pay for learning its statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from secateur.copying import check_network
from secateur.deploy.encoding import Coded, Plain, Squeeze, assembled, smallest_of
from secateur.errors import MissingExtraError, ModelError, NonFiniteError, StorageError
from secateur.graph.names import unwrapped
from secateur.pruning.sharing import check_values, clustered
from secateur.pruning.targets import matches
from secateur.runtime.contents import FLOATS, ITEM_BYTES, Contents, bytes_of, parse
from secateur.runtime.streams import FileError
from secateur.runtime.unpacking import read
from secateur.storage import as_path, replacing
from secateur.structure.saved import ALLOW, check_finite, describe, restore
from secateur.text import nearest, table


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a packed file. ``bytes``: its share of the streams. ``error``: the largest change of
    an entry, relative to the largest entry; 0 where it is stored exactly."""

    name: str
    encoding: str
    bytes: int
    dense_bytes: int
    error: float


@dataclass(frozen=True)
class Packed:
    """What ``pack`` wrote.

    Printed it is a table, tensor by tensor.

    Attributes:
        path: the file.
        bytes: its size.
        tensors: each tensor's ``name`` and ``encoding``, its ``bytes`` and ``dense_bytes``, and ``error``,
            the largest change of an entry relative to the largest one.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Linear(100, 100)
        >>> _ = sc.prune(net, sc.Magnitude(), sc.Global(0.95))
        >>> _ = sc.share_weights(net, values=4)
        >>> packed = sc.pack(net, "net.secateur")
        >>> packed.dense_bytes, packed.bytes < 1500
        (40400, True)
        >>> [tensor.error for tensor in packed.tensors]
        [0.0, 0.0]
    """

    path: Path
    bytes: int
    tensors: tuple[PackedTensor, ...]

    @property
    def dense_bytes(self) -> int:
        return sum(tensor.dense_bytes for tensor in self.tensors)

    @property
    def ratio(self) -> float:
        """How many times smaller than in float32 the file is, its header and metadata included."""
        return self.dense_bytes / self.bytes

    def __repr__(self) -> str:
        rows = [("tensor", "encoding", "bytes", "dense", "ratio", "error")]
        for t in self.tensors:
            times = f"{t.dense_bytes / t.bytes:.1f}x" if t.bytes else ""
            error = f"{t.error:.1%}" if t.error else ""
            rows.append((t.name, t.encoding, f"{t.bytes:,}", f"{t.dense_bytes:,}", times, error))
        rest = self.bytes - sum(t.bytes for t in self.tensors)
        rows.append(("header", "", f"{rest:,}", "", "", ""))
        rows.append(("all", "", f"{self.bytes:,}", f"{self.dense_bytes:,}", f"{self.ratio:.1f}x", ""))
        return "\n".join(table(rows, words=2))


def pack(
    model: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    values: Literal["lossless", "float16"] | int | str = "lossless",
    compression: Literal["lzma", "zstd"] | str = "lzma",
    metadata: Any = None,
    exclude: str | Sequence[str] | None = None,
    smallest: int = 512,
    signed_zeros: bool = False,
) -> Packed:
    """Write a model, pruned or compacted, or tensors by name, to a file that ``unpack`` and the
    torch-free ``secateur.runtime.unpacking.read`` read. The bytes are read back and compared before they
    replace what is at ``path``.

    Args:
        model: a model, or tensors by name.
        path: the file to write.
        values: "lossless" keeps every value, bit for bit; a tensor of at most 256 distinct ones, as
            ``secateur.share_weights`` leaves them, is stored as a codebook and indices. "float16" rounds,
            a number from 2 to 256 clusters the values that are not zero (k-means) and keeps so many. Both
            touch only tensors of float32 or float64 (the number: of any float) with two dims or more and
            ``smallest`` entries or more that no ``exclude`` pattern matches: biases and norms are a few
            bytes, and a running variance may not fit float16.
        compression: "lzma" is in every Python and mostly smaller, "zstd" (extra ``fast``) is quicker.
        metadata: anything that JSON can hold.
        exclude: patterns of names of tensors that stay lossless.
        smallest: the entries from which on a tensor is rounded or clustered.
        signed_zeros: keep -0.0, which otherwise is written as 0.0: masks leave one wherever they multiplied a
            negative weight by zero, and its sign costs a bit an entry.

    Returns:
        The file's size, and that of each tensor in it.

    Raises:
        StorageError: for a setting or a tensor that cannot be stored.
        NonFiniteError: for a NaN or an infinity that is to be clustered or rounded.
        MissingExtraError: for zstd without zstandard.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> model = torch.nn.Linear(100, 100)
        >>> _ = sc.prune(model, sc.Magnitude(), sc.Global(0.95))
        >>> sc.pack(model, tempfile.mkdtemp() + "/net.secateur").ratio > 10
        True
    """
    path = as_path(path)
    if compression not in ("lzma", "zstd"):
        raise StorageError(f"compression is {compression!r}; it is 'lzma' or 'zstd'")
    if isinstance(values, str) and values not in ("lossless", "float16"):
        raise StorageError(f"values is {values!r}; it is 'lossless', 'float16' or a number of shared values")
    if not isinstance(values, str):
        check_values(values)
    squeeze = Squeeze(compression)
    described: dict[str, Any] = {}
    if isinstance(model, nn.Module):
        tensors, described["model"] = describe(model)
        tied = described["model"].pop("tied")
    else:
        if not isinstance(model, Mapping):
            check_network(model)
        tensors, tied = _untied(model)
    lossless = _matching(tensors, exclude)
    coded: list[Coded] = []
    for name, tensor in tensors.items():
        plain = _plain(name, tensor)
        if not signed_zeros and plain.dtype in FLOATS:
            plain = replace(plain, bits=np.where(plain.floats() == 0, plain.bits.dtype.type(0), plain.bits))
        large = plain.bits.ndim >= 2 and plain.bits.size >= smallest and plain.dtype in FLOATS
        if large and values != "lossless" and name not in lossless:
            plain = _rounded(plain) if values == "float16" else _shared(plain, int(values))
        coded.append(smallest_of(plain, squeeze))
    header = described | ({"tied": tied} if tied else {}) | {"values": values}
    try:
        data, rates = assembled(coded, header | ({} if metadata is None else {"metadata": metadata}), squeeze)
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from error
    _check(data, coded, path)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Packed(path, len(data), tuple(_row(one, rates) for one in coded))


def unpack(
    model: nn.Module, path: str | Path, *, limit: int = 1 << 32, allow_nonfinite: bool = False
) -> nn.Module:
    """Give ``model``, fresh and of the class that was packed, the shapes and values of the file. It is
    changed in place, after every name, shape and value has been checked.

    Where the packed model was compacted it takes its shapes, as with ``secateur.load``. A file of tensors
    alone (a ``state_dict``) must have the model's names, shapes and dtypes.

    Args:
        model: a fresh network.
        path: a packed file.
        limit: the bytes that reading may take, as ``secateur.runtime.unpacking.read`` has it.
        allow_nonfinite: take weights that hold a NaN or an infinity.

    Returns:
        The model.

    Raises:
        StorageError: for a file that is damaged, of another kind or beyond ``limit``.
        ModelError: for a model that the file does not fit.
        NonFiniteError: for weights that hold a NaN or an infinity, unless ``allow_nonfinite``.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> model, path = torch.nn.Linear(6, 4), tempfile.mkdtemp() + "/net.secateur"
        >>> _ = sc.pack(model, path)
        >>> torch.equal(sc.unpack(torch.nn.Linear(6, 4), path).weight, model.weight)
        True
    """
    model = unwrapped(model)
    contents, tensors, _ = _read(path, limit)
    if contents.model is None:
        _fill_state(model, tensors, path, allow_nonfinite)
    else:
        described = contents.model if isinstance(contents.model, dict) else {}
        own = {name: tensor for name, tensor in tensors.items() if name not in contents.tied}
        restore(model, own, {**described, "tied": contents.tied}, path, allow_nonfinite=allow_nonfinite)
    return model


def unpack_tensors(path: str | Path, *, limit: int = 1 << 32) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of a packed file, each in the dtype it had, and the metadata; raises as
    ``unpack`` does. Tied tensors are one."""
    _, tensors, metadata = _read(path, limit)
    return tensors, metadata


# -- tensors -----------------------------------------------------------------------------------------


def _matching(names: Mapping[str, Tensor], patterns: str | Sequence[str] | None) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        hits = {name for name in names if matches(name, pattern)}
        if not hits:
            raise StorageError(f"exclude pattern {pattern!r} matches nothing{nearest(pattern, names)}")
        found |= hits
    return found


def _plain(name: str, tensor: Any) -> Plain:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise StorageError(f"{name!r} is a {type(tensor).__name__}; tensors by name can be packed")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEM_BYTES or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise StorageError(
            f"{name}: a {tensor.layout} tensor of {dtype} on {tensor.device} cannot be packed; "
            f"it is a dense one with values, of {', '.join(ITEM_BYTES)}"
        )
    tensor = tensor.detach().cpu().contiguous()
    array = (tensor.view(torch.int16) if dtype == "bfloat16" else tensor).numpy()
    return Plain(name, dtype, dtype, array.view(f"u{ITEM_BYTES[dtype]}"))


def _rounded(plain: Plain) -> Plain:
    """Round to float16."""
    wide = plain.floats()
    _check_finite(plain.name, wide)
    if ITEM_BYTES[plain.dtype] == 2:
        return plain
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16) + np.float16(0)  # -0.0, of what is too small for float16, becomes 0
    if not np.isfinite(half).all():
        raise StorageError(f"{plain.name}: {np.abs(wide).max():g} is too large for float16; exclude it")
    return replace(plain, stored="float16", bits=half.view(np.uint16), error=_off(wide, half))


def _shared(plain: Plain, number: int) -> Plain:
    """Replace the values that are not zero by ``number`` of their own."""
    wide = plain.floats()
    _check_finite(plain.name, wide)
    alive = wide != 0
    if not alive.any():
        return plain
    codebook, members = clustered(wide[alive], number)
    few = torch.from_numpy(codebook).to(getattr(torch, plain.dtype))
    made = np.zeros(plain.bits.shape, plain.bits.dtype)
    made[alive] = _plain(plain.name, few).bits[members]
    changed = replace(plain, bits=made)
    return replace(changed, error=_off(wide, changed.floats()))


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{name}: holds a NaN or an infinity; pack it lossless or exclude it")


def _off(before: np.ndarray, after: np.ndarray) -> float:
    most = float(np.abs(before).max())
    return float(np.abs(before.astype(np.float64) - after).max()) / most if most else 0.0


def _row(coded: Coded, rates: Mapping[str, float]) -> PackedTensor:
    """Describe a tensor, given what a byte of each stream takes in the file."""
    e = coded.entry
    parts = ["dense" if e.kept is None else "mask" if e.gaps is None else "gaps"]
    parts += ["by column"] if e.column else []
    parts += [f"{e.codebook} values in {e.bits} bits"] if e.codebook else [e.stored]
    share = sum(len(piece) * rates[name] for name, piece in coded.pieces.items() if piece)
    size = 4 if e.dtype in FLOATS else ITEM_BYTES[e.dtype]
    return PackedTensor(e.name, ", ".join(parts), round(share), e.number * size, coded.plain.error)


def _check(data: bytes, coded: Sequence[Coded], path: str | Path) -> None:
    """Read the bytes that are to be written and compare them with what they stand for."""
    back, _ = read(data, limit=1 << 62)
    for one in coded:
        kind = "float32" if one.plain.dtype == "bfloat16" else one.plain.dtype
        wanted, found = one.plain.floats().astype(kind), back[one.plain.name]
        if found.dtype != wanted.dtype or found.tobytes() != wanted.tobytes():
            raise StorageError(
                f"{path}: {one.plain.name} is not read back as it was packed; please report it"
            )


# -- reading back ------------------------------------------------------------------------------------


def _read(path: str | Path, limit: int) -> tuple[Contents, dict[str, Tensor], Any]:
    try:
        data = bytes_of(as_path(path), limit)
    except FileError as error:  # it names the path itself
        raise StorageError(str(error)) from error
    try:
        contents = parse(data, limit)
        arrays, metadata = read(data, limit=limit)
    except FileError as error:
        raise StorageError(f"{path}: {error}") from error
    except ImportError as error:
        raise MissingExtraError("zstandard", "fast") from error
    dtypes = {entry.name: entry.dtype for entry in contents.entries}
    tensors = {name: _tensor(arrays[name], dtype) for name, dtype in dtypes.items()}
    return contents, tensors | {name: tensors[first] for name, first in contents.tied.items()}, metadata


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    if dtype == "bfloat16":  # the bits themselves, so that the payload of a NaN stays too
        high = np.asarray(array.view(np.uint32) >> np.uint32(16), np.uint16)
        return torch.from_numpy(high).view(torch.bfloat16)
    return torch.from_numpy(array)


def _untied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, those that are one under their first name alone, and the other names of these."""
    found: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in tensors.items():
        key: Any = id(tensor)
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if first.setdefault(key, name) == name:
            found[name] = tensor
        else:
            tied[name] = first[key]
    return found, tied


def _fill_state(
    model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, allow_nonfinite: bool
) -> None:
    state = model.state_dict()
    for name in sorted(state.keys() ^ tensors.keys()):
        here, there, others = ("file", "model", state) if name in tensors else ("model", "file", tensors)
        raise ModelError(
            f"{path}: the {there} has no tensor {name!r}, which the {here} has{nearest(name, others)}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape or tensor.dtype != state[name].dtype:
            raise ModelError(
                f"{path}: {name} is {tuple(tensor.shape)} of {tensor.dtype} there and "
                f"{tuple(state[name].shape)} of {state[name].dtype} in the model. Pack the model itself, not "
                "its state_dict: then a fresh one takes the shapes of one that was compacted"
            )
    if not allow_nonfinite:
        check_finite(model.state_dict(keep_vars=True), tensors, path, ALLOW)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
