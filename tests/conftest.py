"""What every test begins with: where the real data is, one thread, one seed, hypothesis without surprises.

One thread from the start, in processes that a test starts too: a fork of one that has computed on several
hangs.

The real data is at $SECATEUR_DATA, else in a folder shared/data beside the repository.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"

if "SECATEUR_DATA" not in os.environ and _BESIDE.is_dir():
    os.environ["SECATEUR_DATA"] = str(_BESIDE)

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return request.param


@pytest.fixture
def need() -> Callable[[str], Path]:
    """Skip the test where a file of the real data is missing, naming the file."""

    def check(name: str) -> Path:
        folder = os.environ.get("SECATEUR_DATA")
        path = Path(folder or ".") / name
        if not folder or not path.exists():
            pytest.skip(f"needs {path} (set SECATEUR_DATA to a folder that holds {name})")
        return path

    return check
