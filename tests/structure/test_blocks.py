"""Residual blocks: which additions are ones, what scales them, and what is left when F is zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.comparing import error, snapshot, unchanged, wide
from networks.drawn import IMAGES, randn
from networks.parts import After
from networks.plain import mlp
from networks.residual import PostActivation, PreActivation, Residual, images
from secateur.graph.draws import randomise
from secateur.structure.blocks import find_blocks, remove_blocks, replaced_class

ROWS = randn(6, 5, seed=6)
SEQUENCE = randn(2, 4, 12, seed=8)


class Encoder(nn.Module):
    """Pre-norm: attention and an MLP, each around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.up, self.down, self.drop = nn.Linear(12, 20), nn.Linear(20, 12), nn.Dropout(0.1)

    def forward(self, x):
        y = self.n1(x)
        x = x + self.drop(self.attention(y, y, y, need_weights=False)[0])
        x += self.drop(self.down(F.gelu(self.up(self.n2(x)))))
        return x


def pictures(*blocks: nn.Module, relu: bool = True) -> nn.Module:
    return images(*blocks, relu=relu).eval()


def found(model, x):
    return find_blocks(sc.trace(model, x))


def removed(model, x, names=None):
    """A copy with blocks removed, and the places of the identities."""
    blocks, _ = found(model, x)
    work = copy.deepcopy(model)
    return work, remove_blocks(work, [b for n, b in blocks.items() if names is None or n in names], (x,), {})


def test_post_activation():
    blocks, skipped = found(pictures(PostActivation(), PostActivation()), IMAGES)
    assert list(blocks) == ["x + 3.bn_b", "x + 4.bn_b"]
    assert not skipped
    first = blocks["x + 3.bn_b"]
    assert first.parameters == ("3.bn_b.weight", "3.bn_b.bias")
    assert first.inside == ("3.a.weight", "3.b.weight")
    assert first.modules == ("3",)


def test_pre_activation_ends_in_a_convolution():
    blocks, _ = found(pictures(PreActivation(kernel=1)), IMAGES)
    assert blocks["x + 3.b"].parameters == ("3.b.weight", "3.b.bias")
    assert blocks["x + 3.b"].inside == ("3.a.weight",)


def test_attention_and_mlp():
    blocks, skipped = found(wide(nn.Sequential(Encoder(), nn.Linear(12, 3))), SEQUENCE)
    assert list(blocks) == ["x + 0.attention", "x + 0.down"]
    assert blocks["x + 0.attention"].parameters == (
        "0.attention.out_proj.weight",
        "0.attention.out_proj.bias",
    )
    assert blocks["x + 0.attention"].inside == ("0.attention.in_proj_weight",)
    assert not skipped


def around(op, **parts):
    """Blocks and reasons of ``out(op(net, stem(x)))``."""
    net = After(
        lambda n, x: n.out(op(n, n.stem(x).relu())), stem=nn.Linear(5, 6), out=nn.Linear(6, 2), **parts
    )
    return found(wide(net), ROWS)


@pytest.mark.parametrize(
    ("op", "scaled"),
    [
        (lambda n, x: n.f(x) + x, ("f.weight", "f.bias")),
        (lambda n, x: x + 0.3 * n.f(x), ("f.weight", "f.bias")),
        (lambda n, x: x + n.f(x) / 2, ("f.weight", "f.bias")),
        (lambda n, x: x + n.gamma * n.f(x), ("gamma",)),
        (lambda n, x: x + n.f(x) * n.gamma, ("gamma",)),
        (lambda n, x: n.f(x).add_(x), ("f.weight", "f.bias")),
        (lambda n, x: torch.add(x, n.f(x), alpha=2), ("f.weight", "f.bias")),
        (lambda n, x: x + n.f(x) @ n.square, ("square",)),
    ],
)
def test_forms_of_a_block(op, scaled):
    parts = {"gamma": nn.Parameter(torch.randn(6)), "square": nn.Parameter(torch.randn(6, 6))}
    blocks, _ = around(op, f=nn.Linear(6, 6), **parts)
    (block,) = blocks.values()
    assert block.parameters == scaled


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (lambda n, x: x + n.f(x).relu(), "its last operation is relu, which has no scale"),
        (lambda n, x: x + n.norm(n.f(x).T).T, "its last operation, batch_norm, has no scale"),
        (
            lambda n, x: x + F.linear(x, 2 * n.f.weight),
            "a weight that is no parameter, or computed from some",
        ),
        (lambda n, x: (y := n.f(x)).sum() + (x + y), "its result is read elsewhere too"),
        (lambda n, x: n.f(x + n.f(x)), "f.weight, which would scale it, is used elsewhere too"),
        (lambda n, x: x + (n.f(x) + n.g(x)), "its last operation is add"),
        (lambda n, x: x + n.f(x) * n.g(x), "its last operation is mul, which has no scale"),
        (lambda n, x: x + n.f(x) * n.table, "its last operation is mul, which has no scale"),
    ],
)
def test_what_cannot_be_scaled_says_why(op, why):
    parts = {"norm": nn.BatchNorm1d(6, affine=False), "table": torch.rand(6)}
    blocks, skipped = around(op, f=nn.Linear(6, 6), g=nn.Linear(6, 6), **parts)
    assert not blocks
    (reason,) = skipped.values()
    assert why in reason


@pytest.mark.parametrize(
    "op", [lambda n, x: n.f(x) + n.g(x), lambda n, x: x + x, lambda n, x: x + x.mean(-1, keepdim=True)]
)
def test_other_additions_are_none(op):
    assert around(op, f=nn.Linear(6, 6), g=nn.Linear(6, 6)) == ({}, {})


def test_a_projection_is_no_block():
    assert found(pictures(PostActivation(project=True)), IMAGES) == ({}, {})


def test_the_result_is_proportional_to_the_parameters():
    for model, x in (
        (pictures(PostActivation(), PreActivation(kernel=1)), IMAGES),
        (wide(nn.Sequential(Encoder())), SEQUENCE),
    ):
        randomise(model)
        for name, block in found(model, x)[0].items():
            ends = [copy.deepcopy(model) for _ in range(3)]
            for net, factor in zip(ends, (0.0, 1.0, 2.0), strict=True):
                inner = dict(net.named_parameters())
                with torch.no_grad():
                    for parameter in block.parameters:
                        inner[parameter].mul_(factor)
            place = block.modules[-1]
            part = [net.get_submodule(place) for net in ends]
            y = torch.randn(2, 6, 4, 4).double() if x is IMAGES else x
            if "attention" in name:
                continue  # what follows it inside the module is not linear
            with torch.no_grad():
                zero, one, two = (net.forward(y + 50) for net in part)  # no relu is at rest
            assert torch.allclose(two - zero, 2 * (one - zero), atol=1e-9)
            assert not torch.allclose(one, zero)


# -- removal -----------------------------------------------------------------------------------------


def test_a_block_becomes_an_identity():
    model = pictures(PostActivation(), PostActivation())
    before = snapshot(model)
    work, places = removed(model, IMAGES, ["x + 4.bn_b"])
    assert places == ["4"]
    assert type(work[4]) is nn.Identity
    assert replaced_class(work[4]) == f"{PostActivation.__module__}.PostActivation"
    assert isinstance(work[3], PostActivation)
    assert unchanged(model, before)
    assert error(nn.Sequential(*model[:4], *model[5:]), work, IMAGES, IMAGES * 3) == 0
    assert removed(model, IMAGES)[1] == ["3", "4"]


def test_training_mode_stays():
    model = pictures(PostActivation()).train()
    work, _ = removed(model, IMAGES)
    assert all(module.training for module in work.modules())


def test_no_identity_where_a_relu_does_something():
    """The stem's output has negative entries, which the block's last relu takes away."""
    model = pictures(PostActivation(), relu=False)
    work, places = removed(model, IMAGES)
    assert places == []
    block = work[3]
    assert not any(p.any() for p in (block.bn_b.weight, block.bn_b.bias, block.a.weight, block.b.weight))
    expected = nn.Sequential(*model[:3], nn.ReLU(), *model[4:])
    assert error(expected, work, IMAGES) == 0
    small, proof = sc.compact(work, IMAGES)
    assert proof.removed == {"3.a -> 3.b": (4, 5)}
    assert error(expected, small, IMAGES) < 1e-12


def test_nonnegative_by_chance_is_not_enough():
    """On these images the stem's output is positive; with other weights it is not."""
    model = pictures(PostActivation(), relu=False)
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(0.1)
    x = IMAGES.abs()
    model[1].reset_running_stats()
    assert (model[:3](x) >= 0).all()
    assert removed(model, x)[1] == []


def test_both_parts_of_an_encoder():
    model = wide(nn.Sequential(nn.Linear(12, 12), Encoder(), nn.Linear(12, 3)))
    work, places = removed(model, SEQUENCE, ["x + 1.down"])
    assert places == []
    assert not work[1].up.weight.any()
    assert work[1].attention.in_proj_weight.any()
    work, places = removed(model, SEQUENCE)
    assert places == ["1"]
    assert error(nn.Sequential(model[0], model[2]), work, SEQUENCE) == 0


def test_weights_shared_with_the_rest_stay():
    class Both(PostActivation):
        def forward(self, x):
            return super().forward(x) + 0 * self.a(x).mean()

    model = pictures(Both())
    blocks, _ = found(model, IMAGES)
    assert blocks["x + 3.bn_b"].inside == ("3.b.weight",)


def test_a_module_that_is_asked_for_more_stays():
    """The network reads an attribute of the block, which an Identity has not."""
    net = After(
        lambda n, x: n.out(n.block(n.stem(x).relu()).mean((2, 3))) * n.block.a.padding[0],
        stem=nn.Conv2d(3, 6, 1),
        block=PostActivation(),
        out=nn.Linear(6, 2),
    )
    model = wide(net)
    work, places = removed(model, IMAGES)
    assert places == []
    assert isinstance(work.block, PostActivation)
    assert not work.block.bn_b.weight.any()
    work(IMAGES)


def test_a_block_written_into_the_forward():
    model = wide(Residual())
    work, places = removed(model, IMAGES)
    assert places == []
    assert sc.compact(work, IMAGES)[1].removed == {"a -> b": (4, 5)}


def test_nothing_to_remove():
    model = wide(mlp(5, 4, 2))
    before = snapshot(model)
    assert remove_blocks(model, [], (ROWS,), {}) == []
    assert unchanged(model, before)
