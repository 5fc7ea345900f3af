"""Branches start near their layers, alpha goes down as it should, and what is folded is equal."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from networks.branched import NETS, net, trained
from networks.drawn import lived_in, randn
from networks.plain import Plain
from networks.residual import Strided
from secateur.errors import BudgetError, CriterionError, ModelError, NonFiniteError, TargetError
from secateur.graph.compare import difference
from secateur.methods.branch_annealing import BranchAnnealing, Descent
from secateur.methods.branch_fitting import pivots
from secateur.models import build_model
from secateur.running import call

STARTS = ("least squares", "svd", "random")


def apart(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    return difference(call(one, (x,), {}), call(other, (x,), {}))


@pytest.mark.parametrize("name", NETS)
def test_with_alpha_0_after_training_of_everything_it_folds_exactly(name: str):
    model, x = net(name)
    annealing = BranchAnnealing(model, x[:2], start="random")
    assert apart(model, annealing.network, x) < 1e-12
    annealing.alpha = 0.5
    trained(annealing.network, x)
    annealing.alpha = 0.0
    small, proof = annealing.fold()
    assert type(small) is type(model)
    assert proof.max_error <= 1e-9
    assert proof.dtype == "float64"
    for other in (x, randn(*x.shape, seed=1), 3 + randn(*x.shape, seed=2)):  # the last: far off at borders
        assert apart(annealing.network, small, other) <= 1e-9
    dense = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in small.parameters()) == proof.parameters[1] < 0.55 * dense
    assert proof.parameters[0] == dense
    assert proof.macs[1] < proof.macs[0]


def test_the_folded_widths_are_those_of_the_network_built_narrow():
    model, x = net("resnet-20 conv")
    small, _ = BranchAnnealing(model, x, start="random").fold()
    narrow = build_model("resnet-20", width=0.25, shortcut="conv")
    assert [p.shape for p in small.parameters()] == [p.shape for p in narrow.parameters()]


def test_folding_changes_nothing_of_the_annealing():
    model, x = net("plain")
    annealing = BranchAnnealing(model, x[:2], start="random")
    annealing.alpha = {"conv1 -> conv2": 0.25, "conv2 -> fc1": 0.5}
    before = {name: tensor.clone() for name, tensor in annealing.network.state_dict().items()}
    annealing.fold()
    after = annealing.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@settings(max_examples=12, deadline=None)
@given(
    widths=st.lists(st.integers(2, 9), min_size=3, max_size=5),
    ratio=st.sampled_from([0.25, 0.5, 0.75]),
    alpha=st.floats(0, 1),
    bias=st.booleans(),
    start=st.sampled_from(STARTS),
    seed=st.integers(0, 99),
)
def test_any_mlp_mixes_and_folds(
    widths: list[int], ratio: float, alpha: float, bias: bool, start: str, seed: int
):
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*(m for layer in layers for m in (layer, nn.Tanh()))).double()
    x = randn(20, widths[0], seed=seed)
    hidden = widths[1:-1]
    if all(max(1, round(ratio * width)) == width for width in hidden):
        with pytest.raises(TargetError, match="are as many"):
            BranchAnnealing(model, x, ratio=ratio, start="random")
        return
    annealing = BranchAnnealing(model, x, ratio=ratio, start=start, data=[x])
    annealing.alpha = alpha
    h = x
    for index, layer in enumerate(layers):
        z = layer(h)
        down = annealing.network.down.get(str(2 * index))
        if down is None:
            h = z.tanh()
            continue
        group = next(n for n in annealing.network.up.keys() if n.startswith(f"{2 * index} ->"))  # noqa: SIM118
        h = alpha * z.tanh() + (1 - alpha) * (z @ down.T).tanh() @ annealing.network.up[group].T
    assert difference(h, annealing.network(x)) < 1e-9
    annealing.alpha = 0.0
    small, _ = annealing.fold()
    assert apart(annealing.network, small, x) < 1e-9
    assert small[0].out_features <= max(1, round(ratio * widths[1]))


# -- the way down --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("descent", "alphas"),
    [
        (Descent(), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]),
        (Descent("step", step=0.25), [0.75, 0.5, 0.25, 0.0]),
        (Descent("step", step=0.3, threshold=0.2), [0.7, 0.4, 0.0]),
        (Descent("step", step=1.0), [0.0]),
        (Descent("multiplicative", factor=0.5, threshold=0.1), [0.5, 0.25, 0.125, 0.0]),
        (Descent("multiplicative", factor=0.1, threshold=0.01), [0.1, 0.01, 0.0]),
        (Descent("cosine", stages=4), [0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0]),
        (Descent("exponential", rate=1.0), [math.exp(-1), math.exp(-4), 0.0]),
        (Descent(threshold=1.0), [0.0]),
    ],
)
def test_the_alphas_exactly(descent: Descent, alphas: list[float]):
    assert descent.alphas() == pytest.approx(alphas, abs=1e-11)
    assert descent.alphas()[-1] == 0.0


@given(
    kind=st.sampled_from(["step", "multiplicative", "exponential", "cosine"]),
    step=st.floats(0.01, 1),
    factor=st.floats(0.05, 0.95),
    rate=st.floats(0.01, 2),
    stages=st.integers(1, 40),
    threshold=st.floats(0.001, 1),
)
def test_alphas_only_fall_and_end_at_0(kind, step, factor, rate, stages, threshold):
    alphas = Descent(kind, step, factor, rate, stages, threshold).alphas()
    assert all(a > b for a, b in zip([1.0, *alphas], alphas, strict=False))
    assert all(alpha >= threshold - 1e-11 for alpha in alphas[:-1])
    assert alphas[-1] == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "linear"},
        {"step": 0},
        {"step": 1.5},
        {"factor": 1.0},
        {"rate": -1},
        {"threshold": 0.0},
        {"stages": 0},
        {"step": math.nan},
    ],
)
def test_impossible_descents_are_refused(options: dict):
    with pytest.raises(BudgetError, match=next(iter(options))):
        Descent(**options)


# -- the start -----------------------------------------------------------------------------------


def test_pivots_by_hand():
    # Channels a, b = a + small c, c: a and b are nearly one direction of energies 4 and 4.01.
    gram = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.01, 0.1], [0.0, 0.1, 1.0]], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    # b first (4.01); then a has 4 - 16 / 4.01 = 0.00998 left, c has 1 - 0.01 / 4.01 = 0.9975.
    assert pivots(gram, ones, 1).tolist() == [1]
    assert pivots(gram, ones, 2).tolist() == [1, 2]
    # Weighted: c times 3 has an energy of 9 and comes first, then b has 4 left as a has, 4.0 (0.01 c went)
    weighted = pivots(gram, torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64), 1)
    assert weighted.tolist() == [2]
    assert pivots(torch.zeros(3, 3, dtype=torch.float64), ones, 2).tolist() == [0, 1]  # nothing to tell


def test_channels_that_are_mixtures_of_others_are_predicted_without_error():
    """Four of eight units are enough, and the least squares start finds them."""
    torch.manual_seed(0)
    first, last = nn.Linear(5, 8), nn.Linear(8, 3)
    with torch.no_grad():
        mixing = torch.randn(4, 4)
        first.weight[4:] = mixing @ first.weight[:4]
        first.bias[4:] = mixing @ first.bias[:4]
    model = nn.Sequential(first, last).double()  # no activation: mixtures stay mixtures
    x = randn(50, 5)
    annealing = BranchAnnealing(model, x[:2], ratio=0.5, data=[x[:20], x[20:]])
    for alpha in (1.0, 0.5, 0.0):
        annealing.alpha = alpha
        assert apart(model, annealing.network, x) < 1e-4  # but for the small pull of the fit
    small, proof = annealing.fold()
    assert apart(model, small, x) < 1e-4
    assert proof.parameters == (8 * 6 + 3 * 9, 4 * 6 + 3 * 5)


def test_the_least_squares_start_takes_channels_as_they_are():
    model, x = net("plain")
    annealing = BranchAnnealing(model, x[:2], data=[x])
    network = annealing.network
    for name, down in network.down.items():
        assert set(down.sum(1).tolist()) == {1.0}, name
        assert set(down.flatten().tolist()) == {0.0, 1.0}, name
    chosen = network.down["conv1"].argmax(1)
    norm = network.wide.norm1
    assert torch.equal(norm.running_mean[6:], model.norm1.running_mean[chosen])
    assert torch.equal(network.own["norm1/weight"], model.norm1.weight[chosen])


def test_up_is_the_least_squares_fit_of_what_is_read():
    """On the data it was fitted on, no other up is nearer to any group's channels."""
    model, x = net("plain")
    for start in ("least squares", "svd"):
        annealing = BranchAnnealing(model, x[:2], start=start, data=[x])
        wide = annealing.network.wide
        read: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda m, args, n=n, read=read: read.__setitem__(n, args[0]))
            for n, layer in (("fc1", wide.fc1), ("fc2", wide.fc2), ("conv2", wide.conv2))
        ]
        call(annealing.network, (x,), {})
        for hook in hooks:
            hook.remove()
        for name, reader, units in (
            ("conv1 -> conv2", "conv2", 6),
            ("conv2 -> fc1", "fc1", 4),
            ("fc1 -> fc2", "fc2", 8),
        ):
            flat = read[reader].detach()
            flat = flat.unflatten(1, (-1, 4)) if reader == "fc1" else flat
            flat = flat.movedim(1, -1).flatten(0, -2) if flat.dim() > 2 else flat
            wanted, given = flat[:, :units], flat[:, units:]
            fitted = (given @ annealing.network.up[name].detach().T - wanted).square().sum()
            best = (
                (given @ torch.linalg.lstsq(given, wanted, driver="gelsd").solution - wanted).square().sum()
            )
            assert best * (1 - 1e-9) <= fitted <= best * (1 + 1e-3) + 1e-9, (start, name)


def test_the_svd_start_takes_the_directions_of_largest_singular_value():
    model, x = net("plain")
    annealing = BranchAnnealing(model, x[:2], start="svd", data=[x])
    weight = model.fc1.weight
    _, values, right = torch.linalg.svd(weight, full_matrices=False)
    product = annealing.network.down["fc1"] @ weight
    assert torch.allclose(product.abs(), (values[:4, None] * right[:4]).abs(), atol=1e-9)
    norm = annealing.network.wide.norm1
    z = model.conv1(x)
    branch = torch.einsum("dc,nchw->ndhw", annealing.network.down["conv1"], z)
    assert torch.allclose(norm.running_mean[6:], branch.mean((0, 2, 3)), atol=1e-9)
    assert torch.equal(norm.running_mean[:6], model.norm1.running_mean)


def test_a_start_near_the_layers_is_nearer_than_a_random_one():
    model, x = net("residual")
    off = {}
    for start in STARTS:
        annealing = BranchAnnealing(model, x[:2], start=start, data=[x])
        annealing.alpha = 0.5
        off[start] = apart(model, annealing.network, x)
    assert off["least squares"] < off["random"] / 3
    assert off["svd"] < off["random"]


def test_the_random_start_depends_on_its_seed_alone():
    model, x = net("plain")
    one, same, other = (BranchAnnealing(model, x[:2], start="random", seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(4)
    for name, matrix in one.network.up.items():
        assert torch.equal(matrix, same.network.up[name])
        assert not torch.equal(matrix, other.network.up[name])
        assert float(matrix.detach().abs().max()) <= 1 / math.sqrt(matrix.shape[1])


def test_starting_leaves_the_random_state_and_the_statistics_alone():
    model, x = net("plain")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for start in STARTS:
        annealing = BranchAnnealing(model, x[:2], start=start, data=[x, x[:3]])
        split = annealing.network.wide.norm2
        assert torch.equal(split.running_var[:4], model.norm2.running_var)
        assert split.momentum == 0.1
        assert not annealing.network.frozen
    assert torch.equal(torch.rand(2), expected)


def test_keyword_inputs_and_batches_with_labels():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain()

        def forward(self, *, image: Tensor) -> Tensor:
            return self.inner(image)

    torch.manual_seed(0)
    model, x = lived_in(Named()), randn(6, 2, 6, 6)
    labels = torch.zeros(6, dtype=torch.long)
    annealing = BranchAnnealing(model, {"image": x[:2]}, data=[({"image": x}, labels)])
    annealing.alpha = 0.0
    small, _ = annealing.fold()
    found = call(small, (), {"image": x})
    assert difference(call(annealing.network, (), {"image": x}), found) < 1e-12


def test_include_and_exclude():
    model, x = net("plain")
    only = BranchAnnealing(model, x, start="random", include="conv1")
    assert list(only.network.alphas) == ["conv1 -> conv2"]
    but = BranchAnnealing(model, x, start="random", exclude=["conv1"])
    assert list(but.network.alphas) == ["conv2 -> fc1", "fc1 -> fc2"]
    but.alpha = 0
    small, _ = but.fold()
    assert (small.conv1.out_channels, small.conv2.out_channels, small.fc1.out_features) == (6, 2, 4)


def test_alpha_is_one_number_or_one_a_group():
    model, x = net("plain")
    annealing = BranchAnnealing(model, x, start="random")
    assert annealing.alpha == 1.0
    annealing.alpha = 0.5
    assert annealing.alpha == 0.5
    annealing.alpha = {"fc1 -> fc2": 0.25}
    assert annealing.alpha == {"conv1 -> conv2": 0.5, "conv2 -> fc1": 0.5, "fc1 -> fc2": 0.25}
    with pytest.raises(BudgetError, match=r"alpha is 1.5; it goes from 1 to 0"):
        annealing.alpha = 1.5
    with pytest.raises(BudgetError, match="alpha is nan"):
        annealing.alpha = math.nan
    with pytest.raises(TargetError, match="no group 'fc3' has a branch; conv1 -> conv2"):
        annealing.alpha = {"fc3": 0.5}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratio": 0.0}, BudgetError, "ratio is 0.0; it is the share"),
        ({"ratio": 1.0}, BudgetError, "ratio is 1.0"),
        ({"ratio": 0.99}, TargetError, "0.99 of its 6 channels are as many"),
        ({"start": "warm"}, BudgetError, "start is 'warm'; it is 'least squares', 'svd' or 'random'"),
        ({"data": None}, CriterionError, "needs data: pass data=batches, or start='random'"),
        ({"data": []}, CriterionError, "without a single batch"),
        ({"data": [randn(4, 2, 6, 6) * math.nan]}, NonFiniteError, "a NaN or an infinity"),
        ({"include": "nothing"}, TargetError, "matches no group"),
    ],
)
def test_bad_input_is_one_clear_error(options: dict, error: type[Exception], message: str):
    model, x = net("plain")
    with pytest.raises(error, match=message):
        BranchAnnealing(model, x[:2], **({"data": [x], "ratio": 0.5} | options))


def test_a_network_without_a_place_for_a_branch_is_one_clear_error():
    with pytest.raises(TargetError, match="no group"):
        BranchAnnealing(nn.Linear(4, 3), torch.randn(2, 4), start="random")
    with pytest.raises(ModelError, match="Strided does not run"):
        BranchAnnealing(Strided(), torch.randn(2, 5, 9, 9), start="random")


def test_a_copy_folds_as_the_first_does():
    model, x = net("plain")
    annealing = BranchAnnealing(model, x[:2], data=[x])
    one, other = annealing.fold()[0], copy.deepcopy(annealing).fold()[0]
    assert torch.equal(one.eval()(x), other.eval()(x))
