"""Pruning along a schedule: resuming, and pruning from inside an optimizer's step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import secateur as sc
from networks.toy import hooks, loss_of, step, weights
from secateur.errors import BudgetError, MaskError, NonFiniteError, SecateurWarning, StorageError

# -- gradually ---------------------------------------------------------------------------------------


def train(net: nn.Module, optimizer: torch.optim.Optimizer, masks: sc.Masks, steps: int = 3) -> None:
    with masks.held(optimizer):
        for _ in range(steps):
            step(net, optimizer)


@pytest.mark.parametrize("budget", [sc.Global(0.9), sc.ERK(0.9), sc.LAMP(0.9), sc.Uniform(0.9)])
def test_gradually_reaches_each_amount_and_gives_nothing_back(mlp, budget):
    net = mlp()
    optimizer = Adam(net.parameters(), lr=0.02)
    schedule, before = sc.Cubic(5), None
    for amount, masks in zip(schedule(0.9), sc.gradually(net, sc.Magnitude(), budget, schedule), strict=True):
        if not isinstance(budget, sc.Uniform):
            assert sum(int((~m).count_nonzero()) for m in masks.values()) == round(amount * 192)
        assert before is None or all((before[n] | ~masks[n]).all() for n in masks)
        train(net, optimizer, masks)
        before = masks
    assert before is not None
    assert [row["kept"] for row in before.layers()] == (
        [13, 6] if isinstance(budget, sc.Uniform) else [row["kept"] for row in before.layers()]
    )
    assert sc.sparsity(net) == before.sparsity == pytest.approx(0.9, abs=0.003)


def test_gradually_remembers_what_is_masked_although_nobody_held_it(mlp):
    net, before = mlp(), None
    for masks in sc.gradually(net, sc.Magnitude(), sc.Global(0.9), sc.Cubic(4)):
        assert before is None or all((before[n] | ~masks[n]).all() for n in masks)
        with torch.no_grad():
            for p in net.parameters():
                p.normal_()
        before = masks


def test_gradually_validates_before_the_first_step(mlp):
    net = mlp()
    with pytest.raises(BudgetError, match=r"past the budget"):
        sc.gradually(net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3, initial=0.9))
    with pytest.raises(BudgetError, match=r"start is 3; the schedule has steps 0 to 2"):
        sc.gradually(net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3), start=3)
    with pytest.raises(BudgetError, match=r"resuming at step 2 needs masks=, those of step 1"):
        sc.gradually(net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3), start=2)
    assert sc.sparsity(net) == 0


def test_gradually_passes_options_on(mlp):
    steps = sc.gradually(
        mlp(), sc.Wanda(), sc.Uniform(0.5), sc.Iterative(2), data=[torch.randn(4, 8)], include="0"
    )
    assert [sorted(masks) for masks in steps] == [["0.weight"]] * 2


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_gradually_resumed_equals_uninterrupted(mlp, tmp_path, stop):
    def fresh() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        net = mlp()
        return net, Adam(net.parameters(), lr=0.02)

    arguments = (sc.Magnitude(), sc.Global(0.8), sc.Cubic(4))
    whole, optimizer = fresh()
    for masks in sc.gradually(whole, *arguments):
        train(whole, optimizer, masks)

    first, optimizer = fresh()
    for number, masks in enumerate(sc.gradually(first, *arguments), 1):
        train(first, optimizer, masks)
        if number == stop:
            masks.save(tmp_path / "masks")
            break
    second, again = fresh()
    second.load_state_dict(first.state_dict())
    again.load_state_dict(optimizer.state_dict())
    masks = sc.Masks.load(tmp_path / "masks", second)
    for masks in sc.gradually(second, *arguments, start=stop, masks=masks):  # noqa: B020
        train(second, again, masks)
    assert all(torch.equal(w, weights(whole)[n]) for n, w in weights(second).items())
    assert sc.sparsity(second) == pytest.approx(0.8, abs=0.003)


# -- during ------------------------------------------------------------------------------------------


def test_during_prunes_on_entry_and_every_k_steps(mlp):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    amounts = [round(a * 192) / 192 for a in sc.Cubic(4)(0.9)]
    seen = []
    with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.9), sc.Cubic(4), every=3) as state:
        for _ in range(12):
            seen.append(sc.sparsity(net))
            assert state.masks is not None
            state.masks.check()
            step(net, optimizer)
    assert seen == pytest.approx([a for a in amounts for _ in range(3)])
    assert (state.level, state.steps) == (4, 12)
    assert state.masks.sparsity == pytest.approx(amounts[-1])
    assert hooks(optimizer) == 0


def test_during_counts_steps_of_the_optimizer_not_skipped_ones(mlp):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.8), sc.Cubic(2), every=2) as state:
        for overflow in (False, True, True, False):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            if overflow:
                net[2].weight.grad.fill_(torch.inf)
            assert state.level == 1
            scaler.step(optimizer)
            scaler.update()
    assert (state.level, state.steps) == (2, 2)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7, 9])
def test_during_resumed_equals_uninterrupted(mlp, tmp_path, stop):
    """At any step: in the middle of a level, just after one, and past the last."""

    def options(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
        return optimizer, net, sc.Magnitude(), sc.Global(0.9), sc.Cubic(3)

    whole = mlp()
    optimizer = Adam(whole.parameters(), lr=0.02)
    with sc.during(*options(whole, optimizer), every=3):
        for _ in range(10):
            step(whole, optimizer)

    first = mlp()
    optimizer = Adam(first.parameters(), lr=0.02)
    block = sc.during(*options(first, optimizer), every=3)
    state = block.__enter__()
    for _ in range(stop):
        step(first, optimizer)
    state.masks.save(tmp_path / "masks")

    second = mlp()
    second.load_state_dict(first.state_dict())
    again = Adam(second.parameters(), lr=0.02)
    again.load_state_dict(optimizer.state_dict())
    masks = sc.Masks.load(tmp_path / "masks", second)
    with torch.no_grad():
        second[0].weight += ~masks["0.weight"]  # weights from elsewhere: they are masked on entry
    with sc.during(
        *options(second, again), every=3, start=state.level, steps=state.steps, masks=masks
    ) as resumed:
        for _ in range(10 - stop):
            step(second, again)
    assert all(torch.equal(w, weights(whole)[n]) for n, w in weights(second).items())
    assert (resumed.level, resumed.steps) == (3, 10)


def test_during_that_ends_early_warns(mlp):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1)

    def training() -> None:
        with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.9), sc.Cubic(4), every=3):
            for _ in range(3):
                step(net, optimizer)

    with pytest.warns(SecateurWarning, match=r"after 3 optimizer steps, of step 2 of 4") as seen:
        training()
    assert seen[0].filename == __file__


def test_during_lets_exceptions_through_and_removes_its_hooks(mlp):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1)

    def raising() -> None:
        with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.9), sc.Cubic(4), every=3):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        raising()
    assert hooks(optimizer) == 0


def test_during_asserts_the_zeros_and_finds_a_nan(mlp):
    def spoiling(value: float) -> None:
        net = mlp()
        optimizer = SGD(net.parameters(), lr=0.1)
        with sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.5), sc.OneShot(), every=1):
            step(net, optimizer)
            with torch.no_grad():
                net[0].weight.fill_(value)

    with pytest.raises(MaskError, match=r"0\.weight: \d+ masked weights are not zero"):
        spoiling(1.0)
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        spoiling(float("nan"))


class Own:
    """A criterion whose words are where it lies."""

    reads_data = False

    def __call__(self, targets, data=None, loss=None):
        return sc.Magnitude()(targets)


def test_a_state_goes_on_with_the_settings_it_was_saved_with(mlp):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1)
    usual = {"criterion": Own(), "budget": sc.Global(0.5), "schedule": sc.Cubic(3), "every": 2}
    with sc.during(optimizer, net, **usual, exclude=["2"]) as pruning:
        saved = pruning.state_dict()
        for _ in range(4):
            step(net, optimizer)
    with sc.during(
        optimizer, net, **usual | {"criterion": Own()}, exclude="2", round_to=1, state=saved
    ) as again:
        assert (again.level, again.steps) == (1, 0)
        for _ in range(4):
            step(net, optimizer)
    for change, message in [
        ({"criterion": sc.Magnitude()}, "criterion .*Own object.* here it is Magnitude"),
        ({"budget": sc.Uniform(0.5)}, "budget Global.* here it is Uniform"),
        ({"exclude": None}, "exclude .'2'., and here it is the default"),
    ]:
        with pytest.raises(BudgetError, match=f"saved with {message}"):
            sc.during(optimizer, net, **{**usual, "exclude": "2", **change}, state=saved).__enter__()
        assert hooks(optimizer) == 0
    with pytest.raises(StorageError, match="its settings are words by name"):
        sc.during(
            optimizer, net, **usual, exclude="2", state={**saved, "settings": {"budget": 1}}
        ).__enter__()
    old = {name: value for name, value in saved.items() if name != "settings"}
    with pytest.warns(SecateurWarning, match="of step 1 of 3"), sc.during(optimizer, net, **usual, state=old):
        pass


def test_during_settings(mlp):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1)
    arguments = (optimizer, net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3))
    for options, message in [
        ({"every": 0}, r"every is 0; it counts optimizer steps, from 1"),
        ({"every": 1, "start": 5}, r"start is 5"),
        ({"every": 1, "start": 1}, r"resuming at step 1 needs masks="),
    ]:
        with pytest.raises(BudgetError, match=message):
            sc.during(*arguments, **options).__enter__()
    assert sc.sparsity(net) == 0
    assert hooks(optimizer) == 0


# -- whole units -------------------------------------------------------------------------------------

BUDGETS = [sc.Uniform(0.5), sc.Global(0.5), sc.LAMP(0.5), sc.ParameterShare(0.5)]


def traced(mlp) -> tuple[nn.Sequential, sc.Structure]:
    net = mlp()
    return net, sc.trace(net, torch.zeros(2, 8))


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: type(b).__name__)
def test_gradually_prunes_whole_units(mlp, budget):
    net, structure = traced(mlp)
    optimizer, before, counts = Adam(net.parameters(), lr=0.02), None, []
    for masks in sc.gradually(net, sc.L2Norm(), budget, sc.Cubic(3), structure=structure):
        assert before is None or all((before[n] | ~masks[n]).all() for n in masks)
        train(net, optimizer, masks)
        before = masks
        counts.append(masks.units["0 -> 2"][0])
    assert counts == sorted(counts, reverse=True)
    proof = sc.compact(net, torch.zeros(2, 8), structure=structure)[1]
    if isinstance(budget, sc.ParameterShare):
        assert proof.parameters[1] <= 0.5 * proof.parameters[0]
    else:
        assert proof.removed == {"0 -> 2": (8, 16)}


def test_gradually_passes_round_to_and_min_kept_on(mlp):
    net, structure = traced(mlp)
    options = {"structure": structure, "round_to": 4, "min_kept": 6}
    with pytest.warns(SecateurWarning, match="stay that the budget would take"):
        steps = [
            m.units["0 -> 2"][0]
            for m in sc.gradually(net, sc.L2Norm(), sc.Uniform(0.9), sc.Cubic(3), **options)
        ]
    assert steps == [8, 8, 8]


def test_during_prunes_whole_units(mlp):
    net, structure = traced(mlp)
    optimizer = SGD(net.parameters(), lr=0.1)
    with sc.during(
        optimizer, net, sc.L2Norm(), sc.Uniform(0.5), sc.Cubic(3), every=2, structure=structure
    ) as state:
        for _ in range(6):
            step(net, optimizer)
    assert state.masks.units == {"0 -> 2": (8, 16)}
    with (
        pytest.raises(MaskError, match="the optimizer updates none of what would be pruned"),
        sc.during(SGD(mlp().parameters(), lr=0.1), net, sc.L2Norm(), sc.Uniform(0.5), sc.OneShot(), every=1,
                  structure=structure),
    ):  # fmt: skip
        pass
