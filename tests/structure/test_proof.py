"""Comparing outputs, redrawing inputs and weights, and the printed proof."""

from __future__ import annotations

from collections import UserDict, deque, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import secateur as sc
from networks.plain import mlp
from secateur.graph.compare import TOLERANCE, difference, tensors_in
from secateur.graph.draws import as_dtype, randomise, redrawn, resized
from secateur.running import call
from secateur.structure.proof import Proof

A, B = torch.tensor([1.0, -4.0]), torch.tensor([[2.0]])


@pytest.mark.parametrize(
    "outputs",
    [
        (A, B),
        [A, [B]],
        {"a": A, "b": (B, None)},
        SimpleNamespace(a=A, b=B, c=3),
        namedtuple("Out", "a b")(A, B),
    ],
)
def test_tensors_in_nested_outputs(outputs):
    assert [t is s for t, s in zip(tensors_in(outputs), (A, B), strict=True)] == [True, True]


def test_integers_are_outputs_and_the_rest_is_not():
    number, flag = torch.tensor([1]), torch.tensor([True])
    assert [t is s for t, s in zip(tensors_in([number, "x", None, 2.0, flag]), (number, flag), strict=True)]
    assert tensors_in(["x", None, 2.0, torch.float32, nn.Linear(2, 2)]) == []


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b) -> None:
        self.a, self.b = a, b


class Ring:
    def __init__(self) -> None:
        self.a, self.b, self.own = A, deque([B]), self


@pytest.mark.parametrize("outputs", [Slotted(A, B), Ring(), deque([A, B]), UserDict(a=A, b=[B])])
def test_tensors_in_containers_of_other_kinds(outputs):
    assert [t is s for t, s in zip(tensors_in(outputs), (A, B), strict=True)] == [True, True]


def test_integers_are_compared_exactly():
    ids = torch.tensor([3, 4])
    assert difference(ids, ids.clone()) == 0
    assert difference((A, ids), (A, ids + torch.tensor([0, 1]))) == float("inf")
    assert difference(ids > 3, ids > 2) == float("inf")


def test_complex_outputs_are_compared():
    z = torch.tensor([3 + 4j, 1j])
    assert difference(z, z.clone()) == 0
    assert difference(z, z + 0.4j) == pytest.approx(0.1)


def test_resized_dims():
    x, y = torch.arange(12.0).view(3, 4), torch.arange(4)
    cut, short = resized((x, {"y": y, "n": 4}), 4, 2)[0], resized((x, {"y": y, "n": 4}), 4, 2)[1]
    assert torch.equal(cut, x[:, :2])
    assert (short["y"].tolist(), short["n"]) == ([0, 1], 4)
    assert torch.equal(resized(x, 3, 6), torch.cat([x, x]))


def test_difference_is_relative_to_the_largest_of_each_tensor():
    assert difference(A, A + torch.tensor([0.0, 0.4])) == pytest.approx(0.1)
    assert difference((A, B), (A, B * 1.5)) == pytest.approx(0.5)
    assert difference(A, A.clone()) == 0


def test_outputs_of_other_shapes_are_infinitely_far():
    assert difference(A, A[:1]) == float("inf")
    assert difference((A, B), (A,)) == float("inf")


def test_the_same_nan_and_infinity_are_equal():
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 2.0])
    assert difference(odd, odd.clone()) == 0
    assert difference(odd, torch.tensor([0.0, float("inf"), -float("inf"), 2.0])) == float("inf")
    assert difference(A, torch.tensor([1.0, float("inf")])) == float("inf")


def test_empty_outputs_and_zeros():
    assert difference(torch.zeros(0), torch.zeros(0)) == 0
    assert difference([], []) == 0
    assert difference(torch.zeros(2), torch.zeros(2)) == 0
    assert difference(torch.zeros(2), torch.full((2,), 1e-3)) > 1


def test_as_dtype_leaves_integers():
    wide = as_dtype({"a": (A, torch.tensor([1])), "b": [True, "x"]}, torch.float64)
    assert wide["a"][0].dtype == torch.float64
    assert wide["a"][1].dtype == torch.int64
    assert wide["b"] == [True, "x"]


def test_redrawn_inputs_are_others_of_the_same_scale():
    x = torch.randn(500) * 5 + 3
    y = redrawn((x, torch.tensor([7])), torch.Generator().manual_seed(0))
    assert not torch.equal(x, y[0])
    assert 0 <= int(y[1]) <= 7
    assert float(y[0].mean()) == pytest.approx(3, abs=1)
    assert float(y[0].std()) == pytest.approx(5, rel=0.2)
    assert torch.equal(y[0], redrawn(x, torch.Generator().manual_seed(0)))


def test_redrawn_one_number_and_nested():
    y = redrawn({"a": [torch.tensor(2.0)], "b": None}, torch.Generator().manual_seed(0))
    assert y["b"] is None
    assert torch.isfinite(y["a"][0])


def test_randomised_weights_keep_their_zeros_and_nothing_else():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = 0
        before = {n: t.clone() for n, t in net.named_parameters()}
    randomise(net)
    for name, tensor in net.named_parameters():
        was = before[name]
        assert torch.equal(tensor == 0, was == 0)
        assert (tensor[was != 0] != was[was != 0]).all()
    assert (net[1].running_var > 0).all()
    assert (net[1].weight > 0).all()


def test_randomise_is_repeatable():
    a, b = mlp(3, 4, 2), mlp(3, 4, 2)
    b.load_state_dict(a.state_dict())
    randomise(a, 3)
    randomise(b, 3)
    assert torch.equal(a[0].weight, b[0].weight)


def test_call_runs_in_eval_mode_and_puts_it_back():
    net = nn.Sequential(nn.Dropout(0.9)).train()
    x = torch.ones(50)
    assert torch.equal(call(net, (x,), {}), x)
    assert net.training
    assert net[0].training


def test_tolerances():
    assert {torch.float64: 1e-9, torch.float32: 1e-4} == TOLERANCE


def test_a_proof_prints_what_was_done():
    proof = Proof(
        inputs=2, dtype="float64", max_error=1.5e-16, max_error_randomised=2e-16,
        removed={"a -> b": (3, 10), "b -> c": (1, 5)}, parameters=(1200, 600), macs=(2000.0, 800.0),
        kept={"c -> d": "its removal breaks the forward"}, folded=2,
        units={"a -> b": 10, "b -> c": 5, "c -> d": 7},
    )  # fmt: skip
    assert repr(proof).splitlines() == [
        "4 of 22 units removed, in 2 of 3 groups: 1,200 -> 600 parameters (2.00x fewer), 2,000 -> 800 MACs",
        "equal to the masked network to 1.5e-16 (surviving weights randomised: 2.0e-16), float64, 2 calls",
        "2 constant units folded into the next layer's bias",
        "kept c -> d: its removal breaks the forward",
    ]


def test_the_proof_of_a_network():
    net = mlp(3, 5, 2)
    x = torch.randn(4, 3)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.4), structure=sc.trace(net, x))
    proof = sc.compact(net, x)[1]
    assert proof.removed == {"0 -> 2": (2, 5)}
    assert proof.parameters == (32, 20)
    assert proof.macs == (4 * 25, 4 * 15)
    assert (proof.inputs, proof.dtype, proof.folded, proof.kept, proof.changed) == (3, "float64", 0, {}, ())
    assert max(proof.max_error, proof.max_error_randomised) < 1e-12
    assert proof.optimizer is None
    assert proof.masks is None


class Rotated(nn.Module):
    """A complex factor a channel between two real layers: what it turns by shows in the outputs."""

    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.part = part
        self.a, self.b, self.c = nn.Linear(16, 24), nn.Linear(24, 12), nn.Linear(12, 4)
        self.turn = nn.Parameter(torch.randn(12, dtype=torch.cfloat))

    def forward(self, x):
        h = self.b(self.a(x).relu()) * self.turn
        return self.c(getattr(h * (1 + 0.5j), self.part).relu())


@pytest.mark.parametrize("part", ["real", "imag"])
def test_a_network_with_complex_parameters_is_proved_as_it_is(part, recwarn):
    model, x = Rotated(part), torch.randn(6, 16)
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(model, x))
    with torch.no_grad():
        masked = model(x)
        small, proof = sc.compact(model, x)
        assert torch.allclose(small(x), masked, atol=1e-6)
    assert (proof.dtype, small.turn.dtype) == ("float64", torch.complex64)
    assert proof.max_error < 1e-12
    assert small.a.weight.shape[0] == 12
    assert not [w for w in recwarn if "imaginary" in str(w.message)]
