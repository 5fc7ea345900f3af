"""Operators of a user's own, with public names alone: one that mixes channels, one that is pointwise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc


@pytest.fixture
def mylib():
    """Three operators: a product whose name is not torch's, a pointwise one, and one called relu that
    mixes channels."""
    with torch.library._scoped_library("mylib", "DEF") as library:
        library.define("project(Tensor x, Tensor kernel, Tensor? shift) -> Tensor")
        library.define("project_t(Tensor x, Tensor kernel) -> Tensor")
        library.define("swish(Tensor x, float beta) -> Tensor")
        library.define("relu(Tensor x) -> Tensor")
        how = "CompositeExplicitAutograd"
        library.impl("project", lambda x, kernel, shift: F.linear(x, kernel, shift), how)
        library.impl("project_t", lambda x, kernel: x @ kernel, how)
        library.impl("swish", lambda x, beta: x * torch.sigmoid(beta * x), how)
        library.impl("relu", lambda x: (x - x.mean(-1, keepdim=True)).relu(), how)
        yield torch.ops.mylib
        for name in ("project", "project_t", "swish", "relu"):
            sc.forget_operator(f"mylib::{name}")


class Projected(nn.Module):
    def __init__(self, operator="project"):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.operator = operator
        self.kernel = nn.Parameter(torch.randn((5, 8) if operator == "project" else (8, 5)))
        self.shift = nn.Parameter(torch.randn(5)) if operator == "project" else None
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.ops.mylib.swish(self.first(x), 1.5)
        own = getattr(torch.ops.mylib, self.operator)
        x = own(x, self.kernel, self.shift) if self.operator == "project" else own(x, self.kernel)
        return self.last(x.tanh())


def halved(model, x):
    structure = sc.trace(model, x)
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    with torch.no_grad():
        masked = model(x)
    small, proof = sc.compact(model, x)
    with torch.no_grad():
        assert torch.allclose(small(x), masked, atol=1e-6)
    return small, proof, structure


def test_a_product_and_a_pointwise_operator_that_were_registered(mylib):
    sc.register_operator(mylib.project, kind="affine", weight="kernel", bias="shift")
    sc.register_operator(mylib.swish, kind="pointwise")
    small, _, structure = halved(Projected(), torch.randn(4, 6))
    assert len(structure) == 2
    assert small.kernel.shape == (3, 4)  # 8 -> 4 units before it, 5 -> 3 behind it
    assert small.last.weight.shape == (3, 3)
    assert structure.groups[next(iter(structure.groups))].macs > 0


def test_a_matrix_that_lies_the_other_way(mylib):
    sc.register_operator(mylib.project_t, kind="affine", weight="kernel", transposed=True)
    sc.register_operator("mylib::swish", kind="pointwise")
    small, _, _ = halved(Projected("project_t"), torch.randn(4, 6))
    assert small.kernel.shape == (4, 3)


def test_what_is_not_said_is_tried_out_or_freezes_and_says_so(mylib):
    structure = sc.trace(Projected(), torch.randn(4, 6))
    assert "mylib.project" in repr(structure)  # stands among the reasons why dims are protected
    assert all("kernel" not in name for name in structure.groups)


def test_a_users_relu_that_mixes_channels_is_not_believed_pointwise(mylib):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(torch.ops.mylib.relu(self.a(x)))

    model = Net()
    structure = sc.trace(model, torch.randn(4, 6))
    assert not structure.groups
    assert "mylib.relu" in repr(structure)


def test_greedy_and_refit_follow_a_registered_product(mylib):
    sc.register_operator(mylib.project, kind="affine", weight="kernel", bias="shift")
    sc.register_operator(mylib.swish, kind="pointwise")
    model, x = Projected(), torch.randn(32, 6)
    labels = model(x).argmax(1)
    small, _ = sc.prune_greedily(model, x[:2], [(x, labels)], parameters=0.7)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
