"""Mixtures of experts: the neurons inside the experts are units, whichever way the experts are run."""

import pytest
import torch
import transformers
from torch import nn

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


# -- experts that go whole -----------------------------------------------------------------------------------


def deepseek(way: str):
    """A sigmoid router with a correction bias, two groups of four experts, and a shared expert."""
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        vocab_size=61, hidden_size=24, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=6, experts_implementation=way,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(config).eval()
    gate = model.model.layers[1].mlp.gate
    torch.nn.init.normal_(gate.weight)
    gate.e_score_correction_bias.uniform_(0, 0.5)
    return model


def silenced(model, gone):
    """Hand-made: the same network with the removed experts' scores at minus infinity, by their routers."""
    for path, experts in gone.items():
        gate = model.get_submodule(path).gate
        if hasattr(gate, "e_score_correction_bias"):
            gate.e_score_correction_bias[experts] = -torch.inf

        def forward(*args, gate=gate, experts=experts, real=torch.nn.functional.linear, **kwargs):
            def linear(x, weight, bias=None):
                out = real(x, weight, bias)
                if out.shape[-1] == gate.num_experts:
                    out[..., experts] = -torch.inf
                return out

            torch.nn.functional.linear = linear
            try:
                return type(gate).forward(gate, *args, **kwargs)
            finally:
                torch.nn.functional.linear = real

        gate.forward = forward
    return model


@pytest.mark.parametrize("way", ["grouped_mm", "eager", "batched_mm"])
@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_half_of_the_experts_go(kind, way):
    if kind == "DeepseekV3":
        model, gone = deepseek(way), {"model.layers.1.mlp": [0, 3, 5, 6]}
    else:
        model = network(kind, way)
        gone = {"model.layers.0.mlp": [1, 4], "model.layers.1.mlp": [0, 2]}
    inputs = {"input_ids": torch.randint(3, 61, (2, 9))}
    found = sc.find_experts(model, inputs)
    assert set(found) == set(gone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, proof = sc.remove_experts(model, inputs, gone)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    bound = 1e-9 if proof.dtype == "float64" else 1e-6  # grouped products have no float64
    assert proof.max_error < bound
    assert proof.max_error_randomised < bound
    for path, experts in gone.items():
        left = found[path].experts - len(experts)
        assert small.get_submodule(path).experts.down_proj.shape[0] == left
        assert small.get_submodule(path).gate.num_experts == left
    masked = silenced(model, gone)
    others = {"input_ids": torch.randint(3, 61, (3, 12))}
    with torch.no_grad():
        assert torch.allclose(masked(**others).logits, small(**others).logits, atol=1e-5)
    new = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(masked.generate(**inputs, **new), small.generate(**inputs, **new))


class Listed(torch.nn.Module):
    """Experts in a list, the two best of which are added."""

    def __init__(self):
        super().__init__()
        self.gate = torch.nn.Linear(6, 5)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(5))

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            out[rows] += expert(x[rows]) * weights[rows, place, None]
        return out


def test_experts_in_a_list():
    torch.manual_seed(0)
    model, x = Listed().eval(), torch.randn(16, 6)
    small, proof = sc.remove_experts(model, x, {"": [0, 3]})
    assert len(small.experts) == 3
    assert proof.removed == {"experts of ": (2, 5)}
    with torch.no_grad():
        model.gate.bias[[0, 3]] = -torch.inf
        assert torch.allclose(model(x), small(x), atol=1e-6)


def test_what_cannot_go_is_said():
    model, x = Listed().eval(), torch.randn(16, 6)
    with pytest.raises(sc.errors.ModelError, match="as the router chooses"):
        sc.remove_experts(model, x, {"": [0, 1, 2, 3]})
    with pytest.raises(sc.errors.ModelError, match="no mixture of experts 'mlp'"):
        sc.remove_experts(model, x, {"mlp": [0]})
    for numbers in ([5], [-1], [True], "0", range(5), 0.5):
        with pytest.raises(sc.errors.ModelError, match="a list of integers from 0 to 4"):
            sc.remove_experts(model, x, {"": numbers})


class Layers(torch.nn.Module):
    """As many layers in a list as there are classes: no mixture."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(3))
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x).softmax(-1)


def test_layers_and_classes_are_no_experts():
    assert sc.find_experts(Layers(), torch.randn(2, 6)) == {}


class Balanced(nn.Module):
    """In training it counts experts by a number that is written into its forward."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x):
        scores = self.gate(x).softmax(-1)
        weight, chosen = scores.max(-1)
        out = torch.stack([expert(x) for expert in self.experts], 1)[torch.arange(len(x)), chosen]
        if self.training:
            out = out * (nn.functional.one_hot(chosen, 4).float().mean(0) * scores.mean(0)).sum()
        return out * weight[:, None]


def test_experts_go_from_the_training_forward_too():
    with pytest.raises(sc.errors.ModelError, match=r"the training forward: .*written into its forward"):
        sc.remove_experts(Balanced(), torch.randn(30, 8), {"": [1]})
    with pytest.raises(sc.errors.ModelError, match=r"no mixture of experts 'moe'; it has ''"):
        sc.remove_experts(Balanced(), torch.randn(30, 8), {"moe": [1]})
    with pytest.raises(sc.errors.ModelError, match="of the numbers of the experts that go"):
        sc.remove_experts(Balanced(), torch.randn(30, 8), {"": []})
