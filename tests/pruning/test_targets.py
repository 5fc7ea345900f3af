"""Which tensors may be pruned, under which names, and what is refused."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel

import secateur as sc
from secateur.errors import TargetError
from secateur.graph.names import canonical_modules, canonical_parameters
from secateur.models import MODELS, build_model
from secateur.pruning import targets as targets_module
from secateur.pruning.targets import matches

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


class Everything(nn.Module):
    """One of each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.features = nn.Sequential(nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.ConvTranspose1d(8, 4, 3))
        self.rnn = nn.LSTM(4, 5)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm((4, 4))
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.table = nn.Parameter(torch.zeros(2, 2, dtype=torch.int32), requires_grad=False)
        self.empty = nn.Linear(0, 3)


DEFAULT = [
    "features.0.weight",
    "features.2.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "attention.out_proj.weight",
    "head.weight",
]


def test_weights_of_layers_by_default():
    targets = sc.find_targets(Everything())
    assert list(targets) == DEFAULT
    assert [t.input_dim for t in targets.values()] == [1, 0, 1, 1, 1, 1]
    assert all(t.name == name for name, t in targets.items())


def test_why_the_others_are_protected():
    reasons = sc.find_targets(Everything()).protected
    assert reasons["embed.weight"] == "a parameter of Embedding; include it by name"
    assert reasons["attention.in_proj_weight"] == "a parameter of MultiheadAttention; include it by name"
    assert reasons["norm.weight"] == "a parameter of LayerNorm; include it by name"
    assert reasons["empty.weight"] == "it has no entries"
    assert "head.bias" not in reasons  # nobody expects a bias to be pruned
    named = sc.find_targets(Everything(), include=["scale", "table", "head"])
    assert list(named) == ["head.weight"]
    assert named.protected["scale"] == "a single number"
    assert named.protected["table"] == "its dtype is torch.int32, not a floating-point one"


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_every_conv(kind):
    assert list(sc.find_targets(kind(2, 2, 3))) == ["weight"]


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("head", ["head.weight"]),
        ("head.bias", ["head.bias"]),
        ("features", ["features.0.weight", "features.2.weight"]),
        ("features.*", ["features.0.weight", "features.2.weight"]),  # never the norm's and the biases
        ("*", DEFAULT),
        ("features.1", ["features.1.weight"]),  # a norm, but it was named
        ("embed", ["embed.weight"]),
        ("features.*.bias", ["features.0.bias", "features.1.bias", "features.2.bias"]),
        (["head", "head.bias"], ["head.weight", "head.bias"]),
        (["rnn.weight_*"], ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]),
        (["rnn"], ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]),
        ("attention", ["attention.out_proj.weight"]),
        ("attention.in_proj_weight", ["attention.in_proj_weight"]),
        ("h?ad", ["head.weight"]),
    ],
)
def test_include(include, expected):
    targets = sc.find_targets(Everything(), include=include)
    assert list(targets) == expected
    assert targets.protected["norm.bias"] == "not included by name"


def test_exclude():
    targets = sc.find_targets(Everything(), exclude=["features.*", "*.out_proj", "rnn"])
    assert list(targets) == ["head.weight"]
    assert targets.protected["features.0.weight"] == "excluded by name"
    assert list(sc.find_targets(Everything(), include="*", exclude="head")) == DEFAULT[:-1]


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_names_the_nearest(which):
    with pytest.raises(TargetError, match=rf"^{which} pattern 'haed' matches nothing; did you mean 'head'"):
        sc.find_targets(Everything(), **{which: ["features.*", "haed"]})
    with pytest.raises(TargetError, match=rf"^{which} pattern 'q/x' matches nothing; known: scale, table, "):
        sc.find_targets(Everything(), **{which: "q/x"})


def test_matches():
    assert matches("a.b.weight", "a")
    assert matches("a.b.weight", "a.b")
    assert matches("a.b.weight", "*.weight")
    assert not matches("ab.weight", "a")
    assert not matches("a.b.weight", "b")
    assert not matches("A.weight", "a")  # case counts on every system


def test_nothing_to_prune():
    nothing = "ReLU has no tensor to prune: no weight of a Linear, Conv or recurrent layer"
    with pytest.raises(TargetError, match=f"^{nothing}$"):
        sc.find_targets(nn.ReLU())
    with pytest.raises(TargetError, match=r"recurrent layer that the include and exclude patterns leave$"):
        sc.find_targets(nn.Linear(2, 2), exclude="*")


# -- names -----------------------------------------------------------------------------------------


def test_wrappers_leave_no_trace(mlp):
    net = mlp()
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    compiled = torch.compile(net, backend="eager")
    for wrapped in (net, compiled, AveragedModel(net), nn.DataParallel(net), nn.DataParallel(compiled)):
        assert list(canonical_parameters(wrapped)) == names
    inner = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"))
    assert list(sc.find_targets(inner)) == ["0.weight", "1.weight"]
    assert [n for n, _ in canonical_modules(inner)] == ["", "0", "1"]


def test_a_module_that_is_called_module_keeps_its_name():
    net = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert list(sc.find_targets(net)) == ["module.weight"]


def test_shared_parameters_stand_under_their_first_name():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert list(sc.find_targets(net)) == ["0.weight"]
    shared = nn.Linear(4, 4)
    assert list(sc.find_targets(nn.Sequential(shared, nn.ReLU(), shared))) == ["0.weight"]


@pytest.mark.parametrize("embedding_first", [True, False])
def test_a_weight_tied_to_an_embedding_is_protected(embedding_first):
    embed, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embed.weight
    other = nn.Linear(4, 4)
    net = nn.Sequential(embed, other, head) if embedding_first else nn.Sequential(head, other, embed)
    targets = sc.find_targets(net)
    assert list(targets) == ["1.weight"]
    assert "Embedding; include it by name" in targets.protected["0.weight"]
    assert list(sc.find_targets(net, include="0")) == ["0.weight"]


# -- layers of every kind ------------------------------------------------------------------------------


def test_gpt2_has_targets():
    import transformers

    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=12, vocab_size=11)
    net = transformers.GPT2LMHeadModel(config).eval()
    targets = sc.find_targets(net)
    block = "transformer.h.0"
    assert list(targets) == [
        f"{block}.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert {target.input_dim for target in targets.values()} == {0}
    embedding = targets.protected["transformer.wte.weight"]  # which is the head's weight too
    assert embedding == "a parameter of Embedding; include it by name"
    tokens = torch.randint(0, 11, (3, 7))
    masks = sc.prune(net, sc.Wanda(), sc.NM(2, 4), data=[{"input_ids": tokens}])
    kept = masks[f"{block}.mlp.c_fc.weight"]  # (inputs, outputs)
    assert (kept.reshape(2, 4, -1).sum(1) == 2).all()
    masks.check()


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_weights_of_every_layer_and_direction(kind):
    net = kind(4, 5, num_layers=2, bidirectional=True)
    ends = [f"l{layer}{way}" for layer in (0, 1) for way in ("", "_reverse")]
    assert list(sc.find_targets(net)) == [f"weight_{at}_{end}" for end in ends for at in ("ih", "hh")]
    masks = sc.prune(net, sc.Magnitude(), sc.Global(0.5))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    with masks.held(optimizer):
        for _ in range(3):
            net(torch.randn(6, 2, 4))[0].square().sum().backward()
            optimizer.step()
    assert sc.sparsity(net) == 0.5


def test_projections_and_cells():
    assert list(sc.find_targets(nn.LSTM(4, 5, proj_size=3))) == [
        "weight_ih_l0",
        "weight_hh_l0",
        "weight_hr_l0",
    ]
    for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
        assert list(sc.find_targets(kind(4, 5))) == ["weight_ih", "weight_hh"]


def test_complex_weights_are_ranked_by_their_absolute_value():
    layer = nn.Linear(2, 2, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3 + 4j, 1j], [-2 + 0j, 4.5 + 0j]]))
    masks = sc.prune(layer, sc.Magnitude(), sc.Global(0.5))
    assert masks["weight"].tolist() == [[True, False], [False, True]]
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    with masks.held(optimizer):
        for _ in range(3):
            layer(torch.randn(5, 2, dtype=torch.complex64)).abs().sum().backward()
            optimizer.step()
    assert layer.weight.detach().ne(0).tolist() == masks["weight"].tolist()
    assert sc.sparsity(layer) == 0.5


@pytest.mark.parametrize("criterion", [sc.Random(), sc.Wanda(), sc.Taylor()])
def test_criteria_on_complex_weights(criterion):
    net = nn.Conv1d(2, 3, 3, dtype=torch.complex64)
    x = torch.randn(4, 2, 7, dtype=torch.complex64)
    masks = sc.prune(net, criterion, sc.Global(0.5), data=[(x, x)], loss=lambda y, _: y.abs().square().sum())
    assert masks.sparsity == 0.5


@pytest.mark.parametrize("name", MODELS)
def test_packaged_networks_have_the_weights_of_linear_and_conv_layers(name):
    net = build_model(name, **({"features": 30} if name.startswith("tabular") else {}))
    kinds = (nn.Linear, nn.Conv2d)
    if name == "gpt2":
        from transformers.pytorch_utils import Conv1D

        kinds = (*kinds, Conv1D)
    weights = {f"{path}.weight" for path, module in net.named_modules() if isinstance(module, kinds)}
    if name == "gpt2":  # its classifier is the embedding
        weights -= {"lm_head.weight"}
    assert set(sc.find_targets(net)) == weights


# -- what cannot be pruned ---------------------------------------------------------------------------


def test_sharded_parameters_are_one_clear_error(mlp):
    net = mlp()
    net[2].weight.ds_id = 3  # as DeepSpeed marks its own
    with pytest.raises(TargetError, match=r"^2\.weight: sharded over processes .* before it is sharded$"):
        sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    assert list(sc.find_targets(net, exclude="2")) == ["0.weight"]


def test_uninitialised_meta_and_torch_pruned(mlp):
    with pytest.raises(TargetError, match=r"^0\.weight: not initialised yet; run the model once"):
        sc.find_targets(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(TargetError, match=r"^weight: on the meta device, so it has no values to rank"):
        sc.find_targets(nn.Linear(2, 2, device="meta"))
    net = mlp()
    torch_prune.l1_unstructured(net[0], "weight", 0.5)
    with pytest.raises(
        TargetError, match=r"^0\.weight_orig: pruned by torch\.nn\.utils\.prune.*from_torch_p"
    ):
        sc.find_targets(net)


# -- sparsity ----------------------------------------------------------------------------------------


def test_sparsity_counts_target_weights_of_the_dense_network(mlp):
    net = mlp()
    assert sc.sparsity(net) == 0
    with torch.no_grad():
        net[0].weight[:4] = 0  # 32 of 128 + 64
        net[0].bias.zero_()  # not a target
    assert sc.sparsity(net) == pytest.approx(32 / 192)
    small = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    assert sc.sparsity(small, dense=net) == pytest.approx(1 - 48 / 192)
    with pytest.raises(TargetError, match="Sequential has no tensor to prune"):
        sc.sparsity(net, dense=nn.Sequential())


def test_examples_of_the_docstrings():
    found = doctest.testmod(targets_module)
    assert found.attempted >= 5
    assert not found.failed
