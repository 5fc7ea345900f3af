"""A trial's folder and who owns it: what becomes visible there is written by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from secateur.errors import StorageError
from secateur.storage import load_json, locked, own_folder, save_json, sha256_of, sweep, sync

Files = Mapping[str, Path]
MODEL, MASKS, PACKED, RESULT = "model.safetensors", "masks.safetensors", "model.secateur", "result.json"
_OWNER = "owner"
_UNFINISHED = ("*.part", "state-*.json", "training-*.json")
_OF_OLD = ("state.json", "training.safetensors")  # an unfinished trial's files before there were manifests


class Lost(Exception):
    """The trial is another process's now: this one writes nothing more of it. The text, where there is one,
    is for the user."""


class Claim:
    """A trial's folder, of the process that took it last; it keeps the token that says so.

    What is not finished yet goes into parts, files under new names. They count once a manifest names them, or
    ``result.json``, which is written under a lock while the token is still this process's. A process that
    slept while another took the folder meets ``Lost`` there, and changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = own_folder(folder)
        self._token, self._parts = secrets.token_hex(8), 0
        with locked(folder / _OWNER) as handle:
            os.ftruncate(handle, 0)
            os.pwrite(handle, self._token.encode(), 0)
        sweep(folder)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, Lost):
            with self.held():  # a part that the new owner has removed is no error of its own
                pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run the block while the folder is this process's for certain; raises Lost where it is not."""
        path = self.folder / _OWNER
        lost = Lost(
            f"{self.folder}: another process has taken this trial while this one slept; it goes on there"
        )
        if not path.exists():
            raise lost
        with locked(path) as handle:
            found = os.pread(handle, 64, 0)
            if not found:  # created this moment, by this very look: its owner has finished
                path.unlink()
            if found != self._token.encode():
                raise lost
            yield

    def part(self, name: str) -> Path:
        """Return a path in the folder that nobody has used before."""
        self._parts += 1
        return self.folder / f"{name}-{self._token}-{self._parts}.part"

    def finish(self, row: Mapping[str, Any], files: Files) -> None:
        """Give the parts ``files`` their names, stamp them with ``result.json``, and remove all others."""
        stamp = self.part(RESULT)
        save_json(stamp, {**row, "files": {name: sha256_of(path) for name, path in files.items()}})
        with self.held():
            for name, path in [*files.items(), (RESULT, stamp)]:
                path.replace(self.folder / name)
            sync(self.folder)
            self._clean()

    def finished(self) -> dict[str, Any] | None:
        """Return the row of the finished trial that the folder holds whole, and remove what else a kill left;
        None where there is none. Raises StorageError where there is one, damaged."""
        if not (self.folder / RESULT).exists():
            return None
        row = whole_result(self.folder)
        with self.held():
            self._clean()
        return row

    def take_over(self, other: Path) -> dict[str, Any]:
        """Copy a finished trial from another folder, and return its row.

        Raises StorageError or OSError where it is not whole, and then nothing counts.
        """
        row, hashes = _result_of(other)
        files = {name: self.part(name) for name in hashes}
        for name, path in files.items():
            if (other / name).is_symlink():
                raise StorageError(f"{other / name}: is a link, which is not followed")
            shutil.copyfile(other / name, path)
            if sha256_of(path) != hashes[name]:
                raise StorageError(f"{other / name}: does not hold what {RESULT} says")
        self.finish(row, files)
        return row

    def _clean(self) -> None:
        for path in [path for pattern in _UNFINISHED for path in self.folder.glob(pattern)]:
            path.unlink(missing_ok=True)
        for name in (*_OF_OLD, _OWNER):
            (self.folder / name).unlink(missing_ok=True)


def whole_result(folder: Path) -> dict[str, Any]:
    """Return the row of a finished trial; raises StorageError where a file beside it is not what it says."""
    row, hashes = _result_of(folder)
    for name, sha256 in hashes.items():
        path = folder / name
        if path.exists() and sha256_of(path) != sha256:  # who removed one to save space keeps the row
            raise StorageError(f"{path}: does not hold what {RESULT} says")
    return row


def _result_of(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a trial's row, and the hashes of the files beside it."""
    path = folder / RESULT
    row = load_json(path)
    ended = isinstance(row, dict) and row.get("state") in ("finished", "failed")
    if not ended or row.get("id") != folder.name:
        raise StorageError(f"{path}: is not the result of the trial {folder.name}")
    kept = [name for name in (MODEL, MASKS, PACKED) if (folder / name).is_file()]
    hashes = row.pop("files", None)
    if hashes is None:  # of an earlier version
        return row, {name: sha256_of(folder / name) for name in kept}
    if not isinstance(hashes, dict) or not set(hashes) <= {MODEL, MASKS, PACKED}:
        raise StorageError(f"{path}: 'files' names others than {MODEL}, {MASKS} and {PACKED}")
    return row, hashes


# -- snapshots -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A state that is whole on disk: its number, its plain values and its files."""

    number: int
    values: dict[str, Any]
    files: dict[str, Path]


class _Manifest(BaseModel):
    """``files``: by what they are, each one's name, size and hash."""

    number: int
    values: dict[str, Any]
    files: dict[str, tuple[str, int, str]]


def write_snapshot(
    claim: Claim, kind: str, values: Mapping[str, Any], files: Files, *, ends: tuple[str, ...] = ()
) -> None:
    """Let ``files``, parts of the claim's folder, and ``values`` become visible together.

    They are, once the manifest is there, which names and hashes all of them; then the one before goes, and
    so does whatever the ``kind`` (and the others that this one ``ends``) had besides.
    """
    number = 1 + max((_number(path) for path in _manifests(claim.folder, kind)), default=0)
    body = {
        "number": number,
        "values": values,
        "files": {name: [path.name, path.stat().st_size, sha256_of(path)] for name, path in files.items()},
    }
    part = claim.part(kind)
    save_json(part, {**body, "sha256": _digest(body)})
    with claim.held():
        manifest = claim.folder / f"{kind}-{number:06d}-{secrets.token_hex(8)}.json"
        part.replace(manifest)
        sync(claim.folder)
        keep = {manifest, *files.values()}
        for old in [path for name in (kind, *ends) for path in claim.folder.glob(f"{name}-*")]:
            if old not in keep:
                old.unlink(missing_ok=True)


def newest_snapshots(folder: Path, kind: str) -> Iterator[Snapshot]:
    """Yield the snapshots that are whole, the newest first."""
    for manifest in sorted(_manifests(folder, kind), reverse=True):
        snapshot = _read(manifest)
        if snapshot is not None:
            yield snapshot


def _manifests(folder: Path, kind: str) -> list[Path]:
    return [path for path in folder.glob(f"{kind}-*.json") if _number(path)]


def _number(manifest: Path) -> int:
    number = manifest.stem.split("-")[1]
    return int(number) if number.isdecimal() and number.isascii() else 0


def _read(manifest: Path) -> Snapshot | None:
    try:
        body = load_json(manifest)
        if not isinstance(body, dict) or body.pop("sha256", None) != _digest(body):
            return None
        read = _Manifest.model_validate(body)
        files = {name: _verified(manifest.parent, *described) for name, described in read.files.items()}
    except (StorageError, OSError, ValidationError):
        return None
    return Snapshot(read.number, read.values, files)


def _verified(folder: Path, name: str, size: int, sha256: str) -> Path:
    path = folder / name
    plain = path.parent == folder and path.is_file() and not path.is_symlink()
    if not plain or path.stat().st_size != size or sha256_of(path) != sha256:
        raise StorageError(f"{path}: does not hold what its manifest says")
    return path


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
