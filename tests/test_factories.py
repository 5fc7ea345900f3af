"""A user's own module, found in the working folder, and the path it is found by left as it was."""

import sys

import pytest

from secateur.data import load_data
from secateur.errors import DataError, ModelError
from secateur.factories import find_factory
from secateur.models import build_model

NETWORK = """
import sys
sys.path.append("somewhere")
from torch import nn
def lazy(width=3):
    import beside_{0}
    return nn.Linear(width, beside_{0}.OUTPUTS)
def rebinding():
    sys.path = []
    return nn.Linear(1, 1)
def failing():
    sys.path.clear()
    raise RuntimeError("no")
class Net(nn.Linear):
    def __init__(self, width=2):
        super().__init__(width, 1)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with modules that no other test imports, and the module's name."""
    name = tmp_path.name.replace("-", "_")
    (tmp_path / f"nets_{name}.py").write_text(NETWORK.format(name))
    (tmp_path / f"beside_{name}.py").write_text("OUTPUTS = 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return f"nets_{name}"


def test_what_a_factory_imports_when_it_is_called_is_found_beside_it(place):
    before, entries = sys.path, list(sys.path)
    assert build_model(f"{place}:lazy", width=5).weight.shape == (4, 5)
    assert build_model(f"{place}:Net", width=7).in_features == 7
    with pytest.raises(ModelError, match="no option 'widht'; did you mean 'width'"):
        build_model(f"{place}:Net", widht=7)
    assert sys.path is before
    assert sys.path == entries


@pytest.mark.parametrize("factory", ["failing", "rebinding", "missing"])
def test_the_path_is_as_it_was_whatever_happens(place, factory):
    before, entries = sys.path, list(sys.path)
    if factory == "rebinding":
        build_model(f"{place}:rebinding")
    else:
        with pytest.raises(ModelError):
            build_model(f"{place}:{factory}")
    with pytest.raises(ModelError, match="cannot import"):
        find_factory("no_such_module_here:f", ModelError)
    assert sys.path is before
    assert sys.path == entries


def test_a_data_set_of_ones_own_imports_lazily_too(place, tmp_path):
    (tmp_path / f"data_{place}.py").write_text(
        f"def make(validation, seed):\n    import beside_{place[5:]} as beside\n    return beside.OUTPUTS\n"
    )
    entries = list(sys.path)
    with pytest.raises(DataError, match="gave a int"):  # it was called, and found what it imports
        load_data(f"data_{place}:make")
    assert sys.path == entries


def test_secateurs_own_sets_look_for_no_module_in_the_working_folder(tmp_path, monkeypatch):
    """A file sklearn.py beside a study that somebody sent is not what reads the digits."""
    (tmp_path / "sklearn.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    assert len(load_data("digits").classes) == 10
