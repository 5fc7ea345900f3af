"""Layers pruned in running order: each by what it reads once those before it are pruned."""

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, CriterionError

IN_ORDER = sc.Wanda(sequential=True)
ROWS = sc.Uniform(0.5, per="row")


def weights(net):
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_layer_sees_what_those_before_it_leave():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[3.0, 1.0], [1.0, 4.0]])
    net[1].weight.data = torch.tensor([[1.0, 1.5]])
    x = torch.tensor([[1.0, 0.5]])
    # Dense, the second layer reads (3.5, 3): its scores are 3.5 and 4.5. The first one's are 3, 0.5 and 1, 2.
    assert sc.prune(copy.deepcopy(net), sc.Wanda(), ROWS, data=[x])["1.weight"].tolist() == [[False, True]]
    # Of the first, 1 and 1 go: what is left gives (3, 2), so that the second's scores are 3 and 3: a tie.
    net[1].weight.data = torch.tensor([[1.1, 1.5]])
    masks = sc.prune(net, IN_ORDER, ROWS, data=[x])
    assert masks["0.weight"].tolist() == [[True, False], [False, True]]
    assert masks["1.weight"].tolist() == [[True, False]]


def branched():
    """Layers that stand in another order than they run, one of them called twice, and a convolution."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.twice, self.first = nn.Linear(8, 4), nn.Linear(8, 8), nn.Linear(6, 8)
            self.conv = nn.Conv1d(2, 2, 3, padding=1)

        def forward(self, x):
            x = self.first(x).relu()
            x = self.conv(x.view(-1, 2, 4)).flatten(1).relu()
            return self.last(self.twice(self.twice(x).relu()).relu())

    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("budget", [sc.Uniform(0.5), ROWS, sc.PerLayer({"*": 0.25, "last": 0.5})], ids=str)
def test_as_pruned_layer_by_layer(budget):
    net, data = branched(), list(torch.randn(3, 16, 6).unbind())
    by_hand, given = copy.deepcopy(net), weights(net)
    masks = sc.prune(net, IN_ORDER, budget, data=data)
    for name in ("first", "conv", "twice", "last"):
        alone = budget if not isinstance(budget, sc.PerLayer) else sc.PerLayer({name: 0.25})
        sc.prune(by_hand, sc.Wanda(), alone, data=data, include=name)
    assert [*masks] == [*sc.find_targets(net)]
    assert same(weights(net), weights(by_hand))
    assert any(
        not torch.equal(mask, sc.prune(other, sc.Wanda(), budget, data=data)[name])
        for other in (branched(),)
        for name, mask in masks.items()
    )
    assert all(torch.equal(given[n] * masks[n], weights(net)[n]) for n in masks)


def test_n_of_m_and_earlier_masks():
    net, data = branched(), [torch.randn(16, 6)]
    first = sc.prune(net, IN_ORDER, sc.Uniform(0.25, per="row"), data=data)
    then = sc.prune(net, IN_ORDER, ROWS, data=data, masks=first)
    assert all(not (then[name] & ~first[name]).any() for name in first)
    assert then.sparsity == 0.5
    masks = sc.prune(branched(), IN_ORDER, sc.NM(2, 4), data=data)
    assert masks["last.weight"].view(-1, 4).sum(1).tolist() == [2] * 8
    assert any("no input dim that divides" in note for note in masks.notes)


def test_a_block_of_transformers_in_running_order():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes))
    by_hand, data = copy.deepcopy(net), [{"input_ids": torch.randint(0, 32, (4, 9))} for _ in range(2)]
    sc.prune(net, IN_ORDER, ROWS, data=data, exclude="lm_head")
    for layer in ("layers.0", "layers.1"):
        for own in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            sc.prune(by_hand, sc.Wanda(), ROWS, data=data, include=f"*{layer}.*{own}")
    assert same(weights(net), weights(by_hand))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"budget": sc.Global(0.5)},
            BudgetError,
            "and Global compares them; Uniform",
        ),
        ({"granularity": sc.Block(2, 2)}, CriterionError, "sequential is for single weights"),
        ({"data": iter([torch.ones(2, 6)])}, CriterionError, "reads data several times"),
        ({"data": []}, CriterionError, "without a single batch"),
        ({"data": None}, CriterionError, "needs data"),
        ({"data": [torch.zeros(4, 6)], "include": "first"}, CriterionError, "all 48 scores are 0"),
    ],
)
def test_what_is_refused_changes_nothing(options, error, message):
    net = branched()
    before = weights(net)
    given = {"budget": sc.Uniform(0.5), "data": [torch.randn(4, 6)]} | options
    with pytest.raises(error, match=message):
        sc.prune(net, IN_ORDER, given.pop("budget"), **given)
    assert same(before, weights(net))


def test_units_and_what_is_no_switch():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    structure = sc.trace(net, torch.ones(2, 6))
    with pytest.raises(CriterionError, match="sequential is for single weights"):
        sc.prune(net, IN_ORDER, sc.Uniform(0.5), structure=structure, data=[torch.ones(2, 6)])
    with pytest.raises(CriterionError, match="sequential is 1; it is True or False"):
        sc.Wanda(sequential=1)


def test_a_layer_that_never_runs_is_named():
    net = branched()
    net.spare = nn.Linear(3, 3)
    with pytest.raises(CriterionError, match=r"spare\.weight: its layer never ran"):
        sc.prune(net, IN_ORDER, sc.Uniform(0.5), data=[torch.randn(4, 6)])
