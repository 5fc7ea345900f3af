"""Whole blocks: how much they change what passes through them, and networks without some."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import CriterionError, ModelError

transformers = pytest.importorskip("transformers")


def llama(layers=4):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 40}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=layers, **sizes)).eval()


TOKENS = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(0))


def test_influence_is_one_minus_the_mean_cosine_over_tokens():
    model = llama()
    found = sc.block_influence(model, [{"input_ids": TOKENS[:2]}, {"input_ids": TOKENS[2:]}])
    with torch.no_grad():
        states = model(TOKENS, output_hidden_states=True).hidden_states[:-1]  # the last one is normed
        last = []
        with model.model.layers[3].register_forward_hook(lambda *call: last.append(call[2])):
            model(TOKENS)
    for number, (before, after) in enumerate(zip(states, [*states[1:], last[0]], strict=True)):
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
        assert found[f"model.layers.{number}"] == pytest.approx(1 - float(cosine), abs=1e-6)
    assert list(found) == [f"model.layers.{number}" for number in range(4)]


class Residual(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 3, 1), scale

    def forward(self, x):
        return x + self.scale * self.conv(x)


def test_channels_of_images_and_what_is_no_chain():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(*(Residual(scale) for scale in (0.0, 1.0, 5.0))))
    x = torch.rand(2, 3, 4, 4)
    found = sc.block_influence(net, [(x, None)])
    assert list(found) == ["1.0", "1.1", "1.2"]
    assert found["1.0"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ModelError, match="no chain of blocks"):
        sc.block_influence(nn.Linear(3, 3), [torch.rand(2, 3)])
    with pytest.raises(CriterionError, match="without a single batch"):
        sc.block_influence(net, [])


class Parallel(nn.Module):
    """Modules of one class that all read the same."""

    def __init__(self):
        super().__init__()
        self.all = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        return sum(one(x) for one in self.all)


def test_modules_side_by_side_are_no_chain():
    with pytest.raises(ModelError, match="no chain of blocks"):
        sc.block_influence(Parallel(), [torch.rand(2, 3)])


def test_a_llama_without_two_blocks():
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small, proof = sc.drop_blocks(model, {"input_ids": TOKENS}, ["model.layers.1", "model.layers.2"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.num_hidden_layers == 4
    assert proof.removed == {"blocks of model.layers": (2, 4)}
    assert proof.max_error < 1e-9
    assert proof.max_error_randomised < 1e-9
    assert small.config.num_hidden_layers == 2
    assert small.model.layers[1].self_attn.layer_idx == 1
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, model.model.layers[3].mlp.up_proj.weight)
    new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert small.generate(TOKENS, **new).shape == (3, 13)
    fresh = llama(2)
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(TOKENS).logits, small(TOKENS).logits)


@pytest.mark.parametrize("kind", ["Qwen3", "GPT2"])
def test_what_configurations_say_of_layers_follows(kind):
    torch.manual_seed(0)
    if kind == "GPT2":
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=16)
        model, path, count = transformers.GPT2LMHeadModel(config), "transformer.h.0", "n_layer"
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
        config = transformers.Qwen3Config(vocab_size=40, num_hidden_layers=3, num_key_value_heads=2, **sizes)
        model, path, count = transformers.Qwen3ForCausalLM(config), "model.layers.0", "num_hidden_layers"
    small, _ = sc.drop_blocks(model.eval(), {"input_ids": TOKENS}, [path])
    assert getattr(small.config, count) == 2
    assert kind == "GPT2" or len(small.config.layer_types) == 2


def test_what_is_no_block():
    with pytest.raises(ModelError, match=r"has no block 'model.layers.9' in a list"):
        sc.drop_blocks(llama(), {"input_ids": TOKENS}, ["model.layers.9"])
    with pytest.raises(ModelError, match="all 2 blocks would go; some stay"):
        sc.drop_blocks(llama(2), {"input_ids": TOKENS}, ["model.layers.0", "model.layers.1"])
    with pytest.raises(ModelError, match="it is a list of paths"):
        sc.drop_blocks(llama(), {"input_ids": TOKENS}, "model.layers.0")
    with pytest.raises(ModelError, match=r"not equal to the one that passes them by|does not run without"):
        sc.drop_blocks(Parallel(), torch.rand(2, 3), ["all.0"])
