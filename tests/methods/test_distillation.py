"""A small network learns from a dense one: its outputs, its features, one layer after the other."""

import copy
import warnings

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import CriterionError, ModelError, NonFiniteError
from secateur.task import build_task

X = torch.randn(192, 8, generator=torch.Generator().manual_seed(0))
BATCHES = X.split(32)


def adam(parameters):
    return torch.optim.Adam(parameters, 0.01)


def dense():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4)
    ).eval()


def smaller():
    return sc.prune_to(dense(), X[:2], parameters=0.5)[0]


def agreement(model):
    return float((model.eval()(X).argmax(1) == dense()(X).argmax(1)).float().mean())


def test_outputs_are_taught_without_labels():
    small, before = smaller(), agreement(smaller())
    teacher = dense()
    state = copy.deepcopy(teacher.state_dict())
    found = sc.distill(small, teacher, BATCHES, epochs=30, optimizer=adam)
    assert agreement(small) > before + 0.2
    assert len(found.losses["outputs"]) == 30
    assert all(torch.equal(a, b) for a, b in zip(state.values(), teacher.state_dict().values(), strict=True))
    assert not small.training
    assert all(p.grad is None for p in small.parameters())


def test_features_of_other_widths_are_compared_through_a_map_that_is_thrown_away():
    small = smaller()
    names = set(small.state_dict())
    found = sc.distill(small, dense(), BATCHES, outputs=0, features=["2"], epochs=20, optimizer=adam)
    assert found.losses.keys() == {"2"}
    assert found.losses["2"][-1] < found.losses["2"][0] / 3
    assert set(small.state_dict()) == names


def test_layer_by_layer_trains_each_alone_and_in_its_turn():
    pruned = dense()
    masks = sc.prune(pruned, sc.Magnitude(), sc.Uniform(0.6))
    last = pruned[5].weight.detach().clone()
    found = sc.distill(
        pruned,
        dense(),
        BATCHES,
        features=["0", "2"],
        layer_by_layer=True,
        epochs=15,
        optimizer=adam,
        masks=masks,
    )
    assert list(found.losses) == ["0", "2"]
    assert all(of[-1] < of[0] for of in found.losses.values())
    assert torch.equal(pruned[5].weight, last)  # was not named
    masks.check()


def test_layer_by_layer_runs_nothing_behind_the_layer():
    class Late(nn.Module):
        def forward(self, x):
            raise AssertionError("ran")

    one, other = nn.Sequential(nn.Linear(8, 4), Late()), nn.Sequential(nn.Linear(8, 4), Late())
    found = sc.distill(one, other, BATCHES, features=["0"], layer_by_layer=True, epochs=40, optimizer=adam)
    assert found.losses["0"][-1] < 0.1 * found.losses["0"][0]


def test_labels_and_another_task():
    teacher = nn.Linear(8, 2)
    small = nn.Linear(8, 2)
    data = [(x, teacher(x).detach()) for x in BATCHES]
    task = build_task("regression")
    found = sc.distill(small, teacher, data, labels=1.0, task=task, epochs=40, optimizer=adam)
    assert found.losses.keys() == {"outputs", "labels"}
    assert found.losses["labels"] == pytest.approx(found.losses["outputs"], rel=1e-5)
    assert found.losses["outputs"][-1] < 0.05
    assert "outputs: " in repr(found)


def test_an_error_leaves_the_network_as_it_was():
    small = smaller()
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(NonFiniteError, match="the loss became"):
        sc.distill(small, dense(), [*BATCHES, torch.full((4, 8), float("nan"))], optimizer=adam)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), small.state_dict().values(), strict=True))


def test_the_network_as_a_whole_is_a_feature():
    small = smaller()
    found = sc.distill(small, dense(), BATCHES, outputs=0, features=[""], epochs=20, optimizer=adam)
    assert found.losses[""][-1] < found.losses[""][0] / 3
    assert repr(found).startswith("the network: ")
    with torch.no_grad():
        left = (small(X) - dense()(X)).square().sum() / dense()(X).square().sum()
    assert left < found.losses[""][0]


def test_low_rank_adapters_keep_the_mask_and_are_merged():
    pruned = dense()
    masks = sc.prune(pruned, sc.Magnitude(), sc.Uniform(0.5, per="row"))
    before = copy.deepcopy(pruned)
    found = sc.distill(
        pruned, dense(), BATCHES, outputs=0, features=[""], epochs=20, optimizer=adam, masks=masks, rank=2
    )
    assert found.losses[""][-1] < found.losses[""][0] / 2
    masks.check()
    assert pruned.state_dict().keys() == before.state_dict().keys()
    assert all(type(layer) is type(old) for layer, old in zip(pruned, before, strict=True))
    moved = pruned[2].weight - before[2].weight
    assert bool(moved.any())
    assert not torch.equal(pruned[2].bias, before[2].bias)
    assert all(p.requires_grad for p in pruned.parameters())


def test_what_an_adapter_adds_is_of_low_rank():
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    before = net[0].weight.detach().clone()
    sc.distill(net, smaller(), BATCHES, epochs=5, optimizer=adam, rank=3)
    assert torch.linalg.matrix_rank(net[0].weight.detach() - before, atol=1e-5) == 3


class Tied(nn.Module):
    """A head that shares its weight with the embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.inner(self.embed(x)).relu())


def test_a_tied_weight_has_no_adapter():
    net, teacher, data = Tied(), Tied(), [torch.randint(0, 9, (16, 4))]
    before = copy.deepcopy(net)
    sc.distill(net, teacher, data, outputs=0, features=[""], optimizer=adam, rank=2)
    assert torch.equal(net.embed.weight, before.embed.weight)
    assert net.head.weight is net.embed.weight
    assert not torch.equal(net.inner.weight, before.inner.weight)
    with pytest.raises(ModelError, match="rank adapts the weights of Linear layers, and trains none"):
        sc.distill(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1), [torch.rand(2, 4, 5)], rank=2)


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_block_of_transformers_is_taught_alone(kind, rank):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "Llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        whole = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=16, **sizes))
        block = whole.model.layers[0]
    else:
        config = transformers.GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=8)
        whole = transformers.GPT2LMHeadModel(config)
        block = whole.transformer.h[0]
    data = []

    def note(_, args, kwargs):
        data.append({"hidden_states": args[0], **kwargs} if args else kwargs)

    hook = block.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        for _ in range(4):
            whole(torch.randint(0, 16, (4, 8)), use_cache=False)
    hook.remove()
    for batch in data:
        batch.pop("past_key_values", None)
    pruned = copy.deepcopy(block)
    masks = sc.prune(pruned, sc.Magnitude(), sc.Uniform(0.5, per="row"))
    found = sc.distill(
        pruned, block, data, outputs=0, features=[""], epochs=15, optimizer=adam, masks=masks, rank=rank
    )
    assert found.losses[""][-1] < found.losses[""][0] / 2
    masks.check()
    assert sc.sparsity(pruned) == 0.5


@pytest.mark.parametrize(
    ("options", "error", "wrong"),
    [
        ({"features": ["3.weight"]}, ModelError, "Sequential has no module '3.weight'"),
        ({"features": "2"}, CriterionError, r"it is a list of paths: \['2'\]"),
        ({"layer_by_layer": True}, CriterionError, "name the modules, in their order, in features="),
        ({"outputs": 0}, CriterionError, "nothing is taught"),
        ({"outputs": -1}, CriterionError, "outputs is -1; it is a weight from 0"),
        ({"temperature": 0}, CriterionError, "temperature is 0; it is a positive number"),
        ({"rank": 0}, CriterionError, "rank is 0; it counts from 1"),
        ({"epochs": 0}, CriterionError, "epochs is 0; it counts from 1"),
        ({"labels": 1.0}, CriterionError, "the batches have no labels"),
    ],
)
def test_bad_input_is_one_clear_error(options, error, wrong):
    with pytest.raises(error, match=wrong):
        sc.distill(smaller(), dense(), BATCHES, **options)


def test_data_that_end_cannot_be_read_twice():
    with pytest.raises(CriterionError, match="data is an iterator, which can be read once"):
        sc.distill(smaller(), dense(), iter(BATCHES), epochs=2)


def test_zeros_that_nobody_holds_are_said_to_be_lost():
    pruned = dense()
    masks = sc.prune(pruned, sc.Magnitude(), sc.Uniform(0.5))
    held = copy.deepcopy(pruned)
    with pytest.warns(sc.SecateurWarning, match=r"50\.0% of the weights were zero and are not any more"):
        sc.distill(pruned, dense(), BATCHES, optimizer=adam)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.distill(held, dense(), BATCHES, optimizer=adam, masks=masks.bind(held))
    assert sc.sparsity(held) == 0.5
