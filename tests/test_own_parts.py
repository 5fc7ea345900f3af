"""Five parts of a user's own in one story: a criterion, a budget of units, operators, a layer class, a recipe
step. All of it is written with public names, runs in Python and in a recipe, and goes through compact, refit
and export."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.experiments.recipe import load_recipe
from secateur.experiments.results import read_results
from secateur.experiments.study import run_study

PARTS = '''\
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import secateur as sc
from secateur.experiments.steps.base import Step


@torch.library.custom_op("NAME::gate", mutates_args=())
def gate(self: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(self)


@torch.library.custom_op("NAME::mix", mutates_args=())
def mix(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(input, weight, bias)


gate.register_fake(lambda self: torch.empty_like(self))
mix.register_fake(lambda input, weight, bias: input.new_empty(*input.shape[:-1], len(weight)))


def gate_backward(ctx, gradient):
    (x,) = ctx.saved_tensors
    s = torch.sigmoid(x)
    return gradient * s * (1 + x * (1 - s))


def mix_backward(ctx, gradient):
    x, weight = ctx.saved_tensors
    return gradient @ weight, gradient.T @ x, gradient.sum(0)


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


gate.register_autograd(gate_backward, setup_context=keep)
mix.register_autograd(mix_backward, setup_context=keep)


class Dense(nn.Module):
    """A layer whose matrix lies as (inputs, units), with a size of its own."""

    def __init__(self, inputs, units):
        super().__init__()
        self.units = units
        self.kernel = nn.Parameter(torch.randn(inputs, units) / inputs**0.5)
        self.shift = nn.Parameter(torch.zeros(units))

    def forward(self, x):
        return (x @ self.kernel + self.shift).reshape(-1, self.units)


class Net(nn.Module):
    def __init__(self, hidden=24):
        super().__init__()
        self.a, self.b = Dense(64, hidden), nn.Linear(hidden, 16)
        self.c = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.ops.NAME.gate(self.a(x.flatten(1)))
        x = torch.ops.NAME.mix(x, self.b.weight, self.b.bias)
        return self.c(x.relu())


def net(hidden=24):
    sc.register_layer(Dense, weight="kernel", bias="shift", output_dim=1, input_dim=0, sizes={"units": 1})
    sc.register_operator(torch.ops.NAME.gate, like=torch.ops.aten.silu)
    sc.register_operator(torch.ops.NAME.mix, like=torch.ops.aten.linear)
    return Net(hidden)


@dataclass(frozen=True)
class Incoming:
    """The largest incoming weight of a unit."""

    counts_units: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    def __call__(self, structure, data=None, loss=None):
        weights = dict(structure.model.named_parameters())
        found = {}
        for name, group in structure.groups.items():
            part = next(p for p in group.slices if not p.reads and weights[p.name].dim() > 1)
            sizes = weights[part.name].detach().abs().amax(1 - part.dim)
            found[name] = sizes[torch.from_numpy(part.indices[:, 0])]
        return found


@dataclass(frozen=True)
class Most:
    """All but ``left`` units of each group."""

    left: int = 6

    def __call__(self, scores, weights):
        shares = {name: 1 - self.left / one.numel for name, one in scores.items()}
        return {
            name: sc.Uniform(share)({name: scores[name]}, {name: weights[name]})[name]
            for name, share in shares.items()
        }


class Note(Step):
    """Write down how many parameters there are."""

    word: str = "parameters"

    def run(self, work, id):
        number = sum(p.numel() for p in work.state.model.parameters())
        work.state.notes[id] = [f"{number} {self.word}"]
'''
RECIPE = """\
name: own
data: {name: digits, validation: 200}
model: {name: "NAME:net", hidden: 24}
train: {epochs: 6, lr: 5.0e-3, batch_size: 64}
measure: []
seeds: [0]
steps:
  - prune: {units: true, criterion: "NAME:Incoming", budget: {name: "NAME:Most", left: 6}}
  - refit: {calibration: 200}
  - compact:
  - NAME:Note: {word: left}
  - retrain: {epochs: 1}
"""


@pytest.fixture
def parts(tmp_path, monkeypatch, request):
    """The module with the five parts, under a name of its own: libraries are defined once a process."""
    name = f"own_parts_{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(PARTS.replace("NAME", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module(name)
    yield module
    sc.forget_layer(module.Dense)
    for operator in ("gate", "mix"):
        sc.forget_operator(f"{name}::{operator}")
    sys.modules.pop(name)


@torch.no_grad()
def test_in_python(parts, tmp_path):
    torch.manual_seed(0)
    model, x = parts.net(), torch.randn(256, 1, 8, 8)
    assert {"a.kernel", "b.weight", "c.weight"} <= set(sc.find_targets(model))
    dense, structure = copy.deepcopy(model), sc.trace(model, x)
    masks = sc.prune(model, parts.Incoming(), parts.Most(6), structure=structure)
    assert {kept for kept, _ in masks.units.values()} == {6}
    masked = model(x)
    refit = sc.reconstruct(model, dense, structure, [x])
    assert all(after <= before for before, after in refit.layers.values())
    assert float((model(x) - dense(x)).square().mean()) < float((masked - dense(x)).square().mean())
    small, proof = sc.compact(model, x, masks=masks)
    assert proof.max_error < 1e-9
    assert (small.a.kernel.shape, small.a.units, small.b.weight.shape) == ((64, 6), 6, (6, 6))
    sc.save(small, tmp_path / "small.safetensors")
    again = sc.load(parts.net(), tmp_path / "small.safetensors")
    assert torch.equal(again(x), small(x))


@torch.no_grad()
def test_exported_a_registered_operator_runs_with_numpy_alone(parts, tmp_path):
    torch.manual_seed(0)
    model, x = parts.net().eval(), torch.randn(4, 1, 8, 8)
    sc.write_folder(model, x, tmp_path / "net")
    np.save(tmp_path / "x.npy", x.numpy())
    command = [sys.executable, "net/run.py", "--input", "x.npy", "--output", "y.npy"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert np.allclose(np.load(tmp_path / "y.npy"), model(x).numpy(), atol=1e-5)


def test_in_a_recipe(parts, tmp_path):
    (tmp_path / "own.yaml").write_text(RECIPE.replace("NAME", parts.__name__))
    run_study(load_recipe("own.yaml"), out=tmp_path / "out")
    (trial,) = read_results(tmp_path / "out")["trials"]
    assert trial["state"] == "finished", trial["notes"]
    left = 64 * 6 + 6 + 6 * 6 + 6 + 6 * 10 + 10
    assert f"{left} left" in trial["notes"]
    assert trial["metrics"]["parameters"] == left
    assert trial["metrics"]["score_retrained"] > 0.5
