"""Real data where there are any, a cache of each test's own, and a check that errors are one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from samples import check_one_line

from secateur.errors import DataError

REAL = Path(os.environ.get("SECATEUR_DATA", "no folder of real data"))

Refused = Callable[[str], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads the user's folders unless it asks for real data, none writes to them."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SECATEUR_CACHE", str(folder))
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    return folder


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``real(file, ...)`` points $SECATEUR_DATA at the real data, or skips naming what is not there."""

    def point(*files: str) -> Path:
        for file in files:
            if not (REAL / file).is_file():
                pytest.skip(f"no {REAL / file}; set SECATEUR_DATA to the folder that holds {file}")
        monkeypatch.setenv("SECATEUR_DATA", str(REAL))
        return REAL

    return point


@pytest.fixture
def refused() -> Refused:
    """``with refused(pattern)``: a DataError of one line that matches ``pattern``."""

    @contextmanager
    def check(pattern: str) -> Iterator[None]:
        with pytest.raises(DataError, match=pattern) as caught:
            yield
        check_one_line(caught.value)

    return check
