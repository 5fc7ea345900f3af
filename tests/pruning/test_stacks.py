"""Stacks of experts' matrices: what they multiply is seen whichever way a network multiplies by them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import CriterionError
from secateur.pruning.stacks import Watch

transformers = pytest.importorskip("transformers")
WAYS = ["grouped_mm", "eager", "batched_mm"]


def network(kind, way):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
    }  # fmt: skip
    more = {"num_local_experts": 5}
    if kind == "Qwen3Moe":
        more = {"num_experts": 6, "moe_intermediate_size": 16, "head_dim": 6}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, experts_implementation=way)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def read_by(mlp, x):
    """Return by expert what its two matrices multiply: tokens, and neurons."""
    x = x.reshape(-1, x.shape[-1])
    chosen = F.linear(x, mlp.gate.weight).topk(2).indices
    tokens, neurons = [], []
    for number, up in enumerate(mlp.experts.gate_up_proj):
        own = x[(chosen == number).any(1)]
        gate, value = F.linear(own, up).chunk(2, -1)
        tokens.append(own)
        neurons.append(F.silu(gate) * value)
    return tokens, neurons


def given(model, inputs):
    """Return what the first mixture is called with."""
    seen = []
    mlp = model.model.layers[0].mlp
    with mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.no_grad():
        model(**inputs)
    return mlp, seen[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_single_weights_of_experts_by_wanda(kind, way):
    model, inputs = network(kind, way), {"input_ids": torch.randint(3, 61, (3, 11))}
    mlp, x = given(model, inputs)
    with torch.no_grad():
        parts = dict(zip(("gate_up_proj", "down_proj"), read_by(mlp, x), strict=True))
    targets = sc.find_targets(model, include="model.layers.0.mlp.experts.*_proj")
    scores = sc.Wanda()(targets, data=[inputs])
    for leaf, read in parts.items():
        weight = getattr(mlp.experts, leaf).detach()
        whole = torch.cat(read)
        for number, own in enumerate(read):
            rms = (own if len(own) else whole).square().mean(0).sqrt()
            found = scores[f"model.layers.0.mlp.experts.{leaf}"](slice(number, number + 1))[0]
            torch.testing.assert_close(found, weight[number].abs() * rms, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_neurons_of_experts_by_their_activations(kind, way):
    model, inputs = network(kind, way), {"input_ids": torch.randint(3, 61, (3, 11))}
    mlp, x = given(model, inputs)
    with torch.no_grad():
        neurons = torch.cat(read_by(mlp, x)[1])
    structure = sc.trace(model, inputs)
    found = sc.ActivationNorm(normalise=False)(structure, data=[inputs])
    (name,) = [n for n in structure.groups if "layers.0.mlp.experts" in n]
    norms = mlp.experts.down_proj.detach().square().sum((0, 1)).sqrt()
    expected = neurons.square().mean(0).sqrt() * norms
    torch.testing.assert_close(found[name].float(), expected, rtol=1e-4, atol=1e-8)
    sc.prune(
        model, sc.ActivationNorm(), sc.Uniform(0.5), structure=structure, data=[inputs], include="*experts*"
    )
    assert int((mlp.experts.down_proj[0, 0] == 0).sum()) == len(norms) // 2


def test_a_block_traced_alone():
    block = network("Mixtral", "eager").model.layers[0].mlp
    structure = sc.trace(block, torch.randn(2, 5, 24))
    masks = sc.prune(
        block, sc.ActivationNorm(), sc.Uniform(0.25), structure=structure, data=[torch.randn(2, 5, 24)]
    )
    assert list(masks.units.values()) == [(24, 32)]


def test_as_many_of_each_row_and_of_every_four():
    model, inputs = network("Mixtral", "grouped_mm"), {"input_ids": torch.randint(3, 61, (3, 11))}
    chosen = {"include": "*experts.*_proj", "data": [inputs]}
    masks = sc.prune(model, sc.Wanda(), sc.Uniform(0.25, per="row"), **chosen)
    for mask in masks.values():
        assert (mask.sum(2) == mask.shape[2] - round(0.25 * mask.shape[2])).all()
    masks = sc.prune(network("Mixtral", "grouped_mm"), sc.Wanda(), sc.NM(2, 4), **chosen)
    for mask in masks.values():
        assert (mask.view(-1, 4).sum(1) == 2).all()


STACK = torch.arange(24.0).view(2, 3, 4)
X = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("product", "dim", "squares", "number"),
    [
        (lambda w: X @ w[1].T, 2, [[0, 0, 0, 0], [1, 5, 9, 17]], [[0] * 4, [2] * 4]),
        (lambda w: F.linear(X, w[0], torch.zeros(3)), 2, [[1, 5, 9, 17], [0] * 4], [[2] * 4, [0] * 4]),
        (lambda w: X[:, :3] @ w[1], 1, [[0] * 3, [1, 5, 9]], [[0] * 3, [2] * 3]),
        (lambda w: X[:, :2] @ w[1, 1:3], 1, [[0] * 3, [0, 1, 5]], [[0] * 3, [0, 2, 2]]),
        (lambda w: X[:, :2] @ w[0, :, 2:].T, 2, [[0, 0, 1, 5], [0] * 4], [[0, 0, 2, 2], [0] * 4]),
        (lambda w: torch.bmm(X[:, None], w.mT), 2, [[1, 4, 9, 16], [0, 1, 0, 1]], [[1] * 4] * 2),
        (lambda w: torch.bmm(w, X[:, :, None]), 2, [[1, 4, 9, 16], [0, 1, 0, 1]], [[1] * 4] * 2),
        (
            lambda w: torch.bmm(w[torch.tensor([1, 1])], X[:, :, None]),
            2,
            [[0] * 4, [1, 5, 9, 17]],
            [[0] * 4, [2] * 4],
        ),
    ],
    ids=range(8),
)
def test_every_way_to_multiply(product, dim, squares, number):
    stack = nn.Parameter(STACK.clone())
    with torch.no_grad(), Watch({"w": stack}) as watch:
        product(stack)
        torch.zeros(3, 4) @ torch.zeros(4, 2)  # of no interest
    (place,) = watch.sums
    assert place == ("w", dim)
    assert watch.sums[place].squares.tolist() == squares
    assert watch.sums[place].number.tolist() == number


def test_a_stack_that_nothing_multiplies():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.Parameter(torch.rand(2, 3, 4))

        def forward(self, x):
            return x + self.stack.sum()

    with pytest.raises(CriterionError, match="stack: its layer never ran"):
        sc.prune(Odd(), sc.Wanda(), sc.Uniform(0.5), include="stack", data=[torch.ones(2)])
