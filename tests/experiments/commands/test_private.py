"""The folder that deploy works in: nobody else's, and gone after a kill, at the next start."""

import os
import signal
import stat
import subprocess
import sys
import tempfile

import pytest

from secateur.experiments.commands.private import PREFIX, private_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="file locks and signals of POSIX")

HOLDING = """
import subprocess, sys, time
from secateur.experiments.commands.private import private_folder
with private_folder() as private:
    (private.path / "file").write_text("x")
    child = subprocess.Popen(["sleep", "60"], pass_fds=private.held) if len(sys.argv) > 1 else None
    print(private.path, child.pid if child else 0, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def held(*arguments):
    """A process that is in its private folder, the folder's path, and the id of a child that inherited it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, *arguments], stdout=subprocess.PIPE, text=True)
    path, child = process.stdout.readline().split()
    return process, path, int(child)


def test_it_is_the_users_alone_and_removed_in_the_end(place):
    with private_folder() as private:
        assert stat.S_IMODE(private.path.stat().st_mode) == 0o700
        assert private.path.parent == place
    assert list(place.iterdir()) == []


def test_a_living_processs_folder_stays_and_a_killed_ones_goes(place):
    process, path, _ = held()
    with private_folder():
        assert os.path.exists(path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert os.path.exists(path)
    with private_folder():
        assert not os.path.exists(path)


def test_a_folder_in_which_a_killed_ones_child_works_on_stays(place):
    process, path, child = held("with a child")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with private_folder():
        assert os.path.exists(path)
    os.kill(child, signal.SIGKILL)
    while os.path.exists(path):  # until the system has closed the child's files
        with private_folder():
            pass


def test_what_is_not_a_folder_of_ours_stays(place, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "lock").write_text("")
    (place / f"{PREFIX}link").symlink_to(outside)
    (place / f"{PREFIX}file").write_text("x")
    (place / "other").mkdir()
    (place / f"{PREFIX}new").mkdir()  # another process is just making it
    with private_folder():
        pass
    assert {path.name for path in place.iterdir()} == {
        f"{PREFIX}link",
        f"{PREFIX}file",
        f"{PREFIX}new",
        "other",
    }
    assert (outside / "lock").exists()
