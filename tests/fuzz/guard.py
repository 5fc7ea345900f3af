"""What a file that is read may not do: an audit hook, a clock, a limit on memory, a folder to stay in."""

from __future__ import annotations

import os
import resource
import signal
import site
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 10
MEMORY = 10**9

# Modules that stand in the working folder: importing one is seen, and would leave a mark besides.
PLANTED = (
    "numpy",
    "decimal",
    "evil",
    "torch",
    "yaml",
    "json",
    "sitecustomize",
    "PIL",
    "secateur",
    "zstandard",
)

_STARTS = ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.", "socket.")
_NEVER = (
    "pickle.find_class",
    "marshal.load",
    "ctypes.dlopen",
    "urllib.Request",
    "webbrowser.open",
    "os.putenv",
)
_CHANGES = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *(
        "os.chown",
        "os.utime",
        "os.setxattr",
        "shutil.rmtree",
        "shutil.move",
        "shutil.copyfile",
        "shutil.chown",
    ),
)
_TWO = ("os.symlink", "os.rename", "os.link", "shutil.move")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """Reading took longer than SECONDS; no ``except Exception`` of the product's may swallow it."""


class Seen(BaseException):
    """Reading did what it may not do."""


class Guard:
    """Keeps state: what the process did while a file was being read. One a process; its hook stays."""

    def __init__(self, sandbox: Path, product: Path) -> None:
        self.sandbox = os.path.realpath(sandbox)
        places = {
            *sysconfig.get_paths().values(),
            *site.getsitepackages(),
            sys.base_prefix,
            sys.prefix,
            product,
        }
        self.code = tuple(os.path.realpath(place) + os.sep for place in places if place)
        self.product = os.path.realpath(product) + os.sep
        self.active = self.told = False
        self.seen: list[str] = []
        self.modules: set[str] = set()
        self.resident = _resident()
        self.path = list(sys.path)
        sys.addaudithook(self._hook)
        signal.signal(signal.SIGALRM, _too_long)

    def limit_memory(self) -> None:
        """Let the process take about twice MEMORY more than it has, so that the machine stays well."""
        most = _pages(0) + 2 * MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def watched(self, read: Callable[[], Any]) -> Any:
        """Run ``read``; raise Hang or Seen for what it may not do, else what it raises itself."""
        self.seen = []
        self.modules = set(sys.modules)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.active = True
        try:
            return read()
        finally:
            self.active = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._check()

    def _check(self) -> None:
        for name in sys.modules.keys() - self.modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file and not os.path.realpath(file).startswith(self.code):
                del sys.modules[name]
                self.seen.append(f"import of {name} from {file}")
        if sys.path != self.path:
            if not self.told:  # once: it would hide all else
                self.seen.append(f"sys.path has gained {set(sys.path) - set(self.path)}")
            self.told, sys.path[:] = True, self.path
        peak = _peak()
        if peak > self.resident + MEMORY // 10:
            if peak > self.resident + MEMORY:
                self.seen.append(f"{(peak - self.resident) >> 20} MiB of memory")
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak counts from here
            self.resident = _resident()
        if self.seen:
            raise Seen("; ".join(self.seen[:3]))

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, mode, flags = args
            writing = flags & _WRITES if isinstance(flags, int) else set(str(mode)) & set("wax+")
            if writing and not isinstance(path, int):
                self._changed(event, path)
        elif event == "exec":
            self._executed(args[0])
        elif event.startswith(_STARTS) or event in _NEVER:
            self.seen.append(f"{event}{args!r:.120}")
        elif event in _CHANGES:
            first = 1 if event == "os.symlink" else 0  # where the link will stand, not where it leads
            for path in args[first : 2 if event in _TWO else 1]:
                self._changed(event, path)

    def _changed(self, event: str, path: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        real = os.path.realpath(os.fsdecode(path))
        if not real.startswith(self.sandbox + os.sep) and real not in (self.sandbox, "/dev/null"):
            self.seen.append(f"{event} {real}")

    def _executed(self, code: Any) -> None:
        """Code of a file, or text that somebody has compiled: only that of installed packages is right."""
        file = getattr(code, "co_filename", "")
        caller = sys._getframe(2).f_code.co_filename
        if file.startswith("<"):
            right = caller.startswith("<frozen") or (
                self._known(caller) and not caller.startswith(self.product)
            )
        else:
            right = self._known(file)
        if not right:
            self.seen.append(f"exec of {file} by {caller}")

    def _known(self, file: str) -> bool:
        return os.path.realpath(file).startswith(self.code)


def _too_long(signum: int, frame: Any) -> None:
    raise Hang(f"over {SECONDS} s")


def _resident() -> int:
    return _pages(1)


def _peak() -> int:
    """The most that was resident since the process began; getrusage's figure is its parent's at first."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _pages(field: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def plant(folder: Path) -> None:
    """Put modules into ``folder`` that leave a mark where they are imported."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PLANTED:
        mark = f"import os\nopen({str(folder / 'imported')!r}, 'a').write({name!r})\n"
        text = mark + "def run(**options):\n    os._exit(66)\n"
        (folder / f"{name}.py").write_text(text)
