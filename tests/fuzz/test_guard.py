"""The guard sees what a reader may not do: each act is done on purpose, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, sys
from pathlib import Path
sandbox = Path(sys.argv[1])
import guard
import ctypes, pickle, socket, subprocess
guard.SECONDS, guard.MEMORY = 1, 10**8
guard.plant(sandbox)
os.chdir(sandbox)
watch = guard.Guard(sandbox, Path("/nowhere"))
def act():
    {act}
try:
    watch.watched(act)
except BaseException as error:
    print(type(error).__name__, error)
"""
ACTS = {
    "os.system('true')": "Seen os.system",
    "subprocess.run(['true'])": "Seen subprocess.Popen",
    "os.fork() or os._exit(0)": "Seen os.fork",
    "socket.socket()": "Seen socket.__new__",
    "socket.getaddrinfo('localhost', 80)": "Seen socket.getaddrinfo",
    "open('../outside', 'w')": "Seen open .*/outside",
    "os.open('../outside', os.O_CREAT | os.O_WRONLY)": "Seen open .*/outside",
    "os.mkdir('../folder')": "Seen os.mkdir .*/folder",
    "os.symlink('..', 'up'); open('up/outside', 'w')": "Seen open .*/outside",
    "os.rename('evil.py', '../moved')": "Seen os.rename .*/moved",
    "pickle.loads(pickle.dumps(os.getcwd))": "Seen pickle.find_class",
    "ctypes.CDLL(None)": "Seen ctypes.dlopen",
    "sys.path.insert(0, ''); import evil": "Seen .*evil",
    "sys.path.insert(0, os.getcwd())": "Seen sys.path has gained",
    "exec('a = 1')": "Seen exec of <string>",
    "bytearray(b'x') * 15 * 10**7": "Seen .* MiB of memory",
    "all(n == 0 for n in iter(int, 1))": "Hang over 1 s",
    "open('inside', 'w'); open('/dev/null', 'w'); os.remove('inside'); import colorsys": "",
}


@pytest.mark.parametrize("act", ACTS)
def test_an_act_is_seen(tmp_path, act):
    (tmp_path / "sandbox").mkdir()
    command = [sys.executable, "-c", CODE.format(act=act), str(tmp_path / "sandbox")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(f"{ACTS[act]}.*" if ACTS[act] else "", done.stdout.strip()), done.stdout
