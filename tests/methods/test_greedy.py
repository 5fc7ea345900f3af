"""Greedy pruning: the fast choices are the naive ones, and every goal is kept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, CriterionError, ModelError, NonFiniteError, TargetError
from secateur.graph.compare import difference
from secateur.measure.macs import count_macs
from secateur.methods.ablation import Ablation, masked_outputs
from secateur.methods.tries import classified
from secateur.structure.surgery import mask_units


class Net(nn.Module):
    """Two convs with norms, a pool and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 7, 3, stride=2)
        self.fc1 = nn.Linear(7 * 4, 9)
        self.fc2 = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        x = torch.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


class Residual(nn.Module):
    """A stream that two blocks read and write, one with squeeze and excitation and a depthwise conv."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.b1, self.deep = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Linear(8, 3), nn.Linear(3, 8)
        self.b2 = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.a2(self.a1(x).relu())
        y = self.deep(self.b1(x.relu())).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        x = x + self.b2(y)
        return self.head(x.relu().mean((2, 3)))


class Views(nn.Module):
    """Sizes of the batch in views, a token dim, and layer norms inside the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 11), nn.Linear(11, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        x = self.embed(x)
        y = self.up(self.norm(x).view(batch * length, 8)).relu()
        x = x + self.down(y).view(batch, length, 8)
        return self.head(x.mean(1))


def images(number: int = 60, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 2, 11, 11, generator=generator)
    return [(x, torch.randint(0, 4, (number,), generator=generator))]


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = kind()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


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
                right, loss = classified(outputs, labels)
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


def test_the_model_given_stays_and_scores_are_those_of_the_small_one():
    model, data = made(Net), images()
    before = copy.deepcopy(model.state_dict())
    small, run = sc.prune_greedily(model, data[0][0][:2], data, sparsity=0.5, method=sc.Greedy(every=4))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert model.training
    right, loss = classified(small.eval()(data[0][0]), data[0][1])
    number, score, reached = run.stages[-1]
    assert number == len(run.removals)
    assert score == pytest.approx(float(right.mean()))
    assert reached == pytest.approx(float(loss.mean()), rel=1e-5)
    assert run.removals[-1].score == pytest.approx(score)
    assert sc.sparsity(small, model) >= 0.5


@pytest.mark.parametrize("goal", [{"macs": 0.5}, {"latency_ms": 60_000.0}, {"parameters": 0.5}])
def test_goals(goal: dict[str, float]):
    model, data = made(Net), images(20)
    small, run = sc.prune_greedily(model, data[0][0][:2], data, method=sc.Greedy(every=5), **goal)
    if "macs" in goal:
        macs = [count_macs(m, data[0][0][:2]).dense for m in (small, model)]
        assert macs[0] <= 0.5 * macs[1]
    if "latency_ms" in goal:
        assert not run.removals  # it is there already


def test_macs_are_dense_ones_whatever_is_zero_already():
    """Half of the weights are zero: of effective multiply-adds fewer are left than the goal at the start."""
    model, data = made(Net), images(20)
    sc.prune(model, sc.Magnitude(), sc.Uniform(0.5))
    x = data[0][0][:2]
    small, run = sc.prune_greedily(model, x, data, macs=0.6, method=sc.Greedy(every=5))
    dense, left = (count_macs(m, x).dense for m in (model, small))
    assert run.removals
    assert left <= 0.6 * dense
    assert run.macs == (dense, left)
    by_constraint, _ = sc.prune_to(model, x, macs=0.6)
    assert count_macs(by_constraint, x).dense <= 0.6 * dense


@pytest.mark.parametrize("every", [1, 7])
def test_the_goal_of_macs_is_met_to_a_unit_before_anything_is_cut(every: int):
    model, data = made(Net), images(20)
    x = data[0][0][:2]
    small, run = sc.prune_greedily(model, x, data, macs=0.5, method=sc.Greedy(every=every))
    assert count_macs(small, x).dense <= 0.5 * count_macs(model, x).dense
    work = copy.deepcopy(model).eval()
    structure = sc.trace(work, x)
    pruned = {name: np.zeros(len(group), dtype=bool) for name, group in structure.groups.items()}
    for one in run.removals[:-1]:
        pruned[one.group][one.unit] = True
    mask_units(work, structure, pruned)
    less, _ = sc.compact(work, x)
    assert count_macs(less, x).dense > 0.5 * count_macs(model, x).dense


@pytest.mark.parametrize("name", ["macs", "parameters"])
def test_all_may_be_left(name: str):
    model, data = made(Net), images(4)
    _, run = sc.prune_greedily(model, data[0][0], data, **{name: 1.0})
    assert not run.removals
    assert sc.prune_to(model, data[0][0], **{name: 1.0})[1].removed == {}
    for share in (0.0, 1.01):
        with pytest.raises(BudgetError, match=f"{name} is {share}; it is a share"):
            sc.prune_greedily(model, data[0][0], data, **{name: share})
        with pytest.raises(BudgetError, match=f"{name} is {share}; it is a share"):
            sc.prune_to(model, data[0][0], **{name: share})


def test_every_stage_is_proved():
    model, data = made(Net), images(20)
    small, run = sc.prune_greedily(model, data[0][0][:2], data, parameters=0.5, method=sc.Greedy(every=4))
    assert len(run.proofs) == len(run.stages) > 1
    assert run.proofs[0].parameters[0] == run.parameters[0] == sum(p.numel() for p in model.parameters())
    assert run.proofs[-1].parameters[1] == run.parameters[1] == sum(p.numel() for p in small.parameters())
    assert all(proof.max_error < 1e-9 for proof in run.proofs)


def test_example_inputs_may_have_keywords():
    class Scaled(Net):
        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            return super().forward(x * scale)

    model, data = made(Scaled), images(8)
    _, run = sc.prune_greedily(model, data[0][0][:2], data, parameters=0.9, kwargs={"scale": 2.0})
    assert run.removals
    with pytest.raises(BudgetError, match="latency_ms is measured on example_inputs alone"):
        sc.prune_greedily(model, data[0][0][:2], data, latency_ms=1.0, kwargs={"scale": 2.0})


def test_a_score_to_keep_ends_the_run_before_it_is_lost():
    model, data = made(Net), images()
    with torch.no_grad():  # labels that the network itself gives: it starts at 1.0
        data = [(data[0][0], model.eval()(data[0][0]).argmax(1))]
    small, run = sc.prune_greedily(model, data[0][0][:2], data, score=0.8, method=sc.Greedy(every=2))
    assert run.removals
    assert float(classified(small(data[0][0]), data[0][1])[0].mean()) >= 0.8
    assert all(score >= 0.8 for _, score, _ in run.stages)


def test_units_that_kept_the_score_go_although_the_next_would_lose_it():
    model, data = made(Net), images()
    with torch.no_grad():
        data = [(data[0][0], model.eval()(data[0][0]).argmax(1))]
    small, run = sc.prune_greedily(model, data[0][0][:2], data, score=0.8, method=sc.Greedy(every=1000))
    assert len(run.removals) > 1
    assert len(run.stages) == 1
    assert all(one.score >= 0.8 for one in run.removals)
    assert float(classified(small(data[0][0]), data[0][1])[0].mean()) == run.removals[-1].score


def test_a_group_down_to_one_unit_is_left_alone():
    model, data = made(Net), images(20)
    with pytest.raises(BudgetError, match="cannot be met"):
        sc.prune_greedily(
            model, data[0][0][:2], data, parameters=0.05, method=sc.Greedy(every=3), include="fc1"
        )


def test_an_error_names_the_goal_that_was_given():
    model, data = made(Net), images(20)
    with pytest.raises(BudgetError, match=r"sparsity=0\.99 cannot be met: with 1 units left"):
        sc.prune_greedily(model, data[0][0][:2], data, sparsity=0.99, include="fc1")


def test_fine_tuning_gets_the_small_network_after_every_so_many_removals():
    model, data, sizes = made(Net), images(20), []

    def fine_tune(small: nn.Module) -> None:
        sizes.append(sum(p.numel() for p in small.parameters()))
        with torch.no_grad():
            small.fc2.bias.add_(1.0)

    small, run = sc.prune_greedily(
        model, data[0][0][:2], data, parameters=0.4, method=sc.Greedy(every=3), fine_tune=fine_tune
    )
    assert sizes == sorted(sizes, reverse=True)
    assert [n for n, _, _ in run.stages][:-1] == list(range(3, 3 * len(sizes), 3))
    assert torch.allclose(small.fc2.bias, model.fc2.bias + len(sizes))


def test_a_run_goes_on_from_a_stage_to_the_same_end():
    model, data, stages = made(Net), images(30), []
    settings = {"parameters": 0.3, "method": sc.Greedy(every=3)}
    whole, _ = sc.prune_greedily(
        model, data[0][0][:2], data, on_stage=lambda m: stages.append(copy.deepcopy(m)), **settings
    )
    again, _ = sc.prune_greedily(stages[1], data[0][0][:2], data, dense=model, **settings)
    assert len(stages) > 3
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


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


def test_at_once_min_kept_include():
    model, data = made(Net), images(20)
    method = sc.Greedy(scope="network", at_once=2, every=2, min_kept=3)
    with pytest.raises(BudgetError, match="cannot be met: with 3 units left"):
        sc.prune_greedily(model, data[0][0][:2], data, parameters=0.01, method=method)
    _, run = sc.prune_greedily(model, data[0][0][:2], data, sparsity=0.2, method=method, include="fc1")
    assert {r.group for r in run.removals} == {"fc1 -> fc2"}
    assert len(run.removals) % 2 == 0


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({}, BudgetError, "exactly one of sparsity, parameters, macs, latency_ms and score; got none"),
        ({"sparsity": 0.5, "macs": 0.5}, BudgetError, "got sparsity and macs"),
        ({"sparsity": 1.5}, BudgetError, "between 0 and 1"),
        ({"macs": "half"}, BudgetError, "it is a number"),
        ({"latency_ms": -1.0}, BudgetError, "positive number of milliseconds"),
        ({"sparsity": 0.5, "include": "nothing"}, TargetError, "matches no group"),
        ({"sparsity": 0.5, "judge": lambda o, t: (o.mean(), o.mean())}, CriterionError, "one for each"),
        ({"sparsity": 0.5, "judge": lambda o, t: (o[:, 0], o[:, 0] / 0)}, NonFiniteError, "not a finite"),
    ],
)
def test_bad_input_is_one_clear_error(settings: dict[str, Any], error: type[Exception], says: str):
    data = images(12)
    with pytest.raises(error, match=says):
        sc.prune_greedily(made(Net), data[0][0][:2], data, **settings)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([images(4)[0][0]], r"batches of \(inputs, labels\)"),
        ([(images(4)[0][0], torch.zeros(4, 3))], "no classification; pass judge="),
        ([], "without a single batch"),
        ([(images(4)[0][0], torch.zeros(3).long())], r"\[3, 4\] inputs and labels; a label for each input"),
        (
            [(images(4)[0][0], torch.zeros(4).long()), (torch.zeros(4, 7), torch.zeros(4).long())],
            "cannot be joined",
        ),
    ],
)
def test_bad_data_is_one_clear_error(data: Any, says: str):
    with pytest.raises(CriterionError, match=says):
        sc.prune_greedily(made(Net), images(2)[0][0], data, sparsity=0.5)


def test_data_of_another_shape_is_one_clear_error():
    with pytest.raises(ModelError, match="Net does not run on the data"):
        sc.prune_greedily(
            made(Net), images(2)[0][0], [(torch.zeros(4, 7), torch.zeros(4).long())], sparsity=0.5
        )


@pytest.mark.parametrize(
    "settings", [{"criterion": "best"}, {"scope": "all"}, {"every": 0}, {"at_once": 1.5}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises(BudgetError, match=next(iter(settings))):
        sc.Greedy(**settings)


class Auxiliary(nn.Module):
    """A head that only training runs reads ``a``'s units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.aux = (nn.Linear(*s) for s in ((4, 6), (6, 8), (8, 3), (6, 3)))

    def forward(self, x):
        h = self.a(x).relu()
        y = self.c(self.b(h).relu())
        return (y, self.aux(h)) if self.training else y


def test_a_group_that_a_forward_keeps_is_not_tried_for_ever():
    torch.manual_seed(0)
    net, x = Auxiliary(), torch.randn(30, 4)
    small, run = sc.prune_greedily(net, x[:2], [(x, torch.arange(30) % 3)], parameters=0.7)
    assert "breaks the training forward" in run.kept["a -> b"]
    assert {one.group for one in run.removals} == {"b -> c"}
    assert small.a.out_features == 6
    assert "kept a -> b" in repr(run)
    assert small.train()(x)[1].shape == (30, 3)
