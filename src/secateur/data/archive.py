"""Members of a .tar.gz, read in memory one after the other; nothing is ever extracted."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from secateur.data.checks import reading
from secateur.errors import DataError

MAX_TOTAL = 2**28  # of all that comes out of one archive, headers included; CIFAR-10's has 184 MB
MAX_HEADER = 2**12  # of what belongs to no file: long names, and attributes that tarfile keeps as text
MAX_MEMBERS = 200_000
_DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError)


def members(path: Path, largest: int) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield (name, content) of each file in the archive at ``path``; folders are passed over.

    Raises DataError for links and devices, absolute names and '..', a name that comes twice, a file
    over ``largest`` bytes, an archive that is damaged or unpacks to more than 256 MiB.
    """
    with (
        reading(f"{path}: not a whole .tar.gz archive", *_DAMAGED, then="; get it again"),
        path.open("rb") as file,
        gzip.GzipFile(fileobj=file) as unzipped,
    ):
        capped = io.BufferedReader(_Capped(unzipped, MAX_TOTAL, str(path)))
        with tarfile.open(str(path), "r|", capped, tarinfo=_Member) as archive:
            yield from _members(archive, largest, str(path))
        while capped.read(2**16):  # to the end, where gzip compares its checksum
            pass


def _members(archive: tarfile.TarFile, largest: int, shown: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    seen: set[PurePosixPath] = set()
    for member in archive:
        name = PurePosixPath(member.name)
        what = f"{shown}: member {member.name[:80]!r}"
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise DataError(f"{what} leads outside the archive; plain relative names are right")
        if member.isdir():
            continue
        if not member.isreg():
            raise DataError(f"{what} is a link or a device; plain files are right")
        if member.size > largest:
            raise DataError(f"{what} has {member.size} bytes; at most {largest} are right")
        if name in seen or len(seen) == MAX_MEMBERS:
            raise DataError(f"{what} comes twice, or after {MAX_MEMBERS} others; each file once is right")
        seen.add(name)
        content = archive.extractfile(member)
        data = content.read() if content else b""
        if len(data) != member.size:
            raise DataError(f"{what} is truncated: {len(data)} of {member.size} bytes; get the archive again")
        yield name, data


class _Member(tarfile.TarInfo):
    """A member whose extended header, which tarfile reads into memory whole, is no longer than MAX_HEADER."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > MAX_HEADER:
            raise DataError(f"{archive.name}: a header of {self.size} bytes; at most {MAX_HEADER} are right")
        return super()._proc_member(archive)  # type: ignore[misc]


class _Capped(io.RawIOBase):
    """A stream that refuses to give more than ``most`` bytes: a small archive can unpack to terabytes."""

    def __init__(self, source: gzip.GzipFile, most: int, shown: str) -> None:
        self._source, self._left, self._shown = source, most, shown

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        got = self._source.readinto(buffer)
        self._left -= got
        if self._left < 0:
            raise DataError(f"{self._shown}: unpacks to more than {MAX_TOTAL} bytes; get the archive again")
        return got
