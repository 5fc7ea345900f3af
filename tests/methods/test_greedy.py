"""Greedy pruning: the fast choices are the naive ones, and every goal is kept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from networks.searched import Net, images, made
from secateur.errors import BudgetError, CriterionError, ModelError, NonFiniteError, TargetError
from secateur.measure.macs import count_macs
from secateur.structure.surgery import mask_units
from secateur.task.classifying import judged


def test_the_model_given_stays_and_scores_are_those_of_the_small_one():
    model, data = made(Net), images()
    before = copy.deepcopy(model.state_dict())
    small, run = sc.prune_greedily(model, data[0][0][:2], data, sparsity=0.5, method=sc.Greedy(every=4))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert model.training
    right, loss = judged(small.eval()(data[0][0]), data[0][1])
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
    assert float(judged(small(data[0][0]), data[0][1])[0].mean()) >= 0.8
    assert all(score >= 0.8 for _, score, _ in run.stages)


def test_units_that_kept_the_score_go_although_the_next_would_lose_it():
    model, data = made(Net), images()
    with torch.no_grad():
        data = [(data[0][0], model.eval()(data[0][0]).argmax(1))]
    small, run = sc.prune_greedily(model, data[0][0][:2], data, score=0.8, method=sc.Greedy(every=1000))
    assert len(run.removals) > 1
    assert len(run.stages) == 1
    assert all(one.score >= 0.8 for one in run.removals)
    assert float(judged(small(data[0][0]), data[0][1])[0].mean()) == run.removals[-1].score


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


def test_labels_that_are_no_classes_are_one_clear_error():
    with pytest.raises(ModelError, match=r"no classification: .* judge="):
        sc.prune_greedily(made(Net), images(2)[0][0], [(images(4)[0][0], torch.zeros(4, 3))], sparsity=0.5)


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


def test_by_reconstruction_repeated_units_go_and_the_readers_are_refitted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = 2 * net[0].weight[:4], 2 * net[0].bias[:4]
    x = torch.randn(128, 8)
    method = sc.Greedy(criterion="reconstruction", every=2)
    small, run = sc.prune_greedily(net, x[:2], [x], parameters=0.6, method=method)
    assert sorted(one.unit % 4 for one in run.removals) == [0, 1, 2, 3]
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=0.02)
    by_change = sc.Greedy(criterion="output", every=2)
    other, _ = sc.prune_greedily(net, x[:2], [x], parameters=0.6, method=by_change)
    assert (small(x) - net(x)).square().sum() < 0.01 * (other(x) - net(x)).square().sum()
