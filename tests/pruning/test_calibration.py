"""What criteria read leaves no trace on the network: nothing a forward makes, no flag, mode or gradient."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import CriterionError, ModelError, TargetError
from secateur.pruning.calibration import mean_gradients


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.norm, self.b = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def positions(self, x: Tensor) -> Tensor:
        return torch.linspace(0, 1, len(x))[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x + self.positions(x))).relu())


class ClassDefault(Base):
    grid: Tensor | None = None

    def positions(self, x: Tensor) -> Tensor:
        if self.grid is None or len(self.grid) != len(x):
            self.grid = super().positions(x)
        return self.grid


class HasAttribute(Base):
    def positions(self, x: Tensor) -> Tensor:
        if not hasattr(self, "seen") or self.seen != len(x):
            self.seen, self.made = len(x), super().positions(x)
        return self.made


class LateBuffer(Base):
    def positions(self, x: Tensor) -> Tensor:
        if "grid" not in self._buffers or len(self.grid) != len(x):
            self.register_buffer("grid", super().positions(x))
        return self.grid  # type: ignore[return-value]


class Holder:
    value: Tensor | None = None


class PlainObject(Base):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def positions(self, x: Tensor) -> Tensor:
        if self.holder.value is None or len(self.holder.value) != len(x):
            self.holder.value = super().positions(x)
        return self.holder.value


@functools.lru_cache
def grid(number: int) -> Tensor:
    return torch.linspace(0, 1, number)[:, None]


class Cached(Base):
    """What is shared by all is filled by the copy too, with what a forward of the network would put there."""

    def positions(self, x: Tensor) -> Tensor:
        return grid(len(x))


class Appending(Base):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.outputs: dict[int, Tensor] = {}

    def positions(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        self.outputs[len(x)] = super().positions(x)
        return self.outputs[len(x)]


class ByShape(Base):
    def __init__(self) -> None:
        super().__init__()
        self.made: dict[tuple[int, ...], Tensor] = {}

    def positions(self, x: Tensor) -> Tensor:
        if tuple(x.shape) not in self.made:
            self.made[tuple(x.shape)] = super().positions(x)
        return self.made[tuple(x.shape)]


IDIOMS = [ClassDefault, HasAttribute, LateBuffer, PlainObject, Cached, Appending, ByShape]
X, Y = torch.randn(6, 8), torch.randint(0, 4, (6,))
WAYS = {
    "wanda": lambda net: sc.Wanda()(sc.find_targets(net), [X]),
    "taylor": lambda net: sc.Taylor()(sc.find_targets(net), [(X, Y)]),
    "fisher": lambda net: sc.Fisher()(sc.find_targets(net), [(X, Y)]),
    "sensitivity": lambda net: sc.sensitivity(net, lambda m: float(m(X).sum().detach()), levels=(0.5,)),
    "an error in the second batch": lambda net: failing(net),
}


def failing(net: nn.Module) -> None:
    with pytest.raises(ModelError, match="does not run on a batch of data="):
        sc.prune(net, sc.Taylor(), sc.Global(0.5), data=[(X, Y), (X[:, :3], Y)])


def pictured(thing: Any) -> Any:
    """Everything that is reached from a network, by value and by identity."""
    if isinstance(thing, Tensor):
        grad = None if thing.grad is None else thing.grad.tolist()
        return id(thing), thing._version, thing.tolist(), thing.requires_grad, grad, type(thing)
    if isinstance(thing, (nn.Module, Holder)):
        return id(thing), pictured(vars(thing))
    if isinstance(thing, dict):
        return {key: pictured(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [pictured(value) for value in thing]
    return thing if isinstance(thing, (bool, int, float, str, set, type(None))) else id(thing)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("ran", [None, 5, 6], ids=["never run", "run at another shape", "run at this shape"])
@pytest.mark.parametrize("kind", IDIOMS)
def test_what_a_forward_makes_is_made_on_a_copy(kind, ran, way):
    net = kind()
    net.norm.eval()
    net.a.bias.requires_grad_(False)
    if ran is not None:
        net(torch.randn(ran, 8)).sum().backward()
    before = pictured(net)
    way(net)
    assert pictured(net) == before
    assert torch.isfinite(net(X)).all()


@pytest.mark.parametrize("kind", IDIOMS)
def test_units_are_scored_on_a_copy_too(kind):
    net = kind()
    net(X)
    structure = sc.trace(net, X)
    before = pictured(net)
    sc.ActivationNorm()(structure, [X])
    assert pictured(net) == before


def test_children_that_are_compiled():
    plain, net = Base(), Base()
    net.a = torch.compile(net.a, backend="eager")  # type: ignore[assignment]
    for criterion, data in ((sc.Wanda(), [X]), (sc.Taylor(), [(X, Y)]), (sc.Magnitude(), None)):
        masks = [sc.prune(model, criterion, sc.Global(0.5), data=data) for model in (plain, net)]
        assert list(masks[1]) == ["a.weight", "b.weight"]
        assert masks[0] == masks[1]
    masks[1].check()


# -- scores that say nothing ----------------------------------------------------------------------------


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("criterion", [sc.Taylor(), sc.Fisher()])
def test_cross_entropy_of_one_output_ranks_nothing(criterion):
    net, data = Single(), [(X, torch.rand(6, 1))]
    before = pictured(net)
    with pytest.raises(CriterionError, match=r"all 144 scores are 0, which ranks nothing; .*loss=torch\.nn"):
        sc.prune(net, criterion, sc.Global(0.5), data=data)
    with pytest.raises(CriterionError, match="scores are 0, which ranks nothing"):
        sc.prune(net, criterion, sc.Global(0.5), data=data, structure=sc.trace(net, X))
    assert pictured(net) == before
    assert sc.prune(net, criterion, sc.Global(0.5), data=data, loss=nn.functional.mse_loss).sparsity == 0.5


def test_what_reads_data_that_are_all_alike():
    dead = Single()
    with torch.no_grad():
        dead.a.bias.fill_(-100)
    for criterion, data, options in (
        (sc.Wanda(), torch.zeros(6, 8), {"include": "a"}),
        (sc.ActivationNorm(), X, {"structure": sc.trace(dead, X)}),
        (lambda targets, *_: {n: torch.ones_like(t.weight) for n, t in targets.items()}, X, {}),
    ):
        with pytest.raises(
            CriterionError, match=r": all \d+ scores are [01], which ranks nothing; pass data="
        ):
            sc.prune(dead, criterion, sc.Global(0.5), data=[data], **options)


def test_ties_that_nobody_read_from_data_are_broken_as_ever(linear):
    ones = nn.Sequential(linear(torch.ones(4, 6)), linear(torch.ones(3, 4)))
    for criterion in (sc.Magnitude(), lambda targets, *_: {n: t.weight * 0 for n, t in targets.items()}):
        assert sc.prune(ones, criterion, sc.Global(0.5)).sparsity == 0.5
    data = [torch.randn(2, 6)]
    assert sc.prune(nn.Sequential(linear(torch.ones(4, 6))), sc.Magnitude(), sc.LAMP(0.5), data=data)
    structure = sc.trace(ones, data[0])
    for criterion in (sc.L1Norm(), sc.L2Norm()):
        assert sc.prune(ones, criterion, sc.Uniform(0.5), structure=structure, data=data).units


@pytest.mark.filterwarnings("ignore:.*is emptied")
def test_one_weight_and_weights_that_are_all_masked(linear):
    data = [(torch.zeros(3, 1), torch.zeros(3, 1))]
    one = linear([[2.0]])
    assert sc.prune(one, sc.Taylor(), sc.Global(1.0), data=data, loss=nn.functional.mse_loss).sparsity == 1
    net = Single()
    masks = sc.prune(net, sc.Magnitude(), sc.Global(1.0))
    again = sc.prune(net, sc.Wanda(), sc.Global(1.0), masks=masks, data=[X])
    assert again == masks


# -- weights that nobody can change -----------------------------------------------------------------------


def test_weights_made_in_inference_mode_are_refused_before_anything_changes():
    net = Single()
    structure = sc.trace(net, X)
    with torch.inference_mode():
        for layer in (net.a, net.b):
            layer.weight, layer.bias = nn.Parameter(layer.weight.clone()), nn.Parameter(layer.bias.clone())
    masks = sc.Masks(net, {"a.weight": torch.zeros(16, 8, dtype=torch.bool)})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    data = [(X, torch.rand(6, 1))]
    for way in (
        lambda: sc.prune(net, sc.Magnitude(), sc.Global(0.5)),
        lambda: sc.prune(net, sc.Taylor(), sc.Global(0.5), data=data, loss=nn.functional.mse_loss),
        lambda: sc.prune(net, sc.L2Norm(), sc.Global(0.5), structure=structure),
        lambda: next(iter(sc.gradually(net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3)))),
        lambda: sc.during(optimizer, net, sc.Magnitude(), sc.Global(0.5), sc.Cubic(3), every=1).__enter__(),
        lambda: masks.held(optimizer).__enter__(),
        masks.apply,
    ):
        with pytest.raises(
            TargetError, match=r"^a\.weight: made in torch\.inference_mode\(\).*copy\.deepcopy"
        ):
            way()
    assert sc.sparsity(net) == 0
    assert sc.prune(copy.deepcopy(net), sc.Magnitude(), sc.Global(0.5)).sparsity == 0.5


def test_gradients_of_complex_weights_are_squared_by_their_size():
    net = nn.Linear(8, 2, dtype=torch.complex64)
    x = torch.randn(6, 8, dtype=torch.complex64)
    targets = sc.find_targets(net)
    loss = net(x).abs().square().sum()
    (gradient,) = torch.autograd.grad(loss, [net.weight])
    (found,) = mean_gradients(targets, [(x, Y)], lambda y, _: y.abs().square().sum(), "test", 2).values()
    torch.testing.assert_close(found, gradient.abs().square())
