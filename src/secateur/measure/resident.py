"""The memory of this process as Linux counts it: resident now, and the most since a moment."""

from __future__ import annotations

import ctypes


def resident() -> int:
    """Return the bytes of this process that are in memory now; raises OSError where nobody counts them."""
    return _status("VmRSS")


def begin_peak() -> int:
    """Forget the peak so far, and give free memory back, which would hide a new one; return what is left."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return resident()


def peak() -> int:
    """Return the most bytes that were resident since ``begin_peak``."""
    return _status("VmHWM")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
