"""Atomic, pickle-free files: safetensors for tensors, JSON for the rest. Knows nothing of models."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import StorageError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it on success and vanishes on failure.

    A kill at any moment leaves the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON; NaN and infinities are refused, since JSON has none."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StorageError(f"{path}: cannot be written as JSON: {error}") from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or malformed one is one clear error."""
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: not valid JSON: {error}") from error


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as safetensors; ``metadata`` may hold anything that JSON can."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    seen: dict[int, str] = {}
    for name, tensor in plain.items():  # the format refuses two names for one storage
        pointer = tensor.untyped_storage().data_ptr()
        if tensor.numel() and pointer in seen:
            plain[name] = tensor.clone()
        seen[pointer] = name
    try:
        text = {key: json.dumps(value, allow_nan=False) for key, value in (metadata or {}).items()}
    except (TypeError, ValueError) as error:
        raise StorageError(f"{path}: the metadata cannot be written as JSON: {error}") from error
    with replacing(path) as temporary:
        save_file(plain, str(temporary), metadata=text)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file into (tensors on the CPU, metadata).

    Raises StorageError for a file that is missing, truncated, or of another format. Pickle files
    (``torch.save``) are recognised and refused: loading one can run any code.
    """
    path = _existing(path)
    with path.open("rb") as file:
        start = file.read(16)
    pickled = start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"
    if pickled and start[8:9] != b"{":  # a safetensors header of 128 bytes begins with 0x80 too
        raise StorageError(
            f"{path}: a pickle checkpoint (torch.save), which can run code when it is loaded; "
            "convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(old, weights_only=True), new)"
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{path}: not a complete safetensors file: {error}") from error
    return tensors, {key: _decoded(value) for key, value in metadata.items()}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a file of another tool's: safetensors metadata are plain strings there


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise StorageError(f"{path}: {what}")
    return path


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor into uint8, eight entries a byte, the first in the highest bit."""
    flat = mask.detach().cpu().reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return (padded * weights).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`pack_bits`; raises StorageError where the length does not fit ``shape``."""
    number = 1
    for size in shape:
        number *= size
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != -(-number // 8):
        raise StorageError(
            f"packed mask has {packed.numel()} bytes; {-(-number // 8)} are right for shape {shape}"
        )
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
    bits = (packed[:, None] >> shifts) & 1
    return bits.reshape(-1)[:number].bool().reshape(shape)
