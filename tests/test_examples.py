"""Every public name shows an example, and the examples of docstrings and of pages run."""

from __future__ import annotations

import ast
import doctest
import inspect
import io
from pathlib import Path

import pytest
import torch

import secateur

ROOT = Path(__file__).parents[1]
PARSER = doctest.DocTestParser()


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """In a folder of its own, on one thread, from one seed."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def documented():
    """Return every docstring with an example, by its place. Read from the source: what is decorated hides."""
    found = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                doc = ast.get_docstring(node) or ""
                if ">>>" in doc:
                    found[f"{path.stem}.{getattr(node, 'name', '')}"] = doc
    return found


DOCUMENTED = documented()


@pytest.mark.parametrize("place", DOCUMENTED)
def test_examples_run(place):
    said = io.StringIO()
    test = PARSER.get_doctest(DOCUMENTED[place], {}, place, None, 0)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.write)
    assert not said.getvalue(), said.getvalue()


@pytest.mark.parametrize("name", secateur.PUBLIC)
def test_every_public_name_has_an_example_that_is_run(name):
    examples = PARSER.get_examples(inspect.getdoc(getattr(secateur, name)))
    assert examples, f"{name} shows no example"
    assert not any(doctest.SKIP in example.options for example in examples)
    assert f"{secateur.PUBLIC[name].rpartition('.')[2]}.{name}" in DOCUMENTED
