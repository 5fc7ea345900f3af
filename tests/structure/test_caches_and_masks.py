"""Transformers as they come: with a cache of keys and values by default, and with masks."""

import copy

import pytest
import torch
import transformers
from torch import nn

import secateur as sc

SIZES = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = SIZES | {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = SIZES | {"d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).eval()


def tokens(length: int = 7) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 61, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_a_cache_by_default_keeps_no_head_and_is_there_afterwards():
    model, inputs = llama(), tokens()
    assert model.config.use_cache
    structure = sc.trace(model, inputs)
    assert structure.captured.program is not None
    assert sum("q_proj" in name for name in structure.groups) == 2
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(model, inputs)
    assert not proof.kept
    assert model.config.use_cache
    assert small.config.use_cache
    assert small(**inputs).past_key_values is not None
    new = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **new), small.generate(**inputs, **new))


def test_a_cache_that_is_asked_for_is_an_output():
    structure = sc.trace(llama(), tokens(), kwargs={"use_cache": True})
    assert not any("k_proj" in part.name for group in structure.groups.values() for part in group.slices)


def test_the_same_number_of_queries_of_every_key_head():
    model, inputs = llama(), tokens()
    structure = sc.trace(model, inputs, heads="queries")
    heads = [name for name in structure.groups if "q_proj" in name]
    assert [len(structure.groups[name]) for name in heads] == [2, 2]
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(model, inputs, structure=structure)
    assert set(heads) <= set(proof.removed)
    attention = small.model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features) == (12, 12)
    new = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **new), small.generate(**inputs, **new))


def test_encoder_and_decoder():
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, decoder_start_token_id=0)
    ).eval()
    inputs = tokens() | {"decoder_input_ids": torch.randint(3, 61, (2, 5))}
    structure = sc.trace(model, inputs)
    heads = [name for name in structure.groups if "Attention" in name]
    assert len(heads) >= 3
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(model, inputs)
    assert not proof.kept
    assert set(heads) <= set(proof.removed)
    assert torch.allclose(model(**inputs).logits, small(**inputs).logits, atol=1e-5)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 36, batch_first=True)
        self.embed, self.head = nn.Embedding(61, 24), nn.Linear(24, 5)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, ids, padding, causal=None):
        return self.head(self.encoder(self.embed(ids), mask=causal, src_key_padding_mask=padding))


@pytest.mark.parametrize("causal", [None, nn.Transformer.generate_square_subsequent_mask(7)])
def test_heads_under_padding_masks(causal):
    torch.manual_seed(0)
    model = Encoder().eval()
    inputs = (tokens()["input_ids"], torch.arange(7)[None] > torch.tensor([[4], [6]]), causal)
    structure = sc.trace(model, inputs)
    heads = [name for name in structure.groups if "in_proj_weight" in name]
    assert [len(structure.groups[name]) for name in heads] == [4, 4]
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    before = copy.deepcopy(model)
    small, proof = sc.compact(model, inputs)
    assert not proof.kept
    assert small.encoder.layers[0].self_attn.num_heads == 2
    with torch.no_grad():
        assert torch.allclose(before(*inputs), small(*inputs), atol=1e-5)


def test_heads_of_one_key_and_value_head():
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=True,
        bias=False,
    )
    model, inputs = transformers.FalconForCausalLM(config).eval(), {"input_ids": torch.randint(3, 60, (2, 7))}
    structure = sc.trace(model, inputs)
    heads = [name for name in structure.groups if "self_attention" in name]
    assert [len(structure.groups[name]) for name in heads] == [4, 4]
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(model, inputs, structure=structure)
    assert set(heads) <= set(proof.removed)
    assert not proof.unseen
    assert small.transformer.h[0].self_attention.dense.in_features == 12
    others = {"input_ids": torch.randint(3, 60, (3, 11))}
    with torch.no_grad():
        assert torch.allclose(model(**others).logits, small(**others).logits, atol=1e-5)
    new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**inputs, **new), small.generate(**inputs, **new))
