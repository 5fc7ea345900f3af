"""``nn.MultiheadAttention`` with fewer heads or inputs, in every way it can be called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from networks.comparing import error, snapshot, unchanged, wide
from networks.groups import members
from networks.parts import After
from secateur.errors import SecateurError
from secateur.structure.replaced.attention import PrunedAttention, become_pruned_attention

X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def attention(**options) -> nn.MultiheadAttention:
    net = nn.MultiheadAttention(12, 3, **{"batch_first": True, **options}).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def twin(net: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """The same module in its pruned form, with nothing gone."""
    other = copy.deepcopy(net)
    become_pruned_attention(other)
    return other


def same(a, b) -> bool:
    return all(
        (u is None and v is None) or torch.allclose(u, v, rtol=0, atol=1e-12)
        for u, v in zip(a, b, strict=True)
    )


PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": False},
        {"bias": False},
        {"kdim": 12, "vdim": 12},
        {"add_bias_kv": True},
        {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "need_weights": False, "is_causal": True},
        {"attn_mask": torch.randn(5, 5, dtype=torch.float64)},
    ],
)
def test_equal_to_torchs(options, call):
    net = attention(**options)
    x, y = (X, Y) if net.batch_first else (X.transpose(0, 1), Y.transpose(0, 1))
    assert same(net(x, y, y, **call), twin(net)(x, y, y, **call))


@pytest.mark.parametrize("mask", [None, CAUSAL, torch.randn(6, 5, 5, dtype=torch.float64)])
@pytest.mark.parametrize("need", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_padding_masks(mask, need, options):
    if mask is not None and mask.dtype != torch.bool:
        padding = torch.zeros(2, 5, dtype=torch.float64).masked_fill(PADDING, float("-inf"))
    else:
        padding = PADDING
    net = attention(**options)
    call = {"key_padding_mask": padding, "attn_mask": mask, "need_weights": need}
    assert same(net(X, X, X, **call), twin(net)(X, X, X, **call))


def test_without_a_batch():
    net = attention()
    assert same(net(X[0], Y[0], Y[0]), twin(net)(X[0], Y[0], Y[0]))
    call = {"key_padding_mask": PADDING[1], "need_weights": False}
    assert same(net(X[0], Y[0], Y[0], **call), twin(net)(X[0], Y[0], Y[0], **call))


def test_other_keys_and_values():
    net = attention(kdim=7, vdim=9)
    k, v = torch.randn(2, 6, 7, dtype=torch.float64), torch.randn(2, 6, 9, dtype=torch.float64)
    assert same(net(X, k, v), twin(net)(X, k, v))


def test_a_mask_for_every_head_does_not_fit_fewer_heads():
    net = twin(attention())
    net.num_heads = 2
    net.head_dim = 6
    with pytest.raises(ValueError, match="attn_mask has 3 heads and 2 are left"):
        net(X, X, X, attn_mask=torch.zeros(6, 5, 5, dtype=torch.float64))


def test_pruned_attention_says_what_it_is():
    net = twin(attention())
    assert isinstance(net, PrunedAttention)
    assert isinstance(net, nn.MultiheadAttention)
    assert (net.num_heads, net.embed_dim, net.head_dim) == (3, 12, 4)
    assert set(net.state_dict()) == set(attention().state_dict())


def attends(**options) -> After:
    def op(net: After, x: Tensor) -> Tensor:
        h = net.inside(x)
        return net.out(h + net.attention(h, h, h, need_weights=False)[0])

    net = After(op, inside=nn.Linear(7, 12), attention=attention(**options), out=nn.Linear(12, 5))
    return wide(net)


@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_a_head_is_a_unit(options):
    structure = sc.trace(attends(**options), torch.zeros(2, 5, 7, dtype=torch.float64))
    heads = next(g for g in structure.groups.values() if len(g) == 3)
    found = members(heads)
    rows = [[c + 12 * part for part in range(3) for c in range(4 * h, 4 * h + 4)] for h in range(3)]
    assert found["attention.in_proj_weight", 0] == rows
    assert found["attention.out_proj.weight", 1] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": False}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}],
)
def test_heads_and_channels_go(options):
    net = attends(**options)
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    before = snapshot(net)
    small, proof = sc.compact(net, x, structure=structure)
    assert type(small.attention) is PrunedAttention
    assert type(net.attention) is nn.MultiheadAttention
    assert not proof.kept
    assert small.attention.num_heads == 1
    assert small.attention.embed_dim == 6
    assert error(net, small, x, torch.randn(3, 4, 7, dtype=torch.float64)) < 1e-9
    assert unchanged(net, before)


@pytest.mark.parametrize("first", [False, True])
def test_an_encoder_layer_in_both_modes(first):
    layer = nn.TransformerEncoderLayer(12, 3, 20, norm_first=first, batch_first=True, dropout=0.0)
    net = wide(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    structure = sc.trace(net, X)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, X, structure=structure)
    assert proof.parameters[1] < 0.7 * proof.parameters[0]
    assert error(net, small, X, Y) < 1e-9
    assert error(net.train(), small.train(), X, Y) < 1e-9
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    assert error(net, small, X, mask=causal) < 1e-9
    net.eval()
    small.eval()
    assert error(net, small, X, src_key_padding_mask=PADDING) < 1e-9


def test_gradients_flow_through_a_pruned_attention():
    net = attends()
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small = sc.compact(net, x, structure=structure)[0]
    small(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters())


# -- torch's encoder, whose fused layers read sequences without their padding -------------------------

HOLES = torch.tensor([[False] * 5, [False, True, False, True, False]])
TRIANGLE = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
CALLS = {
    "plain": {},
    "padding": {"src_key_padding_mask": PADDING},
    "holes": {"src_key_padding_mask": HOLES},
    "all but one padded": {"src_key_padding_mask": torch.tensor([[False] + [True] * 4] * 2)},
    "float padding": {"src_key_padding_mask": torch.zeros(2, 5).double().masked_fill(PADDING, -torch.inf)},
    "causal": {"mask": TRIANGLE, "is_causal": True},
    "both": {"mask": CAUSAL, "src_key_padding_mask": PADDING},
}


def encoder(layers: int = 3, **options) -> nn.TransformerEncoder:
    """Four heads: with an odd number torch's encoder has no fast path."""
    layer = nn.TransformerEncoderLayer(12, 4, 20, **{"dropout": 0.0, "batch_first": True, **options})
    return wide(nn.TransformerEncoder(layer, layers))


def halved(net: nn.Module, x: Tensor = X, **options) -> nn.Module:
    """Prune in place, and return what is left of it."""
    structure = sc.trace(net, x)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, **options)
    return sc.compact(net, x, structure=structure)[0].eval()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "gelu"}, {"norm_first": True}, {"batch_first": False}, {"bias": False}],
    ids=str,
)
def test_an_encoder_runs_in_every_path(options):
    net = encoder(**options)
    x = X if options.get("batch_first", True) else X.transpose(0, 1)
    small = halved(net, x)
    assert all(type(layer.self_attn) is PrunedAttention for layer in small.layers)
    for training in (False, True):
        for grad in (False, True):
            for name, call in CALLS.items():
                with torch.set_grad_enabled(grad):
                    expected, found = net.train(training)(x, **call), small.train(training)(x, **call)
                assert torch.allclose(expected, found, rtol=0, atol=1e-9), (name, training, grad)


@pytest.mark.parametrize("pattern", ["layers.0.*", "layers.1.*", "*linear1*"])
def test_an_encoder_of_which_some_layers_keep_their_heads(pattern):
    net = encoder()
    small = halved(net, include=pattern)
    kinds = {type(layer.self_attn) for layer in small.layers}
    assert (PrunedAttention in kinds) is pattern.startswith("layers")
    with torch.no_grad():
        for call in CALLS.values():
            assert torch.allclose(net(X, **call), small(X, **call), rtol=0, atol=1e-9)


def test_the_proof_itself_runs_on_padded_examples():
    net = encoder()
    structure = sc.trace(net, X)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, (X, None, PADDING), structure=structure)
    assert not proof.kept
    assert small.layers[0].self_attn.num_heads == 2


def test_a_pruned_encoder_keeps_its_paths_when_saved_and_copied(tmp_path):
    net = encoder()
    small = halved(net)
    sc.save(small, tmp_path / "small.safetensors")
    loaded = sc.load(encoder(), tmp_path / "small.safetensors").eval()
    with torch.no_grad():
        expected = net(X, src_key_padding_mask=PADDING)
        for again in (loaded, copy.deepcopy(small)):
            assert torch.allclose(expected, again(X, src_key_padding_mask=PADDING), rtol=0, atol=1e-9)
    assert net.use_nested_tensor
    assert type(net.layers[0].self_attn) is nn.MultiheadAttention


@pytest.mark.parametrize("first", [False, True])
def test_nested_sequences(first):
    net = encoder(norm_first=first)
    small = halved(net)
    nested = torch.nested.nested_tensor([X[0, :2], X[1]])
    with torch.no_grad():
        for one, other in ((net, small), (net.layers[0], small.layers[0])):
            pairs = zip(one(nested).unbind(), other(nested).unbind(), strict=True)
            assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in pairs)


def test_nested_sequences_alone():
    net = attention()
    nested = torch.nested.nested_tensor([X[0, :2], X[1]])
    out, _ = twin(net)(nested, nested, nested)
    for row, x in zip(out.unbind(), nested.unbind(), strict=True):
        assert torch.allclose(row, net(x, x, x)[0], rtol=0, atol=1e-9)
    for other, call in ((attention(batch_first=False), {}), (net, {"key_padding_mask": PADDING})):
        with pytest.raises(SecateurError, match="batch_first=True and without masks"):
            twin(other)(nested, nested, nested, **call)


def test_the_hint_of_a_causal_mask_needs_the_mask():
    with pytest.raises(SecateurError, match="a hint about attn_mask"):
        twin(attention())(X, X, X, is_causal=True)


def test_a_whole_transformer_with_padding():
    net = wide(nn.Transformer(12, 4, 2, 2, 20, dropout=0.0, batch_first=True))
    structure = sc.trace(net, (X, Y))
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small = sc.compact(net, (X, Y), structure=structure)[0]
    assert {type(m) for m in small.modules() if isinstance(m, nn.MultiheadAttention)} == {PrunedAttention}
    call = {"src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING, "tgt_mask": CAUSAL}
    with torch.no_grad():
        assert torch.allclose(net(X, Y, **call), small(X, Y, **call), rtol=0, atol=1e-9)


@pytest.mark.parametrize("padding", [None, PADDING])
def test_an_encoder_whose_stream_lost_channels(padding):
    net = After(
        lambda net, x, padding=None: net.out(net.encoder(net.inside(x), src_key_padding_mask=padding)),
        inside=nn.Linear(7, 12), encoder=encoder(2), out=nn.Linear(12, 5),
    )  # fmt: skip
    net = wide(net)
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    structure = sc.trace(net, x, streams=True)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, _ = sc.compact(net, x, structure=structure)
    assert small.inside.out_features < 12
    with torch.no_grad():
        assert torch.allclose(net(x, padding), small(x, padding), rtol=0, atol=1e-9)
