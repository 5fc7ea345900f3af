"""Texts as tokens: windows of them, and after each token the next."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from secateur.data.assemble import validation_count
from secateur.data.checks import MAX_VALUES, check_path, check_whole, reading
from secateur.data.dataset import Dataset, Split
from secateur.data.files import download as fetch
from secateur.data.files import local, missing
from secateur.errors import DataError

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
UNKNOWN = "<other>"
Unit = Literal["characters", "bytes"]
Array = np.ndarray[Any, Any]


def text(
    *,
    path: str | Path,
    context: int = 128,
    unit: Unit = "bytes",
    test: float = 0.1,
    train: int | None = None,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Your own text, a file or a folder of .txt files: windows of tokens, and after each token the next.

    Inputs and labels are (N, ``context``). The text is cut into three parts, one after the other: training,
    validation, and the last share ``test``; no token is in two. ``unit``: "bytes" (256 tokens), or
    "characters", those of the training part and one more for all others. ``train``: the first so many
    windows alone. ``seed`` changes nothing: nothing is drawn.
    """
    place = check_path("path", path)
    files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise DataError(f"{place}: no .txt file in it; a file, or a folder that holds some, is right")
    with reading(f"{place}: cannot be read", OSError):
        if sum(file.stat().st_size for file in files) > MAX_VALUES // 16:
            raise DataError(f"{place}: over {MAX_VALUES // 16:,} bytes; everything lives in memory")
        content = b"\n".join(file.read_bytes() for file in files)
    options = {"context": context, "unit": unit, "test": test, "train": train, "validation": validation}
    return _windows("text", content, options, seed)


def tinyshakespeare(
    *,
    context: int = 128,
    train: int | None = None,
    download: bool = True,
    validation: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Tiny Shakespeare: 1,115,394 characters of plays; windows of them, and after each the next.

    Tokens are characters, the last 5 % test data, and ``context`` and ``train`` are as of "text". Looks in
    $SECATEUR_DATA/tinyshakespeare, then the cache, then downloads unless ``download`` is off.
    """
    options = {
        "context": context,
        "unit": "characters",
        "test": 0.05,
        "train": train,
        "validation": validation,
    }
    return _windows("tinyshakespeare", _shakespeare(download), options, seed)


def _shakespeare(download: bool) -> bytes:
    for path in local(("input.txt",), "tinyshakespeare"):
        return _pinned(path)
    if not download:
        raise missing("input.txt", "tinyshakespeare", "download is off")
    return fetch(URL, "input.txt", "tinyshakespeare", _pinned)


def _pinned(path: Path) -> bytes:
    with reading(f"{path}: cannot be read", OSError):
        content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path}: sha256 {found[:16]}...; tinyshakespeare's is {SHA256[:16]}...; get it again"
        )
    return content


def _windows(name: str, content: bytes, options: dict[str, Any], seed: int) -> Dataset:
    """Return the windows of a text's three parts."""
    check_whole("seed", seed, 0, 2**32 - 1)
    context, unit, share, first = (options[key] for key in ("context", "unit", "test", "train"))
    check_whole("context", context, 1, 2**20)
    if unit not in ("characters", "bytes"):
        raise DataError(f"unit is {unit!r}; it is one of characters, bytes")
    if isinstance(share, bool) or not isinstance(share, float) or not 0 < share < 1:
        raise DataError(f"test is {share!r}; it is a share between 0 and 1")
    if first is not None:
        check_whole("train", first, 1, 2**31)
    codes = _codes(name, content, unit)
    rest = len(codes) - round(share * len(codes))
    windows = (rest - 1) // context
    if windows < 2:
        raise DataError(f"{name}: {len(codes)} {unit}; three parts of windows of {context} need more")
    held = validation_count(name, options["validation"], windows)
    start = rest - held * context - 1
    known = np.arange(256) if unit == "bytes" else np.unique(codes[:start])
    parts = [
        _part(name, codes[a:b], known, context) for a, b in ((0, start), (start, rest), (rest, len(codes)))
    ]
    train = parts[0] if first is None else Split(parts[0].inputs[:first], parts[0].labels[:first])
    settings = {"name": name, "options": options | {"validation": held}}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + content)
    tokens = [f"{code:#04x}" for code in known] if unit == "bytes" else [*map(chr, known), UNKNOWN]
    return Dataset(
        name, train, parts[1], parts[2], fingerprint=digest.hexdigest()[:16], vocabulary=tuple(tokens)
    )


def _codes(name: str, content: bytes, unit: Unit) -> Array:
    if unit == "bytes":
        return np.frombuffer(content, np.uint8)
    with reading(f"{name}: not UTF-8 text (unit: bytes reads anything)", UnicodeDecodeError):
        return np.frombuffer(content.decode("utf-8").encode("utf-32-le"), np.uint32)


def _part(name: str, codes: Array, known: Array, context: int) -> Split:
    number = (len(codes) - 1) // context
    if number < 1:
        raise DataError(f"{name}: a part has {len(codes)} tokens; a window of {context} needs one more")
    at = np.searchsorted(known, codes).clip(max=len(known) - 1)
    tokens = torch.from_numpy(np.where(known[at] == codes, at, len(known)).astype(np.int64))
    used = number * context
    return Split(tokens[:used].reshape(number, context), tokens[1 : used + 1].reshape(number, context))
