"""Atomic, pickle-free files: safetensors for tensors, JSON for the rest. Knows nothing of models."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import StorageError, WriteError
from secateur.shards import anywhere, first_of, whole
from secateur.text import shown

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

# In the order of the format: the widest last here, and first in a file, where each begins at a multiple of
# its width.
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_RANKS = {dtype: -rank for rank, dtype in enumerate(DTYPES)}
_TEMPORARY = re.compile(r"\..+\.(json|csv|html|safetensors|secateur|part)\.[a-z0-9_]{8}")

_LARGEST_JSON = 1 << 28
_MOST_VALUES = 8_000_000
_DEEPEST = 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def as_path(path: Any) -> Path:
    """Return a path as one; raises StorageError for what is none, arguments that were swapped, say."""
    if isinstance(path, bytes) or not isinstance(path, (str, os.PathLike)):
        raise StorageError(f"path is {shown(path)}; it is the name of a file or folder, a text or a Path")
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and vanishes on failure.

    A kill at any moment leaves the old file or the new one, never half of one; the temporary file that it
    leaves is ``sweep``'s. Raises WriteError where the file cannot be written.
    """
    path = as_path(path)
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(path)
        try:
            yield temporary
            os.fsync(handle)
            as_others(temporary, 0o666)
            temporary.replace(path)
            sync(path.parent)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise WriteError(f"{path}: cannot be written: {why or error}") from error


def _temporary(path: Path) -> tuple[int, Path]:
    """Create a temporary file that is locked for as long as it is open: so a sweep knows it is in use."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        lock(handle)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # swept between its creation and its lock


def as_others(path: Path, mode: int) -> None:
    """Give what was made as a temporary file or folder the rights that any other one has."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def sync(folder: Path) -> None:
    """Let a rename reach the disk before what it replaces is removed; where folders can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the temporary files of ``replacing`` whose process was killed."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError), abandoned(path):  # in use, a link, or gone: no leftover
                path.unlink()


def lock(handle: int) -> None:
    """Wait for an exclusive lock on an open file, which the system lets go of when it is closed; where there
    are no locks, go on."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def abandoned(path: Path) -> Iterator[None]:
    """Hold the lock of a file that nobody else holds.

    Raises OSError where somebody does, where that cannot be known, or for a file that is not there.
    """
    if fcntl is None:
        raise OSError("this system has no locks on files")
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def own_folder(path: Path) -> Path:
    """Create a folder where there is none and return it; raises StorageError for a link, which may lead
    anywhere."""
    if path.is_symlink():
        raise StorageError(f"{path}: is a link, which is not followed; put a folder there")
    with _written(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on a file, which is created where there is none, and yield its descriptor; the
    system lets go of a dead process's.

    Raises StorageError for a link or anything else that is no plain file of its own: none is followed or
    changed.
    """
    while True:
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            except OSError as error:
                if not path.is_symlink():
                    raise
                raise StorageError(f"{path}: is a link, which is not followed; remove it") from error
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise StorageError(f"{path}: is no plain file of its own, as a lock must be; remove it")
            lock(handle)
            if os.fstat(handle).st_nlink:
                yield handle
                return
        finally:
            os.close(handle)  # where its last holder has removed it, the next try makes a new one


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON; NaN and infinities are refused, since JSON has none."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StorageError(f"{path}: cannot be written as JSON: {error}") from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read a JSON file; one that is missing, malformed or not plain JSON is one clear error.

    Refused besides: NaN and infinities, a key that stands twice, whole numbers of over 20 digits, nesting
    deeper than 100, lone surrogates, and more than 256 MiB or 8,000,000 values.
    """
    with _opened(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST_JSON:
            raise StorageError(f"{path}: over {_LARGEST_JSON >> 20} MiB are too large for a JSON file")
        data = file.read()
    try:
        return _parsed(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: not valid JSON: {error}") from error


def _parsed(text: str) -> Any:
    """Parse JSON strictly; raises ValueError or RecursionError."""
    if sum(map(text.count, "[{,")) > _MOST_VALUES:  # some take a hundred times the memory of their text
        raise ValueError(f"more than {_MOST_VALUES:,} values")
    value = json.loads(
        text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_integer
    )
    level = [value]
    for _ in range(_DEEPEST):
        level = [part for node in level if type(node) in (dict, list) for part in _parts(node)]
    if level:
        raise ValueError(f"nested deeper than {_DEEPEST}")
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # half a pair has no UTF-8
    return value


def _parts(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if type(node) is dict else node


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in found if names.count(name) > 1)!r} stands twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as safetensors; ``metadata`` may hold anything that JSON can.

    Where some are sharded, all processes that hold them call this, and the first one writes; none has more
    than one of them whole at a time.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise StorageError(f"{path}: {name} is {tensor.dtype}, which safetensors cannot hold")
    try:
        text = {key: json.dumps(value, allow_nan=False) for key, value in (metadata or {}).items()}
    except (TypeError, ValueError) as error:
        raise StorageError(f"{path}: the metadata cannot be written as JSON: {error}") from error
    order = sorted(tensors, key=lambda name: (_RANKS[tensors[name].dtype], name))
    wholes = (whole(tensors[name]).detach().cpu().contiguous() for name in order)
    wrong: WriteError | None = None
    if first_of(tensors.values()):
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                write_safetensors(file, tensors, dict(sorted(text.items())), wholes)
        except WriteError as error:
            wrong = error
    deque(wholes, maxlen=0)  # for the one that writes, or in its place where it cannot any more
    if anywhere(wrong is not None, tensors.values()):
        raise wrong or WriteError(f"{path}: cannot be written by the first of the processes")


def write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    wholes: Iterable[Tensor] | None = None,
) -> None:
    """Write what safetensors' own ``save_file`` writes, but for the order of the metadata, which there is
    another one in every process, and into the file that is given, not one of a name of its own. ``wholes``:
    the tensors again, in the order of their dtypes and names, those that were sharded whole."""
    order = sorted(tensors, key=lambda name: (_RANKS[tensors[name].dtype], name))
    wholes = (tensors[name] for name in order) if wholes is None else wholes
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        dtype = DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in wholes:
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        del tensor  # before the next one is gathered


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file into (tensors on the CPU, metadata).

    Raises StorageError for a file that is missing, truncated, or of another format. Pickle files
    (``torch.save``) are recognised and refused: loading one can run any code.
    """
    with _opened(path) as file:
        start = file.read(16)
    pickled = start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"
    if pickled and start[8:9] != b"{":  # a safetensors header of 128 bytes begins with 0x80 too
        raise StorageError(
            f"{path}: a pickle checkpoint (torch.save), which can run code when it is loaded; its tensors, "
            f"and no code, are taken out of it by: secateur convert {path} new.safetensors"
        )
    try:  # the library checks the header, and that the file is as long as it says, before any tensor is made
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{path}: not a complete safetensors file: {error}") from error
    bad = next((name for name in tensors if not name.isprintable()), None)
    if bad is not None:
        raise StorageError(f"{path}: {bad!r} cannot be the name of a tensor; printable characters are right")
    return tensors, {key: _decoded(value) for key, value in metadata.items()}


def digest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return the digest of tensors and of what is said of them; of sharded ones, together with the others."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = whole(tensors[name]).detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        del tensor  # before the next one is gathered
    return digest.hexdigest()


def check_digest(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Take the digest out of what a file says; raise StorageError where it is not that of the rest."""
    if metadata.pop("sha256", None) != digest_of(tensors, metadata):
        raise StorageError(f"{path}: holds not what was saved: changed or damaged since")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor of any dtype holds no NaN and no infinity."""
    if tensor.device.type == "meta" or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _decoded(text: str) -> Any:
    try:
        return _parsed(text)
    except (ValueError, RecursionError):
        return text  # a file of another tool's: safetensors metadata are plain strings there


def _opened(path: str | Path) -> BinaryIO:
    """Open a plain file to read, nothing that could make a reader wait or change what it names."""
    name = shown(str(as_path(path)), 4096)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL or half a surrogate pair
        raise StorageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise StorageError(f"{name}: is {what}, not a file")


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor into uint8, eight entries a byte, the first in the highest bit."""
    flat = mask.detach().cpu().reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return (padded * weights).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo ``pack_bits``; raises StorageError where the length does not fit ``shape``."""
    if any(type(size) is not int or size < 0 for size in shape):
        raise StorageError(f"{shape} is no shape of a mask; whole numbers from 0 are right")
    number = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != -(-number // 8):
        raise StorageError(
            f"packed mask has {packed.numel()} bytes; {-(-number // 8)} are right for shape {shape}"
        )
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
    bits = (packed[:, None] >> shifts) & 1
    return bits.reshape(-1)[:number].bool().reshape(shape)
