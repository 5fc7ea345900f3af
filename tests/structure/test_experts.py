"""Mixtures of experts: the neurons inside the experts are units, whichever way the experts are run."""

import pytest
import torch
import transformers

import secateur as sc

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
}  # fmt: skip


def network(kind: str, way: str):
    torch.manual_seed(0)
    more = {"num_local_experts": 5}
    if kind == "Qwen3Moe":
        more = {"num_experts": 5, "moe_intermediate_size": 32, "head_dim": 6}
    config = getattr(transformers, f"{kind}Config")(**SIZES, **more, experts_implementation=way)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("way", ["grouped_mm", "eager"])
def test_neurons_inside_experts_go(kind, way):
    model, inputs = network(kind, way), {"input_ids": torch.randint(3, 61, (2, 9))}
    structure = sc.trace(model, inputs)
    inside = [name for name in structure.groups if "experts" in name]
    assert [len(structure.groups[name]) for name in inside] == [32, 32]
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(model, inputs)
    assert set(inside) <= set(proof.removed)
    assert small.model.layers[0].mlp.experts.down_proj.shape == (5, 24, 16)
    others = {"input_ids": torch.randint(3, 61, (3, 12))}
    with torch.no_grad():
        assert torch.allclose(model(**others).logits, small(**others).logits, atol=1e-5)
    new = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**inputs, **new), small.generate(**inputs, **new))
