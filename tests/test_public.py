"""The public table: complete, true, lazy, and known to the type checker."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import secateur

PACKAGE = Path(secateur.__file__).parent


@pytest.mark.parametrize("name", secateur.PUBLIC)
def test_every_public_name_is_where_the_table_says(name):
    value = getattr(secateur, name)
    assert value is getattr(importlib.import_module(f"secateur.{secateur.PUBLIC[name]}"), name)
    assert value.__module__ == f"secateur.{secateur.PUBLIC[name]}"  # defined there, not passed through
    assert inspect.getdoc(value), f"{name} has no docstring"


def test_all_and_dir():
    assert set(secateur.__all__) == {"PUBLIC", "PURPOSES", "__version__", *secateur.PUBLIC}
    assert set(secateur.PUBLIC) <= set(dir(secateur))


def test_unknown_names():
    with pytest.raises(AttributeError, match=r"module 'secateur' has no attribute 'magnitude'"):
        secateur.magnitude  # noqa: B018


def test_the_stub_is_the_list_and_every_name_has_a_purpose():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    lines = [line for line in tree.body if isinstance(line, ast.ImportFrom) and line.module != "secateur"]
    typed = {alias.name: line.module.removeprefix("secateur.") for line in lines for alias in line.names}
    assert typed == secateur.PUBLIC
    assert [name for names in secateur.PURPOSES.values() for name in names] == list(secateur.PUBLIC)
    assert all(f"\n{purpose}\n" in secateur.__doc__ for purpose in secateur.PURPOSES)


def test_errors_are_public():
    code = "import secateur; print(issubclass(secateur.errors.MaskError, secateur.SecateurError))"
    assert in_a_fresh_python(code) == "True"
    raised = {name for name, value in vars(secateur.errors).items() if inspect.isclass(value)}
    assert {name for name in raised if name.endswith(("Error", "Warning"))} <= set(secateur.PUBLIC)


@pytest.mark.parametrize("room", ["criteria", "budgets", "shrinkage", "schedules"])
def test_everything_with_a_part_to_play_is_public(room):
    module = importlib.import_module(f"secateur.pruning.{room}")
    players = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and "__call__" in vars(value)
        and not getattr(value, "_is_protocol", False)
    ]
    assert len(players) >= 3
    assert [name for name in players if name not in secateur.PUBLIC] == []


def test_no_module_bears_a_public_name():
    # ``secateur.prune`` must be the function, also after ``import secateur.prune.anything``.
    modules = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert not modules & set(secateur.PUBLIC)


def in_a_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_importing_secateur_imports_nothing_heavy():
    code = (
        "import sys, secateur; dir(secateur); secateur.__all__; "
        "print([m for m in ('torch', 'numpy', 'scipy', 'safetensors', 'pydantic', 'typer', 'optuna') "
        "if m in sys.modules], [m for m in sys.modules if m.startswith('secateur.')])"
    )
    assert in_a_fresh_python(code) == "[] []"


def test_the_core_needs_no_extra():
    extras = (
        "typer",
        "rich",
        "pydantic",
        "yaml",
        "optuna",
        "plotly",
        "sklearn",
        "pooch",
        "PIL",
        "numba",
        "onnx",
    )
    code = (
        f"import sys\nfor extra in {extras}: sys.modules[extra] = None\n"
        "import torch, secateur as sc\n"
        "net = torch.nn.Linear(4, 4)\n"
        "masks = sc.prune(net, sc.Magnitude(), sc.Global(0.5))\n"
        "print(masks.sparsity)"
    )
    assert in_a_fresh_python(code) == "0.5"


def test_what_needs_an_extra_says_so_in_a_line():
    code = (
        "import sys, secateur as sc\nsys.modules['pydantic'] = None\n"
        "try: sc.Step\nexcept sc.MissingExtraError as error: print(error)"
    )
    said = "'pydantic' is not installed; it comes with: pip install 'secateur[lab]'"
    assert in_a_fresh_python(code) == said
