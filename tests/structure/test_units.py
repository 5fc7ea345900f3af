"""``trace``: the groups of whole networks, their names and counts, and what is protected."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from networks.attention import FusedHeads, GroupedQuery
from networks.comparing import snapshot, unchanged
from networks.groups import members, only, reasons, singles
from networks.parts import After
from networks.plain import Concat, mlp
from networks.residual import Residual
from secateur.errors import ModelError

ROWS = torch.zeros(4, 3)
IMAGE = torch.zeros(2, 3, 8, 8)
SEQUENCE = torch.zeros(2, 5, 7)


def test_an_mlp():
    structure = sc.trace(mlp(3, 5, 7, 2), ROWS)
    assert list(structure.groups) == ["0 -> 2", "2 -> 4"]
    first, second = structure.groups.values()
    assert members(first) == {p: singles(5) for p in [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]}
    assert members(second) == {p: singles(7) for p in [("2.weight", 0), ("2.bias", 0), ("4.weight", 1)]}
    assert (len(first), first.parameters, first.macs) == (5, 3 + 1 + 7, 4 * (3 + 7))
    assert (len(second), second.parameters, second.macs) == (7, 5 + 1 + 2, 4 * (5 + 2))


def test_a_residual_network():
    structure = sc.trace(Residual(), IMAGE)
    assert list(structure.groups) == ["stem, b -> a, head", "a -> b"]
    trunk, inside = structure.groups.values()
    made = ["stem.weight", "stem.bias", "bn.weight", "bn.bias", "b.weight", "bn_b.weight", "bn_b.bias"]
    buffers = [f"{n}.{b}" for n in ("bn", "bn_b") for b in ("running_mean", "running_var")]
    read = [("a.weight", 1), ("head.weight", 1)]
    assert members(trunk) == {p: singles(6) for p in [*((n, 0) for n in made + buffers), *read]}
    assert {(p.name, p.dim) for p in trunk.slices if p.reads} == set(read)
    assert {p.name for p in trunk.slices if not p.masked} == set(buffers)
    assert set(members(inside)) == {
        ("a.weight", 0), ("bn_a.weight", 0), ("bn_a.bias", 0), ("b.weight", 1),
        ("bn_a.running_mean", 0), ("bn_a.running_var", 0),
    }  # fmt: skip
    assert trunk.parameters == 27 + 1 + 2 + 45 + 45 + 2 + 4
    assert inside.parameters == 54 + 2 + 54
    assert inside.macs == 2 * 64 * (54 + 54)


def test_branches_beside_each_other():
    first, second = sc.trace(Concat(), ROWS).groups.values()
    assert members(first)["c.weight", 1] == [[0], [1], [2], [3]]
    assert members(second)["c.weight", 1] == [[4], [5], [6], [7], [8]]
    assert (first.name, second.name) == ("a -> c", "b -> c")


def test_heads_behind_a_fused_projection():
    group = only(sc.trace(FusedHeads(), SEQUENCE))
    rows = [[c + 12 * part for part in range(3) for c in range(4 * h, 4 * h + 4)] for h in range(3)]
    assert members(group) == {
        ("qkv.weight", 0): rows,
        ("qkv.bias", 0): rows,
        ("out.weight", 1): [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
    }
    assert group.name == "qkv -> out"
    assert group.parameters == 12 * 7 + 12 + 4 * 7
    assert group.macs == 2 * 5 * (12 * 7 + 4 * 7)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_key_value_head_goes_with_its_query_heads(scale):
    group = only(sc.trace(GroupedQuery(scale), SEQUENCE))
    twelve, four = [list(range(12)), list(range(12, 24))], [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert members(group) == {
        ("q.weight", 0): twelve, ("k.weight", 0): four, ("v.weight", 0): four, ("o.weight", 1): twelve,
    }  # fmt: skip
    assert group.name == "q, k +1 -> o"


def test_positions_of_grouped_query_heads():
    structure = sc.trace(GroupedQuery(), SEQUENCE, heads="dims")
    scores, values = structure.groups.values()
    assert members(scores)["q.weight", 0] == [[d + 4 * h for h in range(6)] for d in range(4)]
    assert members(scores)["k.weight", 0] == [[d, d + 4] for d in range(4)]
    assert members(values)["v.weight", 0] == [[d, d + 4] for d in range(4)]
    assert members(values)["o.weight", 1] == [[d + 4 * h for h in range(6)] for d in range(4)]


def test_heads_is_one_of_three_words():
    with pytest.raises(ValueError, match=r"heads is 'all'; it is 'whole', 'dims' or 'queries'"):
        sc.trace(mlp(3, 4, 2), ROWS, heads="all")


def test_a_shared_module_is_one_group():
    net = After(lambda net, x: net.c(net.b(net.a(x).relu()).relu() + net.b(net.a(-x))),
                a=nn.Linear(3, 4), b=nn.Linear(4, 5), c=nn.Linear(5, 2))  # fmt: skip
    first, second = sc.trace(net, ROWS).groups.values()
    assert members(first) == {p: singles(4) for p in [("a.weight", 0), ("a.bias", 0), ("b.weight", 1)]}
    assert members(second)["c.weight", 1] == singles(5)
    assert first.macs == 2 * 4 * (3 + 5)


def test_tied_embeddings_stand_under_their_first_name():
    net = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 4), nn.Linear(4, 11, bias=False))
    net[2].weight = net[0].weight
    structure = sc.trace(net, torch.zeros(2, 3, dtype=torch.long))
    names = {name for g in structure.groups.values() for name, _ in members(g)}
    assert names == {"0.weight", "1.weight", "1.bias"}


def test_a_unit_on_both_sides_of_one_weight():
    """h = W h: row i and column i go together."""
    net = After(lambda net, x: net.b(net.w(net.w(net.a(x)))),
                a=nn.Linear(3, 4), w=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 2))  # fmt: skip
    group = only(sc.trace(net, ROWS))
    assert members(group)["w.weight", 0] == members(group)["w.weight", 1] == singles(4)
    assert group.parameters == 3 + 1 + 4 + 4 + 2


def test_what_is_protected_and_why():
    assert reasons(sc.trace(mlp(3, 5, 2), ROWS)) == {
        ("0.weight", 1): "combined with an unprunable tensor",
        ("2.weight", 0): "model output",
    }


def test_protected_counts():
    structure = sc.trace(mlp(3, 5, 2), ROWS)
    assert [(p.name, p.dim, p.kept, p.size) for p in structure.protected] == [
        ("0.weight", 1, 3, 3),
        ("2.weight", 0, 2, 2),
    ]


def test_unused_parameters_are_protected():
    net = After(lambda net, x: net.b(net.a(x)), a=nn.Linear(3, 4), b=nn.Linear(4, 2), z=nn.Linear(4, 6))
    assert reasons(sc.trace(net, ROWS))["z.weight", 0] == "this forward does not use it"


def test_a_dim_whose_indices_only_go_together_is_protected():
    net = After(lambda net, x: net.b(net.a(x).view(-1, 1, 4).sum(1)), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert only(sc.trace(net, ROWS))
    tied = After(lambda net, x: net.b(net.a(x).expand(-1, 4)), a=nn.Linear(3, 1), b=nn.Linear(4, 2))
    assert not sc.trace(tied, ROWS).groups
    of_input = After(lambda net, x: net.b(x[:, :1].expand(-1, 4)), b=nn.Linear(4, 2))
    assert not sc.trace(of_input, ROWS).groups


def test_nothing_to_prune():
    structure = sc.trace(nn.Linear(3, 2), ROWS)
    assert len(structure) == 0
    assert "model output" in repr(structure)


def test_printing():
    lines = repr(sc.trace(mlp(3, 5, 7, 2), ROWS)).splitlines()
    assert lines[0].split() == ["group", "units", "parameters", "a", "unit", "MACs", "a", "unit", "in"]
    assert lines[1].split() == ["0", "->", "2", "5", "11", "40", "3", "tensors"]
    assert lines[2].split() == ["2", "->", "4", "7", "8", "28", "3", "tensors"]
    assert lines[3] == "protected:"
    assert lines[4].split() == ["dim", "stays", "because"]
    assert lines[5].split()[:6] == ["0.weight", "1", "3", "of", "3", "combined"]
    assert lines[6].split() == ["4.weight", "0", "2", "of", "2", "model", "output"]


def test_groups_of_one_name_are_told_apart():
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.a(x)
            return self.b(torch.cat([y[:, :3].repeat(1, 1), y[:, 3:].relu()], -1))

    structure = sc.trace(Uneven(), ROWS)
    assert sum(len(g) for g in structure.groups.values()) == 8
    assert all(name == group.name for name, group in structure.groups.items())


@pytest.mark.parametrize(
    "inputs", [ROWS, (ROWS,), [ROWS], {"x": ROWS}], ids=["tensor", "tuple", "list", "dict"]
)
def test_example_inputs_in_every_shape(inputs):
    net = After(lambda net, x: net.b(net.a(x)), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert only(sc.trace(net, inputs)).parameters == 3 + 1 + 2


def test_keywords():
    net = After(lambda net, x, scale=None: net.b(net.a(x) * scale), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert only(sc.trace(net, ROWS, kwargs={"scale": torch.ones(4, 1)}))
    assert not sc.trace(net, ROWS, kwargs={"scale": torch.ones(4)}).groups


def test_dynamic_shapes():
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    structure = sc.trace(mlp(3, 5, 2), ROWS, dynamic_shapes=shapes)
    assert members(only(structure))["0.weight", 0] == singles(5)


def test_the_model_is_left_as_it_was():
    net = Residual().train()
    net.bn_a.eval()
    before, modes = snapshot(net), [m.training for m in net.modules()]
    sc.trace(net, IMAGE)
    assert unchanged(net, before)
    assert [m.training for m in net.modules()] == modes
    assert all(p.requires_grad for p in net.parameters())


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        net, x = Residual(), torch.zeros(2, 3, 8, 8)
    there = sc.trace(net, x)
    here = sc.trace(Residual(), IMAGE)
    assert {n: members(g) for n, g in there.groups.items()} == {n: members(g) for n, g in here.groups.items()}


def test_wrappers_leave_no_trace():
    net = mlp(3, 4, 2)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    assert list(sc.trace(averaged, ROWS).groups) == ["0 -> 2"]
    assert list(sc.trace(torch.compile(net), ROWS).groups) == ["0 -> 2"]


def test_the_fast_path_of_attention_is_left_as_it_was():
    before = torch.backends.mha.get_fastpath_enabled()
    sc.trace(mlp(3, 4, 2), ROWS)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_model_that_asks_for_values_is_traced_as_it_ran():
    class Asks(nn.Module):
        def forward(self, x):
            return x.sum() if float(x.sum()) > 0 else x

    structure = sc.trace(Asks(), ROWS)
    assert not structure.groups
    assert "as it ran on the example inputs" in repr(structure)


def test_a_model_that_does_not_run_is_the_same_error():
    with pytest.raises(ModelError, match="Sequential does not run on example inputs"):
        sc.trace(mlp(3, 4, 2), torch.zeros(4, 5))


GLOBAL = nn.ModuleDict({"a": nn.Linear(3, 6), "b": nn.Linear(6, 2)})


def test_a_forward_that_reads_the_network_by_a_global_name_is_refused():
    GLOBAL.forward = lambda x: GLOBAL["b"](GLOBAL["a"](x).relu())
    with pytest.raises(ModelError, match="by another way than self"):
        sc.trace(GLOBAL, torch.zeros(2, 3))


class Positions(nn.Module):
    """Learned positions, of which an example reads as many as it is long."""

    def __init__(self):
        super().__init__()
        self.make, self.read = nn.Linear(4, 12), nn.Linear(12, 3)
        self.table = nn.Parameter(torch.randn(1, 16, 12))

    def forward(self, x):
        return self.read((self.make(x) + self.table[:, : x.shape[1]]).relu()).sum(1)


class Slimmable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 12)
        self.c = nn.Linear(12, 3)

    def forward(self, x, width=8):
        h = F.linear(x, self.a.weight[:width], self.a.bias[:width]).relu()
        return self.c(F.linear(h, self.b.weight[:, :width], self.b.bias).relu())


def test_what_another_input_may_read_of_a_parameter_stays():
    torch.manual_seed(0)
    net, x, longer = Positions().eval(), torch.randn(2, 8, 4), torch.randn(2, 13, 4)
    structure = sc.trace(net, x)
    assert [len(group) for group in structure.groups.values()] == [12]
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    with torch.no_grad():
        net.table[:, 10] = 0
    small, _ = sc.compact(net, x)
    assert small.table.shape == (1, 16, 6)
    assert torch.allclose(small(longer), net(longer), atol=1e-5)
    net, x = Slimmable().eval(), torch.randn(2, 4)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=sc.trace(net, x))
    small, _ = sc.compact(net, x)
    assert small.b.weight.shape == (6, 16)
    assert torch.allclose(small(x, width=15), net(x, width=15), atol=1e-5)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(5, 16), nn.Linear(16, 2), torch.rand(16)
        self.c = nn.Linear(2, 3, dtype=torch.complex64)

    def forward(self, x):
        return self.c(self.b(torch.relu(self.a(x) * self.scale)) + 0j).abs()


def test_whatever_stays_is_named_with_what_keeps_it():
    reasons = {(p.name, p.dim): p.reason for p in sc.trace(Scaled(), torch.randn(3, 5)).protected}
    assert reasons["a.weight", 0] == "combined with scale, a tensor that is no parameter or buffer"
    assert reasons["c.weight", 0] == reasons["c.weight", 1] == "its numbers are complex"
