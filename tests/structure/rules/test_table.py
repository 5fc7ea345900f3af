"""Rules of the operators: what each ties together, what it freezes, and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.groups import members, only, reasons, singles
from networks.parts import After, Between
from networks.plain import mlp

ROWS = torch.zeros(5, 3)
SEQUENCE = torch.zeros(2, 5, 3)
IMAGE = torch.zeros(2, 3, 8, 6)


def trace(op, x=ROWS, **parts) -> sc.Structure:
    return sc.trace(After(op, **parts), x)


def pair(op, x=ROWS) -> sc.Structure:
    """``b(op(a(x)))`` of two linear layers of 3 -> 4 -> 2."""
    return sc.trace(Between(nn.Linear(3, 4), op, nn.Linear(4, 2)), x)


# -- contractions ------------------------------------------------------------------------------------


def test_linear():
    group = only(sc.trace(mlp(3, 4, 2), ROWS))
    assert members(group) == {(name, dim): singles(4) for name, dim in _rows("0", "2")}
    assert [part.reads for part in group.slices] == [False, False, True]
    assert group.parameters == 3 + 1 + 2


def _rows(a: str, b: str) -> list[tuple[str, int]]:
    return [(f"{a}.weight", 0), (f"{a}.bias", 0), (f"{b}.weight", 1)]


@pytest.mark.parametrize(
    "op",
    [
        lambda net, x: net.b(x @ net.w),
        lambda net, x: net.b(torch.mm(x, net.w)),
        lambda net, x: net.b(torch.einsum("bi,io->bo", x, net.w)),
        lambda net, x: net.b(torch.addmm(net.c, x, net.w)),
        lambda net, x: net.b(F.linear(x, net.w.t())),
    ],
)
def test_products_with_a_raw_parameter(op):
    net = After(op, w=nn.Parameter(torch.randn(3, 4)), c=nn.Parameter(torch.randn(4)), b=nn.Linear(4, 2))
    found = members(only(sc.trace(net, ROWS)))
    assert found["w", 1] == found["b.weight", 1] == singles(4)
    assert ("w", 0) not in found


def test_the_rank_between_two_parameters_is_a_group():
    net = After(
        lambda net, x: x @ (net.u @ net.v),
        u=nn.Parameter(torch.randn(3, 5)),
        v=nn.Parameter(torch.randn(5, 2)),
    )
    assert members(only(sc.trace(net, ROWS))) == {("u", 1): singles(5), ("v", 0): singles(5)}


def test_bilinear():
    net = After(
        lambda net, x: net.c(net.a(x), net.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 5), c=nn.Bilinear(4, 5, 2)
    )
    first, second = sc.trace(net, ROWS).groups.values()
    assert members(first)["c.weight", 1] == singles(4)
    assert members(second)["c.weight", 2] == singles(5)


def test_einsum_over_heads():
    net = After(
        lambda net, x: torch.einsum("bthd,hde->bte", torch.einsum("bti,ihd->bthd", x, net.u), net.v),
        u=nn.Parameter(torch.randn(3, 2, 4)),
        v=nn.Parameter(torch.randn(2, 4, 5)),
    )
    found = [members(g) for g in sc.trace(net, SEQUENCE).groups.values()]
    assert {("u", 1): singles(2), ("v", 0): singles(2)} in found
    assert {("u", 2): singles(4), ("v", 1): singles(4)} in found


@pytest.mark.parametrize(
    ("kind", "x"),
    [(nn.Conv1d, (2, 3, 8)), (nn.Conv2d, (2, 3, 8, 6)), (nn.Conv3d, (2, 3, 4, 5, 6)), (nn.Conv2d, (3, 8, 6))],
)
def test_convolutions(kind, x):
    net = nn.Sequential(kind(3, 5, 3), nn.ReLU(), kind(5, 2, 2))
    group = only(sc.trace(net, torch.zeros(x)))
    assert members(group) == {place: singles(5) for place in _rows("0", "2")}


def test_transposed_convolutions_have_their_channels_the_other_way_round():
    net = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.ConvTranspose2d(5, 2, 3))
    group = only(sc.trace(net, IMAGE))
    assert members(group) == {
        ("0.weight", 1): singles(5),
        ("0.bias", 0): singles(5),
        ("2.weight", 0): singles(5),
    }
    assert group.parameters == 3 * 4 + 1 + 2 * 9


def test_depthwise_convolution_goes_with_its_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, groups=5), nn.Conv2d(5, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    assert found == {place: singles(5) for place in [*_rows("0", "2"), ("1.weight", 0), ("1.bias", 0)]}


def test_depth_multiplier():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    threes = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert found["0.weight", 0] == singles(4)
    assert found["1.weight", 0] == found["1.bias", 0] == found["2.weight", 1] == threes


def test_a_grouped_convolution_keeps_its_groups_equal():
    """Either whole groups go, or the same position of every group."""
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    structure = sc.trace(net, IMAGE)
    inputs, outputs = structure.groups.values()
    assert members(inputs)["0.weight", 0] == [[0, 3], [1, 4], [2, 5]]
    assert members(inputs)["1.weight", 1] == singles(3)
    assert (
        members(outputs)["1.weight", 0] == members(outputs)["2.weight", 1] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    )


def test_a_grouped_convolution_of_the_input_stays():
    net = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    structure = sc.trace(net, torch.zeros(2, 4, 5, 5))
    assert not structure.groups
    assert "grouped convolution of an unprunable tensor" in reasons(structure)["0.weight", 0]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_hidden_unit_has_a_row_in_every_gate(kind, gates):
    net = After(
        lambda net, x: net.b(net.a(x)[0]), a=kind(3, 5, num_layers=2, batch_first=True), b=nn.Linear(5, 2)
    )
    found = members(only(sc.trace(net, SEQUENCE)))
    rows = [[i + 5 * g for g in range(gates)] for i in range(5)]
    for layer in "01":
        assert found[f"a.weight_ih_l{layer}", 0] == found[f"a.weight_hh_l{layer}", 0] == rows
        assert found[f"a.bias_ih_l{layer}", 0] == found[f"a.bias_hh_l{layer}", 0] == rows
        assert found[f"a.weight_hh_l{layer}", 1] == singles(5)
    assert found["a.weight_ih_l1", 1] == found["b.weight", 1] == singles(5)


def test_both_directions_share_their_hidden_units():
    net = After(
        lambda net, x: net.b(net.a(x)[0]),
        a=nn.LSTM(3, 5, batch_first=True, bidirectional=True),
        b=nn.Linear(10, 2),
    )
    found = members(only(sc.trace(net, SEQUENCE)))
    assert found["b.weight", 1] == [[i, i + 5] for i in range(5)]
    assert found["a.weight_hh_l0_reverse", 1] == singles(5)


def test_an_initial_state_that_is_not_zero_freezes_the_hidden_units():
    def op(net, x):
        return net.b(net.a(x, torch.ones(1, 2, 5))[0])

    structure = trace(op, SEQUENCE, a=nn.GRU(3, 5, batch_first=True), b=nn.Linear(5, 2))
    assert not structure.groups
    assert reasons(structure)["a.weight_hh_l0", 1]


def test_a_cell():
    def op(net, x):
        h = torch.zeros(5, 4)
        return net.b(net.a(x, net.a(x, h)))

    found = members(only(trace(op, a=nn.GRUCell(3, 4), b=nn.Linear(4, 2))))
    assert found["a.weight_ih", 0] == [[i, i + 4, i + 8] for i in range(4)]
    assert found["a.weight_hh", 1] == singles(4)


# -- attention ---------------------------------------------------------------------------------------


def attention(scale):
    def op(net, x):
        q, k, v = (part(x).view(2, 5, 3, 4).transpose(1, 2) for part in (net.q, net.k, net.v))
        return net.o(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(3, 12, bias=False) for name in "qkv"}
    return After(op, **parts, o=nn.Linear(12, 2, bias=False))


def test_the_scale_of_the_scores_keeps_the_size_of_the_heads():
    fours = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    for scale in (None, 0.5):
        found = members(only(sc.trace(attention(scale), SEQUENCE)))
        assert found == {(f"{n}.weight", int(n == "o")): fours for n in "qkvo"}


def test_positions_of_heads_on_request_where_the_scale_is_given():
    structure = sc.trace(attention(0.5), SEQUENCE, heads="dims")
    positions = [[d, d + 4, d + 8] for d in range(4)]
    scores, values = structure.groups.values()
    assert members(scores) == {("q.weight", 0): positions, ("k.weight", 0): positions}
    assert members(values) == {("v.weight", 0): positions, ("o.weight", 1): positions}


def test_positions_of_queries_stay_where_they_set_the_scale():
    structure = sc.trace(attention(None), SEQUENCE, heads="dims")
    assert ("q.weight", 0) not in {place for g in structure.groups.values() for place in members(g)}
    assert ("v.weight", 0) in {place for g in structure.groups.values() for place in members(g)}


# -- norms -------------------------------------------------------------------------------------------


def test_batch_norm_goes_with_its_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    group = only(sc.trace(net, IMAGE))
    places = [*_rows("0", "2"), ("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0)]
    assert members(group) == {place: singles(5) for place in places}
    assert {part.name for part in group.slices if not part.masked} == {"1.running_mean", "1.running_var"}
    assert group.parameters == 3 + 1 + 1 + 1 + 2


def test_group_norm_lets_whole_groups_go():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    assert found == {
        place: [[0, 1], [2, 3], [4, 5]] for place in [*_rows("0", "2"), ("1.weight", 0), ("1.bias", 0)]
    }


def test_instance_norm_goes_with_its_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 2, 1))
    found = members(only(sc.trace(net, IMAGE)))
    assert found["1.weight", 0] == found["2.weight", 1] == singles(5)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False)])
def test_what_is_normalised_over_stays(norm):
    structure = pair(norm)
    assert not structure.groups
    assert reasons(structure)["a.weight", 0]


def test_one_group_of_a_group_norm_stays():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(1, 6), nn.Conv2d(6, 2, 1))
    structure = sc.trace(net, IMAGE)
    assert not structure.groups
    assert reasons(structure)["0.weight", 0] == "normalised over"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["hook", "parametrization"]
)
def test_weight_norm_is_masked_in_its_length_alone(wrap):
    group = only(sc.trace(nn.Sequential(wrap(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)), ROWS))
    made = {part.name: part.masked for part in group.slices if not part.reads}
    lengths = [name for name in made if name.endswith(("_g", "original0"))]
    directions = [name for name in made if name.endswith(("_v", "original1"))]
    assert [made[n] for n in lengths] == [True]
    assert [made[n] for n in directions] == [False]


# -- pointwise, reductions, joins ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        F.relu,
        F.gelu,
        torch.sigmoid,
        torch.exp,
        F.dropout,
        lambda x: x * 2 + 1,
        lambda x: x.clamp(0, 1),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.masked_fill(x < 0, 0.0),
        lambda x: x.to(torch.float64).float(),
    ],
)
def test_pointwise_operators_carry_over(op):
    assert members(only(pair(op)))["b.weight", 1] == singles(4)


def test_addition_ties_both_makers():
    net = After(
        lambda net, x: net.c(net.a(x) + net.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2)
    )
    found = members(only(sc.trace(net, ROWS)))
    assert found["a.weight", 0] == found["b.weight", 0] == found["c.weight", 1] == singles(4)


def test_a_gate_of_one_number_ties_nothing():
    net = After(
        lambda net, x: net.c(net.a(x) * net.b(x)), a=nn.Linear(3, 4), b=nn.Linear(3, 1), c=nn.Linear(4, 2)
    )
    assert ("b.weight", 0) not in members(only(sc.trace(net, ROWS)))


def test_meeting_the_input_freezes():
    net = After(lambda net, x: net.b(net.a(x) + x), a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    structure = sc.trace(net, ROWS)
    assert not structure.groups
    assert reasons(structure)["a.weight", 0] == "combined with an unprunable tensor"


def test_a_sum_is_over_zeros_only_as_long_as_they_stay_zero():
    outside = {"a": nn.Linear(3, 4), "b": nn.Linear(5, 2)}
    kept = trace(lambda net, x: net.b(net.a(x).relu().sum(-1)), SEQUENCE, **outside)
    assert members(only(kept))["a.weight", 0] == singles(4)
    for change in (torch.sigmoid, torch.exp, lambda x: x + 1):
        lost = trace(lambda net, x, change=change: net.b(change(net.a(x)).sum(-1)), SEQUENCE, **outside)
        assert not lost.groups
        assert reasons(lost)["a.weight", 0] == "reduced by sum"


@pytest.mark.parametrize("name", ["mean", "amax", "var", "prod", "logsumexp"])
def test_other_reductions_freeze_what_they_run_along(name):
    structure = trace(
        lambda net, x: net.b(getattr(net.a(x), name)(-1)), SEQUENCE, a=nn.Linear(3, 4), b=nn.Linear(5, 2)
    )
    assert reasons(structure)["a.weight", 0] == f"reduced by {name}"


@pytest.mark.parametrize("name", ["mean", "amax", "var", "sum"])
def test_reductions_over_positions_leave_the_channels(name):
    structure = trace(
        lambda net, x: net.b(getattr(net.a(x), name)(1)), SEQUENCE, a=nn.Linear(3, 4), b=nn.Linear(4, 2)
    )
    assert members(only(structure))["b.weight", 1] == singles(4)


@pytest.mark.parametrize(("op", "name"), [(torch.softmax, "softmax"), (torch.log_softmax, "log_softmax")])
def test_softmax_freezes_what_it_runs_along(op, name):
    assert reasons(pair(lambda x: op(x, -1)))["a.weight", 0] == f"{name} runs along it"
    assert only(pair(lambda x: op(x, 1), SEQUENCE))


def test_a_normalised_embedding_may_lose_zeros():
    """x / |x|: the length of x does not see a zero."""
    structure = pair(lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6))
    assert members(only(structure))["b.weight", 1] == singles(4)


def test_cat_beside_the_input_keeps_the_inputs_columns():
    net = After(lambda net, x: net.b(torch.cat([x, net.a(x)], -1)), a=nn.Linear(3, 4), b=nn.Linear(7, 2))
    assert members(only(sc.trace(net, ROWS)))["b.weight", 1] == [[3], [4], [5], [6]]


def test_cat_along_another_dim_ties():
    net = After(
        lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 0)),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2),
    )  # fmt: skip
    found = members(only(sc.trace(net, ROWS)))
    assert found["a.weight", 0] == found["b.weight", 0] == singles(4)


def test_stack_ties_and_its_own_dim_stays():
    net = After(
        lambda net, x: net.c(torch.stack([net.a(x), net.b(x)], 1).sum(1)),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2),
    )  # fmt: skip
    assert members(only(sc.trace(net, ROWS)))["b.weight", 0] == singles(4)


def test_glu_ties_the_gate_to_its_value():
    net = nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2))
    assert members(only(sc.trace(net, ROWS)))["0.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_prelu_with_a_slope_a_channel():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.PReLU(5), nn.Conv2d(5, 2, 1))
    assert members(only(sc.trace(net, IMAGE)))["1.weight", 0] == singles(5)


def test_an_embedding_loses_columns_and_no_words():
    structure = sc.trace(
        nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2)), torch.zeros(2, 3, dtype=torch.long)
    )
    assert members(only(structure)) == {("0.weight", 1): singles(4), ("1.weight", 1): singles(4)}
    assert reasons(structure)["0.weight", 0] == "a vocabulary"


@pytest.mark.parametrize(
    "op",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
        lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    ],
)
def test_pooling_and_resizing_leave_the_channels(op):
    net = Between(nn.Conv2d(3, 5, 1), op, nn.Conv2d(5, 2, 1))
    assert members(only(sc.trace(net, IMAGE)))["b.weight", 1] == singles(5)


# -- what nobody knows -----------------------------------------------------------------------------


def test_an_operator_without_a_rule_is_tried_out():
    """A Fourier transform over positions treats channels one by one."""
    structure = pair(lambda x: torch.fft.fft(x, dim=1).real, SEQUENCE)
    assert members(only(structure))["b.weight", 1] == singles(4)


def test_an_operator_that_works_across_a_dim_is_named():
    structure = pair(lambda x: torch.fft.fft(x, dim=-1).real, SEQUENCE)
    assert not structure.groups
    assert "aten.fft_fft.default works across it" in reasons(structure)["a.weight", 0]


def test_an_operator_with_two_operands_and_no_rule_is_named():
    net = After(
        lambda net, x: net.c(torch.cdist(net.a(x), net.b(x))),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(5, 2),
    )  # fmt: skip
    structure = sc.trace(net, SEQUENCE)
    assert "cdist.default has no rule" in reasons(structure)["a.weight", 0]


def test_writing_into_a_part_freezes():
    def op(net, x):
        y = net.a(x).clone()
        y[:, 1] = 0
        return net.b(y)

    structure = trace(op, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert not structure.groups
    assert ("a.weight", 0) in reasons(structure)
