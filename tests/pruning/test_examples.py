"""The examples in docstrings run."""

import doctest
import importlib

import pytest
import torch

MODULES = [
    *(f"pruning.{name}" for name in ("gradual", "masks", "prune", "sharing")),
    *(
        f"methods.{name}"
        for name in (
            "annealing",
            "branch_annealing",
            "constraints",
            "goals",
            "greedy",
            "network_slimming",
            "structure_selection",
        )
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(f"secateur.{name}"))
    assert found.attempted
    assert not found.failed
