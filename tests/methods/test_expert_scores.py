"""What experts give, by what a mixture loses without them: against the known parts of known mixtures."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import BudgetError, CriterionError, ModelError, NonFiniteError

transformers = pytest.importorskip("transformers")


def network(kind, way, dtype=torch.float32):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
    }  # fmt: skip
    more = {"num_local_experts": 5}
    if kind == "Qwen3Moe":
        more = {"num_experts": 6, "moe_intermediate_size": 16, "head_dim": 6, "norm_topk_prob": False}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, experts_implementation=way)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            nn.init.normal_(parameter)
    return model.to(dtype)


def given(mlp, x):
    """Return (tokens, experts): the norm of gate times output where an expert is chosen, and where it is."""
    x = x.reshape(-1, x.shape[-1])
    weights, chosen = F.linear(x, mlp.gate.weight).softmax(-1).topk(2)
    if getattr(mlp.gate, "norm_topk_prob", True):
        weights = weights / weights.sum(-1, keepdim=True)
    gates = torch.zeros(len(x), len(mlp.gate.weight), dtype=x.dtype).scatter_(1, chosen, weights)
    outputs = []
    for up, down in zip(mlp.experts.gate_up_proj, mlp.experts.down_proj, strict=True):
        gate, value = F.linear(x, up).chunk(2, -1)
        outputs.append(F.linear(F.silu(gate) * value, down).norm(dim=-1))
    return gates * torch.stack(outputs, 1), gates > 0


@pytest.mark.parametrize("way", ["grouped_mm", "eager", "batched_mm"])
@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_experts_of_transformers(kind, way):
    model = network(kind, way)
    data = [{"input_ids": torch.randint(3, 61, shape)} for shape in ((2, 9), (3, 7))]
    read = {path: [] for path in ("model.layers.0.mlp", "model.layers.1.mlp")}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda _, args, of=of: of.append(args[0]))
        for path, of in read.items()
    ]
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for hook in hooks:
        hook.remove()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reap, frequency = sc.score_experts(model, data), sc.score_experts(model, data, by="frequency")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert reap.keys() == frequency.keys() == read.keys()
    for path, inputs in read.items():
        parts = [given(model.get_submodule(path), x) for x in inputs]
        norms, chosen = (torch.cat(both) for both in zip(*parts, strict=True))
        mean = norms.sum(0) / chosen.sum(0).clamp(min=1)
        assert torch.allclose(reap[path].float(), mean, rtol=1e-4)
        assert torch.equal(frequency[path], chosen.double().mean(0))


def test_what_is_scored_lowest_can_go():
    model, data = network("Mixtral", "eager"), [{"input_ids": torch.randint(3, 61, (4, 16))}]
    scores = sc.score_experts(model, data)
    going = sc.weakest_experts(scores, 0.4)
    assert all(len(numbers) == 2 for numbers in going.values())
    small, proof = sc.remove_experts(model, data[0], going)
    assert small.model.layers[0].mlp.experts.down_proj.shape[0] == 3
    assert proof.max_error < 1e-9


def test_half_precision_is_computed_wide_and_put_back():
    model, data = network("Mixtral", "eager", torch.bfloat16), [{"input_ids": torch.randint(3, 61, (4, 16))}]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = sc.score_experts(model, data)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    wide = sc.score_experts(network("Mixtral", "eager"), data)
    for path, own in scores.items():
        assert torch.allclose(own, wide[path], rtol=0.1)


class Listed(nn.Module):
    """Experts in a list, each of them called on its own tokens, and something random beside, on request."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.gate = nn.Linear(3, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))
        self.noise = noise
        self.gate.weight.data = torch.eye(3)
        for number, expert in enumerate(self.experts):
            expert.weight.data.zero_()
            expert.bias.data = torch.tensor([3.0, 4.0]) * (number + 1)

    def forward(self, x):
        weight, chosen = self.gate(x).softmax(-1).topk(2)
        out = x.new_zeros(*x.shape[:-1], 2)
        for number, expert in enumerate(self.experts):
            gate = (weight * (chosen == number)).sum(-1, keepdim=True)
            out = out + gate * expert(x)
        x.zero_()
        return out + self.noise * torch.rand_like(out)


def test_a_mixture_made_by_hand():
    x = torch.tensor([[9.0, 8.0, 0.0], [9.0, 8.0, 0.0], [8.0, 9.0, 0.0], [9.0, 0.0, 8.0]])
    high, low = torch.tensor([1.0, 0.0]).softmax(0).double()
    high, low = high * (1 - torch.tensor(9.0).exp().reciprocal() / (1 + 2.71828)), low
    net = Listed()
    scores = sc.score_experts(net, [(x, None)])
    expected = torch.tensor([5 * (3 * high + low) / 4, 10 * (2 * low + high) / 3, 15 * low])
    assert torch.allclose(scores[""], expected.double(), rtol=1e-3)
    frequency = sc.score_experts(net, [x[:2], x[2:]], by="frequency")
    assert frequency[""].tolist() == [1.0, 0.75, 0.25]
    assert sc.score_experts(net, [x[:3]])[""][2] == 0  # nothing is routed to it


def test_what_is_refused():
    x = torch.rand(4, 3)
    with pytest.raises(CriterionError, match="by is 'size'; it is 'reap' or 'frequency'"):
        sc.score_experts(Listed(), [x], by="size")
    with pytest.raises(CriterionError, match="without a single batch"):
        sc.score_experts(Listed(), [])
    with pytest.raises(ModelError, match="has no mixture of experts"):
        sc.score_experts(nn.Linear(3, 3), [x])
    with pytest.raises(ModelError, match="its outputs are random"):
        sc.score_experts(Listed(noise=1.0), [x])
    net = Listed()
    net.experts[1].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="holds a NaN"):
        sc.score_experts(net, [x])


def test_the_weakest():
    scores = {"a": torch.tensor([4.0, 1.0, 3.0, 2.0]), "b": torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])}
    assert sc.weakest_experts(scores, 0.5) == {"a": [1, 3], "b": [0, 1, 2]}
    assert sc.weakest_experts(scores, 0.5, groups=2) == {"a": [1, 3], "b": [0, 1, 3, 4]}  # 1.5 rounds to 2
    assert sc.weakest_experts(scores, 0) == {"a": [], "b": []}
    with pytest.raises(BudgetError, match=r"'a': 1.0 of 4 experts are all of them"):
        sc.weakest_experts(scores, 1.0)
    with pytest.raises(BudgetError, match="'b': 6 experts are not in 4 groups"):
        sc.weakest_experts({"b": scores["b"]}, 0.5, groups=4)
    with pytest.raises(BudgetError, match="share is 2; it is a share"):
        sc.weakest_experts(scores, 2)
