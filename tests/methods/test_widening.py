"""A network beside itself computes alpha B + (1 - alpha) up P, layer by layer, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from networks.branched import net, trained
from networks.drawn import lived_in, randn
from networks.plain import Plain
from networks.residual import Strided
from secateur.errors import ModelError, TargetError
from secateur.graph.compare import difference
from secateur.methods.branch_annealing import BranchAnnealing
from secateur.methods.split_layers import SplitNorm
from secateur.methods.widening import Widened
from secateur.running import call


def plain(**options) -> tuple[nn.Module, Tensor, BranchAnnealing]:
    model, x = net("plain")
    return model, x, BranchAnnealing(model, x[:2], **({"start": "random"} | options))


def named(network: Widened, kind: str, start: str) -> Tensor:
    """The one matrix of ``up`` or ``down`` whose group or layer begins like this."""
    found = [matrix for name, matrix in getattr(network, kind).items() if name.startswith(start)]
    assert len(found) == 1
    return found[0]


@torch.no_grad()
def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.copy_(torch.tensor(weight))
    layer.bias.copy_(torch.tensor(bias))
    return layer


def test_the_wide_weights_by_hand():
    first = linear([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0])
    second = linear([[1.0, -1.0], [2.0, 0.5]], [1.0, 2.0])
    last = linear([[1.0, 1.0]], [7.0])
    annealing = BranchAnnealing(
        nn.Sequential(first, second, last), torch.randn(3, 2), ratio=0.5, start="random"
    )
    network = annealing.network
    with torch.no_grad():
        for kind, start, values in (
            ("down", "0", [[10.0, 1.0]]),
            ("up", "0 ->", [[2.0], [-1.0]]),
            ("down", "1", [[1.0, 2.0]]),
            ("up", "1 ->", [[3.0], [5.0]]),
        ):
            named(network, kind, start).copy_(torch.tensor(values))
    annealing.alpha = 0.3
    wide = {name: tensor.tolist() for name, tensor in network.tensors().items()}

    def near(name: str, expected: list[list[float]] | list[float]) -> None:
        assert torch.allclose(torch.tensor(wide[name]), torch.tensor(expected).float()), name

    near("0.weight", [[1, 2], [3, 4], [10 + 3, 20 + 4]])
    near("0.bias", [5, 6, 56])
    # W up = (1 * 2 + 1, 2 * 2 - 0.5) = (3, 3.5); down W = (5, 0); down W up = 5 * 2 - 0 = 10
    near("1.weight", [[0.3, -0.3, 2.1], [0.6, 0.15, 2.45], [1.5, 0.0, 7.0]])
    near("1.bias", [1, 2, 5])
    near("2.weight", [[0.3, 0.3, 5.6]])
    near("2.bias", [7])


def test_the_folded_layer_is_the_product_of_three_by_hand():
    model = nn.Sequential(
        linear([[1.0], [3.0]], [0.0, 0.0]), linear([[1.0, -1.0], [2.0, 0.5]], [1.0, 2.0]), nn.Linear(2, 2)
    )
    annealing = BranchAnnealing(model, torch.randn(3, 1), ratio=0.5, start="random")
    with torch.no_grad():
        named(annealing.network, "up", "0 ->").copy_(torch.tensor([[2.0], [-1.0]]))
        named(annealing.network, "down", "1").copy_(torch.tensor([[1.0, 2.0]]))
    small, proof = annealing.fold()
    assert small[1].weight.tolist() == [[10.0]]  # down W up
    assert small[1].bias.tolist() == [5.0]  # down b
    assert [(layer.in_features, layer.out_features) for layer in small] == [(1, 1), (1, 1), (1, 2)]
    assert proof.parameters == (4 + 6 + 6, 2 + 2 + 4)
    assert proof.macs == (3 * (2 + 4 + 4), 3 * (1 + 1 + 2))


def source_forward(model: Plain, network: Widened, x: Tensor, alpha: float, training: bool) -> Tensor:
    """S2's own picture of the network: beside each layer down, norm, activation, pool, up."""

    def conv(z_of: nn.Conv2d, norm: nn.Module, x: Tensor, path: str, act) -> Tensor:
        z = z_of(x)
        down, up = named(network, "down", path), named(network, "up", f"{path} ->")
        split = network.wide.get_submodule(path.replace("conv", "norm"))
        assert isinstance(split, SplitNorm)
        p = F.conv2d(z, down[:, :, None, None])
        weight, bias = (network.own[f"norm{path[-1]}/{leaf}"] for leaf in ("weight", "bias"))
        mean, var = split.running_mean[split.own :].clone(), split.running_var[split.own :].clone()
        p = F.batch_norm(p, mean, var, weight, bias, training)
        return alpha * act(norm(z)) + (1 - alpha) * F.conv2d(act(p), up[:, :, None, None])

    x = conv(model.conv1, model.norm1, x, "conv1", torch.relu)
    x = conv(model.conv2, model.norm2, x, "conv2", lambda y: F.max_pool2d(y, 3).tanh())
    z = model.fc1(x.flatten(1))
    down, up = named(network, "down", "fc1"), named(network, "up", "fc1 ->")
    x = alpha * z.relu() + (1 - alpha) * (z @ down.T).relu() @ up.T
    return model.fc2(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
def test_it_is_the_sources_network(alpha: float, training: bool):
    model, x, annealing = plain()
    annealing.alpha = alpha
    reference = copy.deepcopy(model).train(training)
    expected = source_forward(reference, annealing.network, x, alpha, training)
    found = annealing.network.train(training)(x)
    assert difference(expected, found) < 1e-12
    norms = [(reference.norm1, "norm1"), (reference.norm2, "norm2")]
    for norm, path in norms:  # the statistics of the model's own channels are learnt as ever
        split = annealing.network.wide.get_submodule(path)
        for leaf in ("running_mean", "running_var"):
            assert torch.allclose(getattr(norm, leaf), getattr(split, leaf)[: split.own], atol=1e-12)


def test_gradients_reach_everything_and_are_those_of_the_sources_network():
    model, x, annealing = plain()
    annealing.alpha = 0.3
    reference = copy.deepcopy(model).train()
    source_forward(reference, annealing.network, x, 0.3, True).square().sum().backward()
    named_grads = {name: p.grad.clone() for name, p in reference.named_parameters()}
    branch = [p.grad.clone() for p in annealing.network.up.values()]
    annealing.network.zero_grad()
    annealing.network.train()(x).square().sum().backward()
    for name, parameter in annealing.network.model.named_parameters():
        assert torch.allclose(parameter.grad, named_grads[name], atol=1e-9), name
    for parameter, expected in zip(annealing.network.up.values(), branch, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-9)
    assert all(p.grad is not None for p in annealing.network.parameters())


def test_frozen_only_the_branches_learn():
    _, x, annealing = plain()
    network = annealing.network
    annealing.alpha = 0.5
    network.freeze(True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained(network, x)
    own = {norm.own for norm in network.norms()}
    for name, tensor in network.state_dict().items():
        if name.startswith("model."):
            assert torch.equal(tensor, before[name]), name
        elif "running" in name:
            number = next(n for n in own if f"norm{1 if n == 6 else 2}" in name)
            assert torch.equal(tensor[:number], before[name][:number])
            assert not torch.equal(tensor[number:], before[name][number:])
        elif name.startswith(("up", "down")):
            assert not torch.equal(tensor, before[name]), name
    network.freeze(False)
    trained(network, x)
    assert all(
        not torch.equal(tensor, before[name])
        for name, tensor in network.state_dict().items()
        if name.startswith(("model.fc", "model.norm")) and name.endswith(("weight", "bias"))
    )


def test_frozen_other_norms_keep_their_statistics_too():
    model, x = net("resnet-20")
    annealing = BranchAnnealing(model, x, start="random")
    annealing.network.freeze(True)
    stream = annealing.network.wide.bn1
    before = stream.running_mean.clone()
    annealing.network.train()(x)
    assert not stream.training
    assert torch.equal(stream.running_mean, before)
    annealing.network.freeze(False)
    annealing.network.train()(x)
    assert not torch.equal(stream.running_mean, before)


def test_the_model_given_stays_as_it_is():
    model, x = net("plain")
    model.train()
    model.norm2.eval()
    model.fc2.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    annealing = BranchAnnealing(model, x[:2], data=[x])
    network = annealing.network
    assert [m.training for m in (model, model.norm1, model.norm2)] == [True, True, False]
    assert [m.training for m in (network, network.wide.norm1, network.wide.norm2)] == [True, True, False]
    network.freeze(True)
    assert not any(p.requires_grad for p in network.model.parameters())
    small, _ = annealing.fold()
    wanted = {name: name != "fc2.weight" for name, _ in model.named_parameters()}
    assert {name: p.requires_grad for name, p in small.named_parameters()} == wanted
    network.freeze(False)
    assert {n: p.requires_grad for n, p in network.model.named_parameters()} == wanted
    trained(network, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_state_dict_is_the_whole_state():
    model, x, annealing = plain()
    annealing.alpha = {"conv1 -> conv2": 0.25, "conv2 -> fc1": 0.1}
    annealing.network.freeze(True)
    trained(annealing.network, x)
    state = {name: tensor.clone() for name, tensor in annealing.network.state_dict().items()}
    other = BranchAnnealing(model, x[:2], start="random", seed=5)
    assert all(name.startswith(("model.", "up.", "down.", "own.", "_extra", "wide.norm")) for name in state)
    other.network.load_state_dict(state)
    assert other.alpha == annealing.alpha == {"conv1 -> conv2": 0.25, "conv2 -> fc1": 0.1, "fc1 -> fc2": 1.0}
    assert other.network.frozen
    assert torch.equal(other.network.eval()(x), annealing.network(x))
    trained(other.network, x)
    trained(annealing.network, x)
    assert torch.equal(other.network(x), annealing.network(x))


@pytest.mark.parametrize("after", [False, True], ids=["fresh", "after a step"])
def test_a_deep_copy_is_another_network(after: bool):
    _, x, annealing = plain()
    annealing.alpha = 0.4
    if after:
        trained(annealing.network, x)
    other = copy.deepcopy(annealing)
    assert torch.equal(other.network.eval()(x), annealing.network.eval()(x))
    before = annealing.network(x)
    other.alpha = 0.0
    trained(other.network, x)
    assert torch.equal(annealing.network(x), before)


def test_it_moves_to_another_dtype_and_memory_format():
    _, x, annealing = plain()
    annealing.alpha = 0.1
    expected = annealing.network.eval()(x)
    single = copy.deepcopy(annealing).network.float()
    assert single(x.float()).dtype == torch.float32
    assert difference(expected, single(x.float()).double()) < 1e-5
    assert single.alphas == annealing.network.alphas
    last = annealing.network.to(memory_format=torch.channels_last)
    assert difference(expected, last(x.contiguous(memory_format=torch.channels_last))) < 1e-12


def test_a_half_precision_network_can_have_branches():
    model, x = net("plain")
    model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
    annealing = BranchAnnealing(model, x[:2], data=[x])
    annealing.alpha = 0.0
    small, proof = annealing.fold()
    assert small(x).dtype == torch.bfloat16
    assert proof.max_error <= 1e-9


def test_under_autocast_the_products_of_weights_are_not_rounded():
    _, _, annealing = plain()
    annealing.alpha = 0.5
    network = annealing.network.float()
    exact = network.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network.tensors()
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in exact.items())


class Sized(nn.Module):
    """Keeps the number of its channels, and a list of sizes, as attributes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(6 * 4, 5)
        self.channels, self.sizes = 6, [6, 2, 2]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).view(len(x), self.channels, 4).relu().view(-1, *self.sizes)
        return self.fc(x.flatten(1))


def test_sizes_that_a_forward_keeps_grow_and_shrink_again():
    torch.manual_seed(0)
    model, x = Sized().double(), randn(4, 2, 4, 4)
    annealing = BranchAnnealing(model, x, start="random")
    assert (annealing.network.wide.channels, annealing.network.wide.sizes) == (9, [9, 2, 2])
    assert difference(call(model, (x,), {}), call(annealing.network, (x,), {})) < 1e-12
    annealing.alpha = 0.0
    small, _ = annealing.fold()
    assert (small.channels, small.sizes) == (3, [3, 2, 2])
    assert difference(call(annealing.network, (x,), {}), call(small, (x,), {})) < 1e-12


def test_a_size_written_into_a_forward_is_one_clear_error():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(6 * 4, 5)
            self.last = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.fc(self.conv(x).view(-1, 24)).relu())

    model, x = Written(), torch.randn(4, 2, 4, 4)
    with pytest.raises(ModelError, match=r"does not follow more channels .*exclude="):
        BranchAnnealing(model, x, start="random")
    assert list(BranchAnnealing(model, x, start="random", exclude="conv").network.alphas) == ["fc -> last"]


def test_channels_that_something_else_sums_up_are_one_clear_error():
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) + h.sum(1, keepdim=True)

    with pytest.raises((ModelError, TargetError), match=r"exclude=|no group"):
        BranchAnnealing(Summed(), torch.randn(4, 4), start="random")


def test_what_cannot_have_a_branch_is_skipped_with_its_reason():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)
            self.one = self.two = nn.Linear(8, 8)
            self.norm, self.last = nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 6)
            self.end = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            return self.end(self.last(self.norm(self.two(self.one(x).relu())).relu()))

    annealing = BranchAnnealing(Mixed(), torch.randn(4, 5), start="random")
    assert list(annealing.network.alphas) == ["last -> end"]
    assert any("shared by several layers" in why for why in annealing.skipped.values())
    assert "last -> end: 3 channels beside 6, alpha 1" in repr(annealing)
    assert "skipped" in repr(annealing)


def test_option_a_shortcuts_leave_the_stream_alone():
    model, x = net("resnet-20")
    annealing = BranchAnnealing(model, x, start="random")
    assert len(annealing.network.alphas) == 9  # the inside of every block
    ((_, why),) = annealing.skipped.items()
    assert "not all that there is in dim 0" in why


def test_a_shared_module_and_tied_weights_elsewhere_do_no_harm():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(5, 6), nn.Linear(6, 6)
            self.again = self.inner
            self.out, self.tied = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
            self.tied.weight = self.out.weight
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.again(self.inner(self.first(x).relu()).relu()).softmax(-1)
            return self.b(self.a(self.tied(self.out(x).relu()).softmax(-1)).relu())

    torch.manual_seed(0)
    model, x = Twice().double(), randn(4, 5)
    annealing = BranchAnnealing(model, x, include="a", start="random")
    assert difference(call(model, (x,), {}), call(annealing.network, (x,), {})) < 1e-12
    trained(annealing.network, x)
    annealing.alpha = 0.0
    copy.deepcopy(annealing)
    small, _ = annealing.fold()
    assert small.tied.weight is small.out.weight
    assert small.again is small.inner
    assert difference(call(annealing.network, (x,), {}), call(small, (x,), {})) < 1e-12


def test_a_stream_has_one_up_for_all_that_add_into_it():
    torch.manual_seed(0)
    annealing = BranchAnnealing(lived_in(Strided()), randn(2, 3, 9, 9), start="random")
    network = annealing.network
    stream = next(name for name in network.alphas if "stem" in name)
    assert stream.startswith("stem, c2 -> c1, c3")
    assert tuple(named(network, "up", "stem").shape) == (12, 6)
    assert {"stem", "c2", "c4", "short"} <= set(network.down)
    assert sum(name.startswith(("c4", "short")) for name in network.alphas) == 1


def test_saved_and_loaded_the_folded_network_is_the_same(tmp_path):
    model, x, annealing = plain()
    small, _ = annealing.fold()
    sc.save(small, tmp_path / "small.safetensors")
    again = sc.load(net("plain")[0], tmp_path / "small.safetensors")
    assert torch.equal(again.eval()(x), small.eval()(x))
    assert type(small) is type(model)
