"""Downloads: real bytes from a server on this machine, and every way in which they can fail."""

from __future__ import annotations

import functools
import gzip
import http.server
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import FILES, md5s, put, small_mnist

from secateur.data import load_data
from secateur.data import mnist as module


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Cut(_Quiet):
    """Announces more than it sends, as a connection that breaks does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(gzip.compress(small_mnist(0)[0])[:50])


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """``serve(files)`` serves small files as MNIST's; their hashes are the pinned ones."""
    monkeypatch.setattr(module, "MD5", {"mnist": md5s(small_mnist(0)), "fashion-mnist": md5s(small_mnist(1))})
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(files: list[bytes], handler: type[_Quiet] = _Quiet) -> None:
        put(tmp_path / "www", files)
        place = functools.partial(handler, directory=str(tmp_path / "www"))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), place)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(module, "MIRRORS", {"mnist": f"http://127.0.0.1:{server.server_port}/"})

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_download_once_then_from_the_cache(serve, cache: Path, capfd, caplog) -> None:
    serve(small_mnist(0))
    with caplog.at_level(logging.INFO):
        first = load_data("mnist", validation=10)
    assert sum("downloading http://127.0.0.1" in line for line in caplog.messages) == 4
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(FILES)
    assert ((cache / "mnist" / FILES[0]).stat().st_mode & 0o444) == 0o444 & ~_umask()
    again = load_data("mnist", validation=10, download=False)
    assert first.fingerprint == again.fingerprint


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_wrong_hash_never_takes_the_files_name(serve, cache: Path, refused) -> None:
    serve([small_mnist(2)[0], *small_mnist(0)[1:]])
    with refused(
        r"^http://127.0.0.1:\d+/train-images-idx3-ubyte.gz gave another file: train-.*md5 .*mnist's is"
    ):
        load_data("mnist")
    assert left_behind(cache) == []


def test_the_other_sets_file_is_not_accepted(serve, cache: Path, refused) -> None:
    serve(small_mnist(1))
    with refused(r"gave another file: train-images-idx3-ubyte.gz: this is the file of fashion-mnist"):
        load_data("mnist")
    assert left_behind(cache) == []


def test_a_page_instead_of_a_file(serve, cache: Path, refused, tmp_path: Path) -> None:
    serve(small_mnist(0))
    (tmp_path / "www" / FILES[0]).write_text("<html>log in to this network</html>")
    with refused(r"gave another file: train-images-idx3-ubyte.gz: starts with 3c68746d; an IDX file"):
        load_data("mnist")
    assert left_behind(cache) == []


def test_not_found(serve, cache: Path, refused, tmp_path: Path) -> None:
    serve(small_mnist(0))
    (tmp_path / "www" / FILES[1]).unlink()
    with refused(r"^train-labels-idx1-ubyte.gz is neither .*downloaded \(HTTPError: 404.*; put train-labels"):
        load_data("mnist")
    assert left_behind(cache) == [FILES[0]]


def test_broken_connection(serve, cache: Path, refused) -> None:
    serve(small_mnist(0), _Cut)
    with refused(
        r"could not be downloaded|gave another file: train-images-idx3-ubyte.gz: cannot be read to its end"
    ):
        load_data("mnist")
    assert left_behind(cache) == []


def test_connection_refused(cache: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers, nobody else can take it
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(module, "MIRRORS", {"mnist": f"http://127.0.0.1:{taken.getsockname()[1]}/"})
        with refused(
            r"^train-images-idx3-ubyte.gz is neither in \$SECATEUR_DATA \(not set\) nor in the cache \(.*\), "
            r"and http://127.0.0.1:\d+/\S+ could not be downloaded \(ConnectionError: .*\); "
            r"put train-images-idx3-ubyte.gz into \$SECATEUR_DATA/mnist or .*/mnist$"
        ):
            load_data("mnist")
    assert left_behind(cache) == []


def test_cache_that_cannot_be_written(refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file"))
    with refused(r"could not be downloaded \((FileExists|NotADirectory)Error"):
        load_data("mnist")


def test_damaged_file_in_the_cache_is_named(serve, cache: Path, refused) -> None:
    serve(small_mnist(0))
    load_data("mnist", validation=10)
    path = cache / "mnist" / FILES[3]
    path.write_bytes(path.read_bytes()[:-6])
    with refused(f"{path}: cannot be read to its end: EOFError.*get it again"):
        load_data("mnist", validation=10)
