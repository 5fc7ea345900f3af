"""Every public name shows an example, and all examples run: of docstrings, and of the page on your own parts."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import re
import sys
from pathlib import Path

import pytest
import torch

import secateur

ROOT = Path(__file__).parents[1]
PUBLIC = {name: value for name in secateur.PUBLIC if (value := getattr(secateur, name))}
# What is not public itself, and has examples all the same.
OTHERS = [("experiments.steps.base", "Step"), ("methods.goals", "goal_of"), ("pruning.prune", "check")]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """In a folder of its own, on one thread, from one seed."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def examples_of(thing, name):
    """Return the examples of a function, of a class and of its own public methods, each in a fresh namespace."""
    documented = {name: thing}
    if inspect.isclass(thing):
        own = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        documented |= {f"{name}.{key}": getattr(value, "__func__", value) for key, value in own.items()}
    parser = doctest.DocTestParser()
    docs = {key: inspect.getdoc(value) or "" for key, value in documented.items()}
    return [parser.get_doctest(doc, {}, key, None, 0) for key, doc in docs.items() if ">>>" in doc]


def run(tests):
    said = io.StringIO()
    for test in tests:
        runner = doctest.DocTestRunner()
        runner.run(test, out=said.write, clear_globs=False)
    assert not said.getvalue(), said.getvalue()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs(name):
    tests = examples_of(PUBLIC[name], name)
    assert [test for test in tests if test.name == name], f"{name} shows no example"
    assert not [test.name for test in tests for part in test.examples if doctest.SKIP in part.options]
    run(tests)


@pytest.mark.parametrize(("module", "name"), OTHERS)
def test_other_examples_run(module, name):
    tests = examples_of(getattr(importlib.import_module(f"secateur.{module}"), name), name)
    assert tests
    run(tests)
