"""``compact``: a really smaller network, equal to the masked one, with all that hangs on it."""

from __future__ import annotations

import copy
from itertools import pairwise
from random import SystemRandom

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from networks import judged
from networks.attention import FusedHeads, GroupedQuery
from networks.comparing import error, snapshot, unchanged, wide
from networks.hf import HF
from networks.parts import After
from networks.plain import Concat, mlp
from networks.residual import Residual
from networks.small import SMALL
from secateur.errors import ModelError, NonFiniteError
from secateur.graph.draws import randomise

ZOO = {network.name: network for network in (*SMALL, *HF)}
ROWS = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
SEQUENCE = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def halved(net: nn.Module, x, share: float = 0.5, **options):
    """A network in float64 that lost a share of each group, its structure and its masks."""
    structure = sc.trace(wide(net), x)
    return structure, sc.prune(net, sc.L2Norm(), sc.Uniform(share), structure=structure, **options)


@torch.no_grad()
def kill(net: nn.Sequential, layer: int, units: list[int]) -> None:
    """Zero units of a layer of an MLP, what they read and what reads them."""
    net[layer].weight[units] = 0
    net[layer].bias[units] = 0
    net[layer + 2].weight[:, units] = 0


# -- whole networks ----------------------------------------------------------------------------------

FAMILIES = [
    "residual_projection",
    "dense_concat",
    "grouped_conv",
    "depthwise_separable",
    "transposed_conv",
    "grouped_transposed",
    "shuffle_net",
    "squeeze_excite",
    "pixel_shuffle",
    "uneven_split",
    "flatten_nhwc",
    "group_norm_net",
    "gated_unit",
    "swiglu_block",
    "einsum_layers",
    "raw_linear",
    "multihead_batch_first",
    "encoder_layer",
    "grouped_query_repeat",
    "llama_block",
    "fused_even",
    "fused_three_inside",
    "gpt2_block",
    "lstm_bidirectional",
    "gru_cell_loop",
    "weight_norm_hook",
    "weight_norm_parametrization",
    "spectral_norm_hook",
    "spectral_norm_parametrization",
    "tied_embedding",
    "shared_conv",
    "two_inputs_two_outputs",
    "dict_output",
    "keyword_film",
]
TRANSFORMERS = ["hf_llama", "hf_gpt2", "hf_bert"]


def prove(name: str) -> None:
    case = judged.prepare(ZOO[name])
    model, (args, kwargs) = case.model, case.draws[0]
    structure = sc.trace(model, args, kwargs=kwargs)
    masks = sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    before = snapshot(model)
    with torch.no_grad():
        masked = [model(*a, **k) for a, k in case.draws]
    small, proof = sc.compact(model, args, kwargs=kwargs, structure=structure, masks=masks)
    with torch.no_grad():
        outputs = [small(*a, **k) for a, k in case.draws]
    worst = max(judged.relative_error(m, s) for m, s in zip(masked, outputs, strict=True))
    assert worst <= case.tolerance
    assert proof.parameters[1] <= 0.9 * proof.parameters[0]
    assert proof.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert type(small) is type(model)
    assert set(small.state_dict()) == set(before)
    assert unchanged(model, before)
    assert proof.masks.model is small
    proof.masks.check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_construct_gets_smaller_and_stays_equal(name):
    prove(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    prove(name)


@pytest.mark.parametrize(
    ("kind", "x", "left"),
    [
        (lambda: mlp(3, 6, 4, 2), ROWS, 12 + 8 + 6),
        (Residual, IMAGE, 84 + 6 + 81 + 6 + 81 + 6 + 16),
        (Concat, ROWS, 8 + 12 + 12),
        (FusedHeads, SEQUENCE, 96 + 35),
        (GroupedQuery, SEQUENCE, 84 + 28 + 28 + 84),
    ],
    ids=["mlp", "residual", "concat", "fused heads", "grouped query"],
)
def test_exactly_the_masked_units_go(kind, x, left):
    net = kind()
    structure, _ = halved(net, x)
    small, proof = sc.compact(net, x)
    assert proof.removed == {n: (round(len(g) / 2), len(g)) for n, g in structure.groups.items()}
    assert proof.parameters == (sum(p.numel() for p in net.parameters()), left)
    assert error(net, small, x, torch.randn_like(x)) < 1e-12


def test_the_surviving_weights_are_the_same_numbers():
    net = wide(mlp(3, 6, 2))
    kill(net, 0, [1, 4])
    small, _ = sc.compact(net, ROWS)
    kept = [0, 2, 3, 5]
    assert torch.equal(small[0].weight, net[0].weight[kept])
    assert torch.equal(small[0].bias, net[0].bias[kept])
    assert torch.equal(small[2].weight, net[2].weight[:, kept])
    assert torch.equal(small[2].bias, net[2].bias)


def test_compacting_twice_changes_nothing_more():
    net = mlp(3, 6, 4, 2)
    halved(net, ROWS)
    small, proof = sc.compact(net, ROWS)
    again, second = sc.compact(small, ROWS)
    assert second.removed == {}
    assert second.parameters == (proof.parameters[1], proof.parameters[1])
    assert unchanged(again, small.state_dict())


def test_nothing_to_remove():
    net = wide(mlp(3, 4, 2))
    small, proof = sc.compact(net, ROWS)
    assert small is not net
    assert unchanged(small, net.state_dict())
    assert (proof.removed, proof.kept, proof.folded) == ({}, {}, 0)


def test_a_network_without_a_group():
    net = wide(nn.Linear(3, 2))
    assert sc.compact(net, ROWS)[1].removed == {}


def test_the_model_inside_wrappers():
    net = mlp(3, 6, 2)
    halved(net, ROWS)
    small, proof = sc.compact(torch.optim.swa_utils.AveragedModel(net), ROWS)
    assert type(small) is nn.Sequential
    assert proof.removed == {"0 -> 2": (3, 6)}


# -- unstructured zeros --------------------------------------------------------------------------------


def test_rows_that_masks_emptied_go():
    net = wide(mlp(3, 6, 2))
    kept = torch.ones(6, 3, dtype=torch.bool)
    kept[[0, 5]] = False
    masks = sc.Masks(net, {"0.weight": kept, "2.weight": torch.rand(2, 6) > 0.3}).apply()
    with torch.no_grad():
        net[0].bias[[0, 5]] = 0
    small, proof = sc.compact(net, ROWS, masks=masks)
    assert proof.removed["0 -> 2"][0] >= 2
    assert error(net, small, ROWS, torch.randn_like(ROWS)) < 1e-12
    proof.masks.check()


def test_columns_that_masks_emptied_go():
    net = wide(mlp(3, 6, 2))
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[:, [1, 2]] = False
    masks = sc.Masks(net, {"2.weight": kept}).apply()
    small, proof = sc.compact(net, ROWS, masks=masks)
    assert proof.removed == {"0 -> 2": (2, 6)}
    assert error(net, small, ROWS, torch.randn_like(ROWS)) < 1e-12
    assert proof.masks["2.weight"].all()


def test_one_neuron_stays_where_all_are_dead():
    net = wide(mlp(3, 5, 4, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net[4].bias.fill_(3.0)
    small, proof = sc.compact(net, ROWS)
    assert [len(small[i].bias) for i in (0, 2, 4)] == [1, 1, 2]
    assert set(proof.kept.values()) == {"every unit is dead; one stays, so that no dim is empty"}
    assert small(ROWS).unique().tolist() == [3.0]


@torch.no_grad()
def sprinkle(net: nn.Module, zeros: float, seed: int) -> nn.Module:
    """Zero weights, and now and then all of a neuron's, at random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.mul_(torch.rand(parameter.shape, generator=generator) >= zeros)
        rows = torch.rand(parameter.shape[0], generator=generator) < zeros / 3
        parameter[rows] = 0
    return net


share = st.sampled_from([0.0, 0.3, 0.6, 0.8, 0.95, 1.0])


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    share,
    st.integers(0, 10**6),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_mlps_with_random_zeros(sizes, zeros, seed, bias, which):
    torch.manual_seed(seed)
    activation = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU][which]
    net = sprinkle(wide(mlp(3, *sizes, 2, activation=activation, bias=bias)), zeros, seed)
    x = torch.randn(7, 3, dtype=torch.float64)
    small, proof = sc.compact(net, x)
    assert error(net, small, x, torch.randn(50, 3, dtype=torch.float64)) < 1e-9
    assert all(p.numel() for p in small.parameters())
    assert proof.parameters[1] <= proof.parameters[0]


def cnn(channels: list[int], padding: int, norm: bool, shortcut: bool, groups: int) -> nn.Module:
    def op(net, x):
        for conv, bn in zip(net.convs, net.norms, strict=True):
            y = bn(conv(x)).relu()
            x = x + y if shortcut and y.shape == x.shape else y
        return net.head(net.last(x).mean((2, 3)))

    sizes = [3, *(c * groups for c in channels)]
    pairs = list(pairwise(sizes))
    convs = [nn.Conv2d(a, b, 3, padding=padding, groups=groups if i else 1) for i, (a, b) in enumerate(pairs)]
    return After(
        op,
        convs=nn.ModuleList(convs),
        norms=nn.ModuleList(nn.BatchNorm2d(b) if norm else nn.Identity() for _, b in pairs),
        last=nn.Conv2d(sizes[-1], 4, 1),
        head=nn.Linear(4, 2),
    )


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 1), st.booleans(), st.booleans(),
    st.integers(1, 2), share, st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_cnns_with_random_zeros(channels, padding, norm, shortcut, groups, zeros, seed):
    torch.manual_seed(seed)
    net = wide(cnn(channels, padding, norm, shortcut, groups))
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    small, proof = sc.compact(sprinkle(net, zeros, seed), x)
    assert error(net, small, x, torch.randn(3, 3, 9, 8, dtype=torch.float64)) < 1e-9
    assert proof.parameters[1] <= proof.parameters[0]


@given(share, st.integers(0, 10**6), st.sampled_from([FusedHeads, GroupedQuery]))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_attention_with_random_zeros(zeros, seed, kind):
    torch.manual_seed(seed)
    net = sprinkle(wide(kind()), zeros, seed)
    small, _ = sc.compact(net, SEQUENCE)
    assert error(net, small, SEQUENCE, torch.randn(3, 5, 7, dtype=torch.float64)) < 1e-9


# -- what is kept ----------------------------------------------------------------------------------------


def test_modes_settings_and_hooks_are_kept():
    net = wide(nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 2)))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].bias[2] = 0
    small, proof = sc.compact(net, ROWS)
    assert proof.removed == {"0 -> 3": (1, 6)}
    assert (
        [m.training for m in small.modules()]
        == [m.training for m in net.modules()]
        == [True, True, False, True, True]
    )
    assert [p.requires_grad for p in small.parameters()] == [False, True, True, True]
    assert len(small[0]._forward_hooks) == 1
    assert error(net.eval(), small.eval(), ROWS) < 1e-12


def test_shared_parameters_stay_shared():
    net = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False))
    net[2].weight = net[0].weight
    tokens = torch.arange(11)[None]
    halved(net, tokens)
    small, _ = sc.compact(net, tokens)
    assert small[2].weight is small[0].weight
    assert small[0].weight.shape == (11, 3)
    assert error(net, small, tokens) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype):
    net = mlp(3, 6, 2).to(dtype)
    x = ROWS.to(dtype)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, x)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert proof.dtype == "float64"
    assert proof.max_error < 1e-12


def test_a_forward_of_one_dtype_is_proved_in_it():
    net = After(
        lambda net, x: net.b(net.a(x) + torch.ones(1, 1, dtype=torch.float32).to(x) * 0),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 2),
    )
    single = After(lambda net, x: net.b(net.a(x.float())), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert sc.compact(net, ROWS.float())[1].dtype == "float64"
    assert sc.compact(single, ROWS.float())[1].dtype == "float32"


def test_gradients_of_the_given_model_are_left():
    net = wide(mlp(3, 6, 2))
    net(ROWS).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    kill(net, 0, [1])
    sc.compact(net, ROWS)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


def test_the_example_inputs_are_left():
    net, x = mlp(3, 6, 2), ROWS.clone()
    halved(net, x)
    sc.compact(net, x)
    assert torch.equal(x, ROWS)


def test_the_global_random_state_is_left():
    net = mlp(3, 6, 2)
    halved(net, ROWS)
    state = torch.random.get_rng_state()
    sc.compact(net, ROWS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_small_model_trains_and_saves():
    net = mlp(3, 6, 2)
    halved(net, ROWS)
    small, _ = sc.compact(net, ROWS)
    small(ROWS).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())
    other = mlp(3, 3, 2).double()
    other.load_state_dict(small.state_dict())
    assert error(small, other, ROWS) == 0


# -- masks -----------------------------------------------------------------------------------------------


def test_masks_are_rebound():
    net = wide(mlp(3, 6, 5, 2))
    structure = sc.trace(net, ROWS)
    single = sc.prune(net, sc.Magnitude(), sc.Uniform(0.4))
    both = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, masks=single)
    small, proof = sc.compact(net, ROWS, masks=both)
    assert proof.masks.model is small
    assert set(proof.masks) == set(both)
    assert all(mask.shape == small.get_parameter(name).shape for name, mask in proof.masks.items())
    zeros = sum(int((~m).sum()) for n, m in proof.masks.items() if n.endswith("weight"))
    assert zeros == sum(int((p == 0).sum()) for n, p in small.named_parameters() if n.endswith("weight"))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    with proof.masks.held(optimizer):
        small(ROWS).square().mean().backward()
        optimizer.step()
    proof.masks.check()


def test_notes_of_masks_are_kept():
    net = wide(mlp(3, 6, 2))
    _, masks = halved(net, ROWS)
    assert sc.compact(net, ROWS, masks=masks)[1].masks.notes == masks.notes


# -- refusals ----------------------------------------------------------------------------------------------


def test_a_random_forward_is_one_clear_error():
    noise = SystemRandom().random  # no state that could be set back
    net = After(lambda net, x: net.b(net.a(x) + noise()), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(ModelError, match="is its forward random in eval mode"):
        sc.compact(net, ROWS.float())


def test_keywords_and_dictionaries_of_outputs():
    net = After(
        lambda net, x, scale: {"y": net.b(net.a(x).relu() * scale), "n": 3},
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 2),
    )
    scale = torch.rand(6, 1, dtype=torch.float64)
    structure = sc.trace(wide(net), ROWS, kwargs={"scale": scale})
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, {"x": ROWS, "scale": scale})
    assert proof.removed == {"a -> b": (3, 6)}
    assert error(net, small, (ROWS, scale * 3)) < 1e-12


def test_randomised_weights_are_proved_too():
    """Here the weights as they are would hide an error: the layer after the group is all zero."""
    net = wide(mlp(3, 6, 4, 2))
    halved(net, ROWS)
    small, proof = sc.compact(net, ROWS)
    assert proof.max_error_randomised < 1e-12
    big, little = copy.deepcopy(net), copy.deepcopy(small)
    randomise(big)
    little.load_state_dict(sc.compact(big, ROWS)[0].state_dict())
    assert error(big, little, ROWS) < 1e-9


# -- found while these tests were written --------------------------------------------------------------------


def test_a_constant_in_float32_is_folded():
    net = mlp(3, 6, 2, activation=nn.Tanh)
    with torch.no_grad():
        net[0].weight[1] = 0
    small, proof = sc.compact(net, ROWS.float())
    assert proof.folded == 1
    assert error(net, small, ROWS.float()) < 1e-6


def test_one_sample_gives_no_wrong_result():
    for seed in range(12):
        torch.manual_seed(seed)
        net = wide(mlp(4, 3, 2))
        with torch.no_grad():
            net[0].bias.zero_()
        small, _ = sc.compact(net, torch.randn(1, 4, dtype=torch.float64))
        assert error(net, small, torch.randn(50, 4, dtype=torch.float64)) < 1e-9, seed


def test_rebound_masks_hold_where_a_constant_is_folded():
    net = wide(mlp(3, 6, 2))
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 1.0
        net[2].bias[0] = 0
    masks = sc.Masks(net, {"2.bias": torch.tensor([False, True])})
    sc.compact(net, ROWS, masks=masks)[1].masks.check()


def test_a_structure_of_another_model_is_one_clear_error():
    first, second = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ModelError, match="traced from another model"):
        sc.compact(second, torch.zeros(1, 3), structure=sc.trace(first, torch.zeros(1, 3)))


def test_a_structure_of_a_copy_is_named_as_such():
    net = mlp(3, 6, 2)
    with pytest.raises(ModelError, match="or one on the meta device, is another"):
        sc.compact(net, ROWS.float(), structure=sc.trace(copy.deepcopy(net), ROWS.float()))
    with pytest.raises(ModelError, match="structure= is a Tensor; pass what trace"):
        sc.compact(net, ROWS.float(), structure=ROWS)


# -- proofs that would prove nothing -----------------------------------------------------------------------


def test_integer_outputs_are_compared():
    def op(net, x):
        h = net.a(x).relu()
        return net.b(h * (h.shape[-1] - 10)).argmax(-1)  # the sign hangs on the size

    net = After(op, a=nn.Linear(3, 16), b=nn.Linear(16, 30))
    x = torch.randn(64, 3, dtype=torch.float64)
    halved(net, x)
    small, proof = sc.compact(net, x)
    assert torch.equal(net(x), small(x))
    assert "outputs are off by inf" in proof.kept["a -> b"]


def test_outputs_that_cannot_be_compared_are_an_error():
    net = After(lambda net, x: "nothing", a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(ModelError, match="puts out no tensor"):
        sc.compact(net, ROWS.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    net = mlp(3, 6, 2)
    with torch.no_grad():
        net[2].bias[1] = value
    with pytest.raises(NonFiniteError, match=r"2\.bias"):
        sc.compact(net, ROWS.float())


def test_outputs_that_are_nan_throughout_are_an_error():
    net = After(lambda net, x: net.b(net.a(x).relu()).exp().neg().log(), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(NonFiniteError, match="nothing but NaN"):
        sc.compact(net, ROWS.float())


def test_infinities_of_a_mask_are_equal():
    mask = torch.full((6, 6), -torch.inf).triu(1)
    net = After(lambda net, x: net.b(net.a(x).relu()) @ net.b(net.a(x).relu()).T + net.m,
                a=nn.Linear(3, 6), b=nn.Linear(6, 2), m=mask)  # fmt: skip
    halved(net, ROWS)
    assert sc.compact(net, ROWS)[1].removed["a -> b"] == (3, 6)


def test_redrawn_inputs_that_give_nan_are_left_out():
    net = After(lambda net, x: net.b(net.a(x.log()).relu()).sum(0), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    x = torch.randn(40, 3, dtype=torch.float64).mul(2).exp()  # redrawn from a normal: some are negative
    halved(net, x)
    proof = sc.compact(net, x)[1]
    assert (proof.inputs, proof.removed) == (2, {"a -> b": (3, 6)})  # in eval and in training mode


def test_inputs_of_the_wrong_dtype_are_one_clear_error():
    net = mlp(3, 6, 2).double()
    structure = sc.trace(net, ROWS)
    with pytest.raises(ModelError, match=r"Sequential does not run on example inputs .*float32"):
        sc.compact(net, ROWS.float(), structure=structure)


def test_the_reason_of_a_failure_is_a_sentence():
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).tanh().reshape(-1, 8))

    net = Literal()
    halved(net, ROWS)
    assert "['" not in sc.compact(net, ROWS)[1].kept["a -> b"]


def test_the_proof_counts_the_units_of_every_group():
    net = wide(mlp(3, 6, 4, 2))
    kill(net, 0, [1])
    assert repr(sc.compact(net, ROWS)[1]).startswith("1 of 10 units removed, in 1 of 2 groups: ")
