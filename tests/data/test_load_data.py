"""The table of data sets, and how options reach them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.data import DATASETS, load_data
from secateur.errors import MissingExtraError

IMPORT = (
    "import sys, secateur.data; assert not {'torch', 'numpy', 'sklearn', 'pooch', 'PIL'} & set(sys.modules)"
)


def test_import_is_light() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_is_a_documented_function(name: str) -> None:
    module, function = DATASETS[name].split(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    line = (ast.get_docstring(found[function]) or "").splitlines()[0]
    assert line.endswith(".")
    assert 40 < len(line) < 110
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert (parameters["validation"].default, parameters["seed"].default) == (0.1, 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnits", {}, r"unknown data set 'mnits'; did you mean 'mnist'"),
        ("voc-2012", {}, r"unknown data set 'voc-2012'; known: digits, "),
        ("mnist", {"donwload": False}, r"^mnist has no option 'donwload'; did you mean 'download'"),
        ("digits", {"path": "x"}, r"^digits has no option 'path'$"),
        ("npz", {}, r"^npz needs the option 'path'$"),
        ("image-folder", {"path": "x"}, r"^image-folder needs the option 'size'$"),
        (
            "image-folder",
            {"path": "x", "size": "big"},
            r"^size is 'big'; it is a whole number from 1 to 4096$",
        ),
        ("image-folder", {"path": 3, "size": 8}, r"^path is 3; it is the path"),
        ("mnist", {"download": "no"}, r"^download is 'no'; it is true or false$"),
        ("make-classification", {"features": 3}, r"^features is 3; it is a whole number from 4 to 10000$"),
        ("make-classification", {"features": True}, r"^features is True; it is a whole number"),
        ("make-classification", {"standardise": 1}, r"^standardise is 1; it is true or false$"),
        ("digits", {"validation": 0}, r"^digits: validation is 0; a share between 0 and 1"),
        ("digits", {"validation": 1.0}, r"^digits: validation is 1\.0; a share"),
        ("digits", {"validation": "some"}, r"^digits: validation is 'some'; a share"),
        ("digits", {"validation": True}, r"^digits: validation is True; a share"),
        ("digits", {"validation": float("nan")}, r"^digits: validation is nan; a share"),
        ("digits", {"validation": 1437}, r"takes 1437 of 1437 training examples; 1 to 1436 are right"),
        ("digits", {"validation": 1e-9}, r"takes 0 of 1437 training examples"),
        ("digits", {"validation": 1436}, r"no example of class '0' is left for training"),
        ("digits", {"seed": -1}, r"^seed is -1; it is a whole number"),
        ("digits", {"seed": 0.5}, r"^seed is 0\.5; it is a whole number"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict, message: str, refused) -> None:
    with refused(message):
        load_data(name, **options)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"'scikit-learn' is not installed.*secateur\[lab\]"):
        load_data("digits")


def test_cache_without_pooch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"'pooch' is not installed"):
        load_data("mnist", download=False)
