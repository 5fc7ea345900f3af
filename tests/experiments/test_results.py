"""Where results are read and written: in the folder that was named, by secateur's own git."""

import os

import pytest

from secateur.errors import StorageError
from secateur.experiments.results import check_writable, inside, versions


def test_a_path_stays_in_its_folder(tmp_path):
    folder, outside = tmp_path / "study", tmp_path / "outside"
    (folder / "trials").mkdir(parents=True)
    outside.mkdir()
    assert inside(folder, "trials", "x") == folder / "trials" / "x"
    (folder / "within").symlink_to(folder / "trials")
    assert inside(folder, "within", "x") == folder / "within" / "x"
    (tmp_path / "named").symlink_to(folder)
    assert inside(tmp_path / "named", "trials") == tmp_path / "named" / "trials", "a link that was named"
    (folder / "out").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    for parts in (("out", "x"), ("out",), ("..", "outside"), (str(outside),)):
        with pytest.raises(StorageError, match="a link leads out of"):
            inside(folder, *parts)
    assert not inside(folder, "loop").exists()


def test_a_folder_that_takes_no_file_names_the_option(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file: cannot be written \(.*\); name another place with --out"):
        check_writable(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(StorageError, match=r"link: is a link, which is not followed"):
        check_writable(tmp_path / "link")


def test_no_program_of_the_working_folder_says_the_commit(tmp_path, monkeypatch):
    (tmp_path / "git").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\necho planted\n")
    (tmp_path / "git").chmod(0o755)
    expected = versions()["commit"]
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", os.curdir + os.sep):
        monkeypatch.setenv("PATH", os.pathsep.join([path, os.environ["PATH"]]))
        assert versions()["commit"] == expected
    assert not (tmp_path / "ran").exists()
