"""Greedy pruning: the fast choices are the naive ones, whatever the network is made of."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from networks.searched import Net, Residual, Views, images, made
from secateur.graph.compare import difference
from secateur.methods.ablation import Ablation, masked_outputs
from secateur.structure.surgery import mask_units
from secateur.task.classifying import judged


def naive_choices(model: nn.Module, data: Any, number: int, scope: str) -> list[tuple[str, int]]:
    """Mask each unit, evaluate, keep the best: nothing clever."""
    work = copy.deepcopy(model).eval()
    structure = sc.trace(work, data[0][0][:2])
    inputs, labels = data[0]
    gone: dict[str, list[int]] = {name: [] for name in structure.groups}
    order = []
    for _ in range(number):
        tried = []
        names = [n for n, g in structure.groups.items() if len(g) - len(gone[n]) > 1]
        if scope == "layer":
            names = [max(names, key=lambda n: 1 - len(gone[n]) / len(structure.groups[n]))]
        for name in names:
            for unit in range(len(structure.groups[name])):
                if unit in gone[name]:
                    continue
                outputs = masked_outputs(work, structure, name, unit, ((inputs,), {}))
                right, loss = judged(outputs, labels)
                tried.append((-float(right.mean()), float(loss.double().mean()), len(tried), name, unit))
        _, _, _, name, unit = min(tried)
        gone[name].append(unit)
        order.append((name, unit))
        doomed = {name: np.isin(np.arange(len(structure.groups[name])), [unit])}
        mask_units(work, structure, doomed)
    return order


@pytest.mark.parametrize("memory", [1, 2**14, 2**25])
@pytest.mark.parametrize("kind", [Net, Residual])
def test_outputs_without_a_unit_are_those_of_the_masked_network(kind: type[nn.Module], memory: int):
    model, ((x, _),) = made(kind).double().eval(), images(10)
    x = x.double()
    structure = sc.trace(model, x[:2])
    ablation = Ablation(model, structure, ((x,), {}), memory)
    assert not ablation.slow
    units = {name: np.arange(len(group)) for name, group in structure.groups.items()}
    seen: dict[str, list[int]] = {name: [] for name in units}
    for name, some, stacked in ablation.outputs(((x,), {}), units):
        for row, unit in zip(stacked, some, strict=True):
            wanted = masked_outputs(model, structure, name, int(unit), ((x,), {}))
            assert difference(wanted, row) < 1e-12
            seen[name].append(int(unit))
    assert seen == {name: list(range(len(group))) for name, group in structure.groups.items()}


def test_views_that_spell_out_the_batch_go_the_fast_way_too():
    model = made(Views).double().eval()
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    structure = sc.trace(model, x[:2])
    ablation = Ablation(model, structure, ((x,), {}), 2**20)
    assert not ablation.slow
    units = {name: np.arange(len(group)) for name, group in structure.groups.items()}
    for name, some, stacked in ablation.outputs(((x,), {}), units):
        for row, unit in zip(stacked, some, strict=True):
            assert difference(masked_outputs(model, structure, name, int(unit), ((x,), {})), row) < 1e-12


def test_data_with_other_inputs_than_the_example_go_the_slow_way():
    class Noted(nn.Sequential):
        def forward(self, x, note=None):
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Noted(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(20, 5)
    data = [({"x": x, "note": x}, torch.randint(0, 3, (20,)))]
    plain, _ = sc.prune_greedily(model, x[:2], [(x, data[0][1])], parameters=0.5)
    small, run = sc.prune_greedily(model, x[:2], data, parameters=0.5)
    assert "other inputs" in run.slow["0 -> 2"]
    assert torch.equal(plain(x), small(x))


def test_a_network_that_mixes_its_batch_goes_the_slow_way_and_says_so():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x).relu())
            return h - h.mean(0)

    model = made(Mixed).eval()
    x = torch.randn(8, 5)
    structure = sc.trace(model, x)
    ablation = Ablation(model, structure, ((x,), {}), 2**20)
    assert list(ablation.slow) == list(structure.groups)
    assert "masked network" in next(iter(ablation.slow.values()))
    ((name, _, out), *_) = list(ablation.outputs(((x,), {}), {next(iter(structure.groups)): np.array([2])}))
    assert difference(masked_outputs(model, structure, name, 2, ((x,), {})), out[0]) == 0


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize("kind", [Net, Residual])
def test_choices_are_the_naive_ones(kind: type[nn.Module], scope: str):
    model, data = made(kind).eval(), images()
    small, run = sc.prune_greedily(
        model, data[0][0][:2], data, parameters=0.35, method=sc.Greedy(scope=scope, every=1000, batch_size=25)
    )
    found = [(one.group, one.unit) for one in run.removals]
    assert len(found) > 6
    assert found == naive_choices(model, data, len(found), scope)
    assert sum(p.numel() for p in small.parameters()) <= 0.35 * sum(p.numel() for p in model.parameters())


def test_compacting_between_removals_changes_no_choice():
    model, data = made(Net).eval(), images()
    runs = [
        sc.prune_greedily(
            model, data[0][0][:2], data, parameters=0.3, method=sc.Greedy(every=every, batch_size=60)
        )
        for every in (1000, 3)
    ]
    assert [(r.group, r.unit) for r in runs[0][1].removals] == [
        (r.group, r.unit) for r in runs[1][1].removals
    ]
    x = data[0][0]
    assert difference(runs[0][0](x), runs[1][0](x)) < 1e-5


def test_the_change_of_outputs_in_closed_form():
    """Three units read by one output: y = 1 a + 2 b - 2 c, with a, b, c as given; b and c nearly cancel."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, -2.0]]))
    x = torch.tensor([[1.0, 1.0, 1.1], [1.0, -1.0, -1.0]])
    _, run = sc.prune_greedily(model, x, [x], parameters=0.4, method=sc.Greedy(criterion="output", every=10))
    # y = (0.8, 1): squares 1.64. Alone: a 2, b 8, c 8.84. After a: with b, (1+2, 1-2) = 10; with c,
    # (1-2.2, 1+2) = 10.44.
    assert [r.unit for r in run.removals] == [0, 1]
    assert [r.loss for r in run.removals] == pytest.approx([2 / 1.64, 10 / 1.64])
    assert all(r.score is None for r in run.removals)


def test_the_output_criterion_keeps_what_the_next_layer_reads():
    model, data = made(Net), images()
    with torch.no_grad():
        model.conv2.weight[:, [1, 4]] *= 1e-4
    _, run = sc.prune_greedily(
        model,
        data[0][0][:2],
        [data[0][0]],
        sparsity=0.2,
        method=sc.Greedy(criterion="output"),
        include="conv1",
    )
    assert {r.unit for r in run.removals[:2]} == {1, 4}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_state_that_begins_with_zeros_is_as_wide_as_the_stack(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.recurrent = nn.Embedding(30, 12), kind(12, 16, batch_first=True)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.recurrent(self.embed(x))[0][:, -1])

    torch.manual_seed(0)
    model, x = Recurrent().double().eval(), torch.randint(0, 30, (4, 7))
    structure = sc.trace(model, x)
    ablation = Ablation(model, structure, ((x,), {}), 2**20)
    assert not any(name.startswith("embed") for name in ablation.slow)
    units = {name: np.arange(len(group)) for name, group in structure.groups.items()}
    for name, some, stacked in ablation.outputs(((x,), {}), units):
        for row, unit in zip(stacked, some, strict=True):
            assert difference(masked_outputs(model, structure, name, int(unit), ((x,), {})), row) < 1e-12
    small, run = sc.prune_greedily(model, x, [(x, torch.randint(0, 4, (4,)))], parameters=0.7)
    assert run.proofs
    assert small(x).shape == (4, 4)
