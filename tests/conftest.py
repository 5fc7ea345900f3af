"""Where the real data is: $SECATEUR_DATA, else a folder shared/data beside the repository."""

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"

if "SECATEUR_DATA" not in os.environ and _BESIDE.is_dir():
    os.environ["SECATEUR_DATA"] = str(_BESIDE)


@pytest.fixture
def need():
    """Skip the test where a file of the real data is missing, naming the file."""

    def check(name: str) -> Path:
        folder = os.environ.get("SECATEUR_DATA")
        path = Path(folder or ".") / name
        if not folder or not path.exists():
            pytest.skip(f"needs {path} (set SECATEUR_DATA to a folder that holds {name})")
        return path

    return check
