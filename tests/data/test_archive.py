"""Archives that want out of themselves, or too much memory, or are broken."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import check_one_line, member, plain, tar

from secateur.data import archive as module
from secateur.data.archive import members
from secateur.errors import DataError


def read(path: Path, data: bytes, largest: int = 100) -> dict[str, bytes]:
    path.write_bytes(data)
    return {str(name): content for name, content in members(path, largest)}


def test_files_come_out_and_folders_do_not(tmp_path: Path) -> None:
    data = tar(
        (member("a", tarfile.DIRTYPE), b""), plain("a/b", b"one"), plain("./c", b"two"), plain("empty", b"")
    )
    assert read(tmp_path / "t.tar.gz", data) == {"a/b": b"one", "c": b"two", "empty": b""}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (plain("/etc/passwd", b"x"), r"member '/etc/passwd' leads outside the archive"),
        (plain("a/../../b", b"x"), r"member 'a/../../b' leads outside the archive"),
        (plain("..\\b", b"x"), r"member .* leads outside the archive; plain relative names are right"),
        ((member("../d", tarfile.DIRTYPE), b""), r"member '../d' leads outside"),
        ((member("a", tarfile.SYMTYPE, target="/etc/passwd"), b""), r"member 'a' is a link or a device"),
        ((member("a", tarfile.LNKTYPE, target="b"), b""), r"member 'a' is a link or a device"),
        ((member("a", tarfile.CHRTYPE), b""), r"member 'a' is a link or a device"),
        ((member("a", tarfile.FIFOTYPE), b""), r"member 'a' is a link or a device; plain files are right"),
        (plain("a", b"x" * 101), r"member 'a' has 101 bytes; at most 100 are right"),
        (plain("first", b"x"), r"member 'first' comes twice"),
    ],
)
def test_members_refused(tmp_path: Path, entry, message: str, refused) -> None:
    with refused(r"t.tar.gz: " + message):
        read(tmp_path / "t.tar.gz", tar(plain("first", b"x"), entry))


def test_a_size_that_is_not_there(tmp_path: Path, refused) -> None:
    header = member("a", size=2**40).tobuf(tarfile.GNU_FORMAT)
    with refused(r"member 'a' has 1099511627776 bytes; at most 100 are right"):
        read(tmp_path / "t.tar.gz", gzip.compress(header))
    header = member("a", size=100).tobuf()
    with refused(r"t.tar.gz: not a whole .tar.gz archive|member 'a' is truncated"):
        read(tmp_path / "t.tar.gz", gzip.compress(header + b"x" * 50))


def test_bombs(tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL", 2**20)
    monkeypatch.setattr(module, "MAX_MEMBERS", 50)
    with refused(r"t.tar.gz: unpacks to more than 1048576 bytes"):
        read(tmp_path / "t.tar.gz", gzip.compress(bytes(2**22)))
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        long = member("x", kind, size=2**22).tobuf() + b"7" * 2**22  # read whole by tarfile
        with refused(r"t.tar.gz: a header of 4194304 bytes; at most 4096 are right"):
            read(tmp_path / "t.tar.gz", gzip.compress(long))
    with refused(r"member '50' comes twice, or after 50 others"):
        read(tmp_path / "t.tar.gz", tar(*(plain(str(number), b"x") for number in range(60))))


@pytest.mark.parametrize(
    "data",
    [b"", b"no archive", gzip.compress(b"no archive"), tar(plain("a", b"x" * 99))[:-20]],
    ids=["empty", "text", "zipped text", "cut"],
)
def test_no_archive(tmp_path: Path, data: bytes, refused) -> None:
    with refused(r"t.tar.gz: not a whole .tar.gz archive: .*; get it again"):
        read(tmp_path / "t.tar.gz", data)


def test_checksum_is_compared_at_the_end(tmp_path: Path, refused) -> None:
    data = bytearray(tar(plain("a", b"x" * 99)))
    data[-6] ^= 1  # in the CRC that follows the last byte of content
    with refused(r"not a whole .tar.gz archive: BadGzipFile: CRC check failed"):
        read(tmp_path / "t.tar.gz", bytes(data))


GOOD = gzip.decompress(tar(plain("a", b"one"), plain("dir/b", b"two" * 20)))[:2560]


@settings(deadline=None, max_examples=200)
@given(
    at=st.lists(st.tuples(st.integers(0, 2559), st.integers(0, 255)), max_size=5), cut=st.integers(0, 2560)
)
def test_mutated_archives_raise_data_error_only(
    tmp_path_factory: pytest.TempPathFactory, at: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(GOOD)
    for position, value in at:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "mutated.tar.gz"
    try:
        read(path, gzip.compress(bytes(data[:cut]), 1))
    except DataError as error:
        check_one_line(error)
