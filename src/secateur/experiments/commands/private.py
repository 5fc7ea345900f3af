"""A temporary folder that nobody else prepares, reads or writes, and that a killed process does not leave."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from secateur.storage import abandoned, lock

PREFIX = "secateur-deploy-"
_LOCK = "lock"
_LOCKED_WITHIN = 3600.0  # seconds; it takes milliseconds


@dataclass(frozen=True)
class PrivateFolder:
    """``path``, and the file descriptors that a child process which works in it has to inherit: as long as
    one of them is open somewhere, the folder is in use."""

    path: Path
    held: tuple[int, ...]


@contextmanager
def private_folder() -> Iterator[PrivateFolder]:
    """Yield a new folder of this process, which is removed in the end; those of dead ones are removed now."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    handle = _locked(path)
    try:
        yield PrivateFolder(path, (handle,))
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _locked(folder: Path) -> int:
    unlocked = folder / f".{_LOCK}"
    handle = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    lock(handle)
    unlocked.rename(folder / _LOCK)  # under this name it is never seen unlocked while it is in use
    return handle


def _remove_abandoned(place: Path) -> None:
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, somebody else's, gone, or nobody can know
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and _is_abandoned(folder):
                shutil.rmtree(folder)


def _is_abandoned(folder: Path) -> bool:
    """Whether no process holds the folder's lock; raises OSError where one does."""
    try:
        with abandoned(folder / _LOCK):
            return True
    except FileNotFoundError:  # killed before it had one, or just beginning
        return time.time() - folder.lstat().st_mtime > _LOCKED_WITHIN
