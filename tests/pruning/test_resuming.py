"""Schedules that were interrupted go on exactly, and none begins on a network that is past its first step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import secateur as sc
from networks.toy import X, Y, hooks, step
from secateur.errors import BudgetError, MaskError, StorageError

DATA = [(X, Y)]
WAYS = {
    "magnitude": (sc.Magnitude(), {}),
    "taylor": (sc.Taylor(), {"data": DATA, "loss": nn.functional.mse_loss}),
    "random": (sc.Random(1), {}),
}


def start(
    mlp, way: str, units: bool = False, saved: Any = None
) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    net = mlp()
    criterion, options = WAYS[way]
    if units:
        options = {**options, "structure": sc.trace(net, X)}
    if saved is not None:  # the weights first, and the state on entry
        net.load_state_dict(saved["net"])
        options = {**options, "state": saved["pruning"]}
    optimizer = Adam(net.parameters(), lr=0.02)
    return (
        net,
        optimizer,
        sc.during(optimizer, net, criterion, sc.Global(0.75), sc.Cubic(4), every=3, **options),
    )


@pytest.mark.parametrize("units", [False, True], ids=["weights", "units"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [1, 3, 5, 9, 11])
@pytest.mark.parametrize("on_entry", [False, True], ids=["loaded inside", "given on entry"])
def test_a_state_goes_on_exactly(mlp, way, stop, units, on_entry, tmp_path):
    net, optimizer, pruning = start(mlp, way, units)
    with pruning as whole:
        for number in range(12):
            if number == stop:
                torch.save(
                    {
                        "net": net.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "pruning": whole.state_dict(),
                    },
                    tmp_path / "checkpoint",
                )
            step(net, optimizer)
    state = torch.load(tmp_path / "checkpoint", weights_only=True)
    again, optimizer, pruning = start(mlp, way, units, state if on_entry else None)
    with pruning as resumed:
        optimizer.load_state_dict(state["optimizer"])
        if not on_entry:
            again.load_state_dict(state["net"])
            resumed.load_state_dict(state["pruning"])
        assert resumed.steps == stop
        for _ in range(12 - stop):
            step(again, optimizer)
    assert (resumed.level, resumed.steps) == (whole.level, whole.steps) == (4, 12)
    assert resumed.masks == whole.masks
    assert repr(resumed.masks) == repr(whole.masks)
    assert all(map(torch.equal, again.parameters(), net.parameters()))


def test_states_of_other_schedules_are_refused(mlp):
    net, optimizer, pruning = start(mlp, "magnitude")
    with pruning as state:
        good = state.state_dict()
        step(net, optimizer)
        before = (state.level, state.steps, copy.deepcopy(state.masks))
        for change, kind, message in (
            (
                {"levels": 9},
                BudgetError,
                r"is of step 1 of 9, one every 3 .*; this schedule has 4, one every 3",
            ),
            ({"every": 5}, BudgetError, "one every 5 optimizer steps"),
            ({"level": 0}, BudgetError, "is of step 0 of 4"),
            ({"level": 5}, BudgetError, "is of step 5 of 4"),
            ({"level": True}, StorageError, "the state is not one of during"),
            ({"steps": -1}, StorageError, "the state is not one of during"),
            ({"steps": 1.5}, StorageError, "the state is not one of during"),
            ({"masks": {}}, StorageError, "the state is not one of masks"),
            (
                {"masks": sc.prune(nn.Linear(3, 3), sc.Magnitude(), sc.Uniform(0.5)).state_dict()},
                MaskError,
                "no parameter 'weight'",
            ),
        ):
            with pytest.raises(kind, match=message):
                state.load_state_dict({**good, **change})
            assert (state.level, state.steps, state.masks) == before
        with pytest.raises(StorageError, match="the state is not one of during"):
            state.load_state_dict(None)  # type: ignore[arg-type]
        for _ in range(9):
            step(net, optimizer)
    assert hooks(optimizer) == 0


pytestmark = pytest.mark.filterwarnings("ignore:.*is emptied")

# -- past the first step ----------------------------------------------------------------------------------


def sparse(mlp, share: float) -> nn.Sequential:
    net = mlp()
    sc.prune(net, sc.Magnitude(), sc.Global(share))
    return net


def entered(net: nn.Module, budget: Any, schedule: Any, **options: Any) -> None:
    for masks in sc.gradually(net, sc.Magnitude(), budget, schedule, **options):
        masks.check()


def entered_during(net: nn.Module, budget: Any, schedule: Any, **options: Any) -> None:
    optimizer = SGD(net.parameters(), lr=0.1)
    with sc.during(optimizer, net, sc.Magnitude(), budget, schedule, every=1, **options):
        for _ in range(schedule.steps):
            step(net, optimizer)


@pytest.mark.parametrize("enter", [entered, entered_during])
@pytest.mark.parametrize("schedule", [sc.Cubic(5), sc.Iterative(5)])
def test_a_network_that_is_sparser_than_the_first_step(mlp, enter, schedule):
    way = schedule(0.9)
    for number in range(2, 5):
        net = sparse(mlp, way[number - 1])
        before = [p.clone() for p in net.parameters()]
        with pytest.raises(
            BudgetError,
            match=rf"Sequential is already .*% sparse, more than .*: go on with start={number} and masks= "
            rf"those of step {number - 1} .*, or begin the schedule there, initial=0\.",
        ):
            enter(net, sc.Global(0.9), schedule)
        assert all(map(torch.equal, before, net.parameters()))
    enter(sparse(mlp, way[0]), sc.Global(0.9), schedule)  # as sparse as the first step itself
    begun = type(schedule)(5, initial=way[2])
    enter(sparse(mlp, way[2]), sc.Global(0.9), begun)


@pytest.mark.parametrize("enter", [entered, entered_during])
def test_masks_that_are_sparser_than_the_first_step(mlp, enter):
    net = mlp()
    masks = sc.prune(mlp(), sc.Magnitude(), sc.Global(0.8))
    with pytest.raises(
        BudgetError, match=r"already 80\.\d+% sparse.*: go on with start=2 and masks= those of"
    ):
        enter(net, sc.Global(0.9), sc.Cubic(5), masks=masks)
    assert sc.sparsity(net) == 0
    masks = sc.prune(mlp(), sc.Magnitude(), sc.Global(0.2))
    enter(net, sc.Global(0.9), sc.Cubic(5), masks=masks)


def test_layers_units_and_parameters_are_counted_as_the_budget_counts_them(mlp):
    net = mlp()
    sc.prune(net, sc.Magnitude(), sc.Uniform(0.9), include="2")
    shares = sc.PerLayer({"0": 0.5, "2": 0.95})
    with pytest.raises(BudgetError, match=r"^2 is already 90\.\d+% sparse, more than the .*start=3 "):
        entered(net, shares, sc.Cubic(5))
    entered(net, sc.PerLayer({"0": 0.5}), sc.Cubic(5), include="0")

    net = mlp()
    structure = sc.trace(net, X)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    for budget, number in ((sc.Uniform(0.8), 1), (sc.ParameterShare(0.8), 1)):
        with pytest.raises(BudgetError, match=rf"go on with start={number} "):
            entered(net, budget, sc.Cubic(6), structure=structure)


def test_one_shot_and_budgets_of_values_begin_anywhere(mlp):
    entered(sparse(mlp, 0.8), sc.Global(0.5), sc.OneShot())
    entered(sparse(mlp, 0.8), sc.Threshold(0.5), sc.Iterative(3))
