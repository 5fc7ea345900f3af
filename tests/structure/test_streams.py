"""Residual streams under norms: protected by default, exactly prunable on request."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from networks.comparing import error, wide
from networks.drawn import randn
from networks.groups import reasons
from networks.plain import mlp
from secateur.structure.replaced.norms import RMS, RMS_PLUS_ONE, PrunedLayerNorm, become_pruned_norm, kind_of
from secateur.structure.surgery import mask_units

ROWS = randn(6, 5, seed=6)
IDS = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(7))


class Llama(nn.Module):
    """RMSNorm as transformers writes it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


class Gemma(nn.Module):
    """RMSNorm with a scale of 1 + weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)
        return y * (1.0 + self.weight)


class Counted(Llama):
    """The number of channels is written in: nothing to mend, and not a norm that is known."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = float(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().sum(-1, keepdim=True) / self.size + 1e-2)


class Centred(Llama):
    """Something else with the same attributes."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return super().forward(x)


def eps_given(size: int) -> nn.RMSNorm:
    return nn.RMSNorm(size, eps=0.3)


def no_bias(size: int) -> nn.LayerNorm:
    return nn.LayerNorm(size, bias=False)


class Stream(nn.Module):
    """A stream of 11 channels with one block around it and a norm at each end."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.embed, self.n1, self.n2 = nn.Linear(5, 11), norm(11), norm(11)
        self.up, self.down, self.head = nn.Linear(11, 7), nn.Linear(7, 11), nn.Linear(11, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter += 0.5 * torch.randn(parameter.shape)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(self.up(self.n1(x)).relu())
        return self.head(self.n2(x))


NORMS = [nn.LayerNorm, no_bias, nn.RMSNorm, eps_given, Llama, Gemma]


def stream(structure: Any, tensor: str, dim: int) -> Any:
    """The group that has a dim of a tensor."""
    (found,) = [
        g for g in structure.groups.values() if any((s.name, s.dim) == (tensor, dim) for s in g.slices)
    ]
    return found


def lose(net: nn.Module, structure: Any, gone: list[int], tensor: str = "embed.weight", dim: int = 0) -> None:
    group = stream(structure, tensor, dim)
    doomed = torch.zeros(len(group), dtype=torch.bool)
    doomed[gone] = True
    mask_units(net, structure, {group.name: doomed.numpy()})


@pytest.mark.parametrize("norm", NORMS)
def test_a_stream_is_one_group_and_goes_exactly_twice_in_a_row(norm):
    net = wide(Stream(norm))
    for left, gone in ((7, [0, 3, 4, 10]), (4, [1, 2, 6])):
        structure = sc.trace(net, ROWS, streams=True)
        places = {(s.name, s.dim) for s in stream(structure, "embed.weight", 0).slices}
        assert {("down.weight", 0), ("up.weight", 1), ("head.weight", 1), ("n1.weight", 0)} <= places
        lose(net, structure, gone)
        small, proof = sc.compact(net, ROWS, structure=structure)
        assert small.embed.out_features == len(small.n1.weight) == len(small.n2.weight) == left  # type: ignore[arg-type]
        assert error(net, small, ROWS, 3 * ROWS + 1) < 1e-12
        assert proof.max_error < 1e-12
        assert proof.max_error_randomised < 1e-12
        assert not proof.kept
        net = small
    if isinstance(net.n1, nn.LayerNorm):
        assert type(net.n1) is PrunedLayerNorm
        assert net.n1.full_size == 11


@pytest.mark.parametrize("norm", NORMS)
def test_by_default_a_stream_is_protected_and_the_reason_shown(norm):
    structure = sc.trace(wide(Stream(norm)), ROWS)
    assert reasons(structure)["embed.weight", 0] in ("normalised over", "reduced by mean")
    assert [len(group) for group in structure.groups.values()] == [7]


@pytest.mark.parametrize("norm", [lambda n: nn.LayerNorm(n, elementwise_affine=False), Centred])
def test_what_is_not_known_stays_with_a_reason(norm):
    structure = sc.trace(wide(Stream(norm)), ROWS, streams=True)
    assert [len(group) for group in structure.groups.values()] == [7]
    reason = reasons(structure)["embed.weight", 0]
    assert reason.startswith(("normalised over, and not by a plain", "reduced by mean"))


def test_a_norm_that_reads_what_does_not_go_to_zero_stays():
    net = nn.Sequential(nn.Linear(5, 11), nn.Sigmoid(), nn.LayerNorm(11), nn.Linear(11, 3))
    structure = sc.trace(wide(net), ROWS, streams=True)
    assert reasons(structure)["0.weight", 0] == "normalised over where what goes is not zero"


def test_a_functional_norm_stays():
    class Functional(Stream):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(nn.functional.layer_norm(x, (11,), self.n1.weight, self.n1.bias))

    structure = sc.trace(wide(Functional(nn.LayerNorm)), ROWS, streams=True)
    assert "embed.weight" in {p.name for p in structure.protected if p.dim == 0 and p.kept == 11}


def test_a_norm_with_its_count_written_in_is_left_as_it_is():
    net = wide(Stream(Counted))
    structure = sc.trace(net, ROWS, streams=True)
    lose(net, structure, [0, 5])
    small, _ = sc.compact(net, ROWS, structure=structure)
    assert error(net, small, ROWS) < 1e-12
    assert small.embed.out_features == 9


def test_a_channel_that_nobody_reads_but_a_norm_stays():
    net = wide(Stream(nn.LayerNorm))
    with torch.no_grad():
        net.up.weight[:, 2] = 0
        net.head.weight[:, 2] = 0
    small, _ = sc.compact(net, ROWS, structure=sc.trace(net, ROWS, streams=True))
    assert small.embed.out_features == 11
    assert error(net, small, ROWS) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
def test_a_pruned_layer_norm_is_the_norm_of_the_full_vector(bias):
    norm = nn.LayerNorm(9, eps=0.1, bias=bias).double()
    nn.init.normal_(norm.weight)
    full = torch.randn(4, 2, 9, dtype=torch.float64) + 2
    left = [0, 1, 4, 5, 8]
    full[..., [2, 3, 6, 7]] = 0
    want = norm(full)[..., left]
    norm.weight = nn.Parameter(norm.weight.detach()[left])
    norm.bias = None if norm.bias is None else nn.Parameter(norm.bias.detach()[left])
    become_pruned_norm(norm, 9)
    become_pruned_norm(norm, 5)
    assert norm.full_size == 9
    assert torch.allclose(norm(full[..., left]), want, rtol=0, atol=1e-14)
    assert "full_size=9" in repr(norm)
    low = norm.bfloat16()(full[..., left].bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), want, rtol=0.05, atol=0.05)


def test_rms_norms_are_told_apart_by_what_they_compute():
    assert kind_of(Llama(6)) == kind_of(nn.RMSNorm(6)) == RMS
    assert kind_of(Gemma(6)) == RMS_PLUS_ONE
    with torch.device("meta"):
        assert kind_of(Llama(6)) == RMS
    for other in (Counted(6), Centred(6), nn.Linear(3, 6), nn.BatchNorm1d(6), nn.RMSNorm((2, 3)), None):
        assert kind_of(other) is None


@pytest.mark.parametrize(("norm", "shift"), [(Llama, 0.0), (Gemma, 1.0), (eps_given, 0.0)])
def test_weight_and_eps_are_rescaled(norm, shift):
    net = wide(Stream(norm))
    structure = sc.trace(net, ROWS, streams=True)
    lose(net, structure, [0, 1, 2])
    small, _ = sc.compact(net, ROWS, structure=structure)
    want = (net.n1.weight[3:] + shift) * math.sqrt(11 / 8) - shift
    assert torch.allclose(small.n1.weight, want, rtol=0, atol=1e-15)
    eps = next(n for n in ("variance_epsilon", "eps") if hasattr(net.n1, n))
    assert getattr(small.n1, eps) == pytest.approx(getattr(net.n1, eps) * 11 / 8, rel=1e-15)


def test_a_weight_that_two_norms_share_is_rescaled_once():
    net = wide(Stream(Llama))
    net.n2.weight = net.n1.weight
    structure = sc.trace(net, ROWS, streams=True)
    lose(net, structure, [4, 5])
    small, _ = sc.compact(net, ROWS, structure=structure)
    assert small.n1.weight is small.n2.weight
    assert error(net, small, ROWS) < 1e-12


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, Gemma])
def test_float32_goes_on_training_and_keeps_its_masks(norm):
    net = Stream(norm).eval()
    rows = ROWS.float()
    structure = sc.trace(net, rows, streams=True)
    masks = sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    optimizer = torch.optim.Adam(net.parameters())
    small, proof = sc.compact(net, rows, structure=structure, masks=masks, optimizer=optimizer)
    assert error(net, small, rows) < 1e-5
    assert proof.max_error < 1e-5
    small.train()(rows).square().mean().backward()
    proof.optimizer.step()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_model_without_a_stream_is_as_before():
    net = wide(mlp(5, 7, 3))
    assert repr(sc.trace(net, ROWS, streams=True)) == repr(sc.trace(net, ROWS))


def test_torchs_own_encoder_layer():
    net = nn.Sequential(
        nn.Linear(5, 12), nn.TransformerEncoderLayer(12, 3, 14, batch_first=True), nn.Linear(12, 2)
    )
    rows = torch.randn(2, 4, 5, dtype=torch.float64)
    structure = sc.trace(wide(net), rows, streams=True)
    lose(net, structure, [0, 4, 5, 9, 11], "0.weight")
    small, _ = sc.compact(net, rows, structure=structure)
    assert small[0].out_features == 7
    with torch.inference_mode():
        assert error(net, small, rows, rows + 1) < 1e-12


# -- transformers ------------------------------------------------------------------------------------

BLOCK = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
LLAMA = {**BLOCK, "vocab_size": 61, "num_key_value_heads": 1, "use_cache": False}
GPT2 = {"vocab_size": 61, "n_embd": 24, "n_layer": 1, "n_head": 3, "n_positions": 20, "use_cache": False}
T5 = {"vocab_size": 61, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 3}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Logits(nn.Module):
    """A model of which only the logits are asked for, so that no hidden state is an output."""

    def __init__(self, inner: nn.Module, **more: Any) -> None:
        super().__init__()
        self.inner, self.more = inner, more

    def forward(self, ids: Tensor) -> Tensor:
        more = dict.fromkeys(self.more, ids)
        return self.inner(input_ids=ids, use_cache=False, **more).logits if more else self.inner(ids).logits


def hugging(name: str) -> nn.Module:
    import transformers

    kinds = {
        "llama": ("LlamaForCausalLM", LLAMA),
        "llama_tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
        "gemma": ("GemmaForCausalLM", {**LLAMA, "head_dim": 8}),
        "gpt2": ("GPT2LMHeadModel", GPT2),
        "bert": ("BertForSequenceClassification", {**BLOCK, "vocab_size": 61, "max_position_embeddings": 20}),
        "t5": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
    }
    kind, sizes = kinds[name]
    cls = getattr(transformers, kind)
    inner = cls(cls.config_class(**sizes, **TOKENS))
    net = Logits(inner, **({"decoder_input_ids": None} if name == "t5" else {})).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return net


EMBEDDING = {
    "llama": "inner.model.embed_tokens.weight",
    "llama_tied": "inner.model.embed_tokens.weight",
    "gemma": "inner.model.embed_tokens.weight",
    "gpt2": "inner.transformer.wte.weight",
    "bert": "inner.bert.embeddings.word_embeddings.weight",
    "t5": "inner.shared.weight",
}


@pytest.mark.parametrize("name", EMBEDDING)
def test_half_the_stream_of_a_transformer_goes(name, tmp_path):
    net = hugging(name)
    assert (EMBEDDING[name], 1) in reasons(sc.trace(net, IDS))
    structure = sc.trace(net, IDS, streams=True)
    group = stream(structure, EMBEDDING[name], 1)
    assert len(group) == 24
    norms = [n for n, p in net.named_parameters() if p.dim() == 1 and "norm" in n.lower() and "weight" in n]
    assert {s.name for s in group.slices} >= set(norms)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(net, IDS, structure=structure)
    tolerance = 1e-5 if name.startswith(("llama", "gemma", "t5")) else 1e-9
    assert error(net, small, IDS, IDS.flip(1)) < tolerance
    assert proof.max_error < 1e-9
    assert proof.removed[group.name] == (12, 24)
    assert proof.parameters[1] < 0.5 * proof.parameters[0]
    sc.save(small, tmp_path / "small.safetensors")
    again = sc.load(hugging(name), tmp_path / "small.safetensors")
    assert error(small, again, IDS) == 0


def test_only_the_stream_by_the_name_of_its_embedding():
    net = hugging("llama")
    structure = sc.trace(net, IDS, streams=True)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure, include="*embed_tokens*")
    small, proof = sc.compact(net, IDS, structure=structure)
    assert [count for count, _ in proof.removed.values()] == [12]
    assert error(net, small, IDS) < 1e-5
