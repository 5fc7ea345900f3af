"""Criteria: scores by hand, and nothing in the network changed by computing them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from networks.comparing import snapshot, unchanged
from secateur.errors import CriterionError, ModelError
from secateur.pruning.criteria import input_rms


def scored(criterion, net: nn.Module, data=None, loss=None, **find) -> dict[str, Tensor]:
    """Return each target's scores, whole and, the same, row by row."""
    targets = sc.find_targets(net, **find)
    out = {}
    for name, raw in criterion(targets, data, loss).items():
        rows = raw.__getitem__ if isinstance(raw, Tensor) else raw
        number = len(targets[name].weight)
        out[name] = rows(slice(0, number)).detach()
        by_row = torch.cat([rows(slice(i, i + 1)) for i in range(number)])
        assert torch.equal(by_row.detach(), out[name])
    return out


# -- magnitude and random --------------------------------------------------------------------------


def test_magnitude(linear):
    scores = scored(sc.Magnitude(), linear([[1.5, -2.0], [0.0, -0.25]]))
    assert scores["weight"].tolist() == [[1.5, 2.0], [0.0, 0.25]]


def test_random_is_uniform_and_repeats_by_its_seed(convnet):
    net = convnet()
    one, again, other = (scored(sc.Random(seed), net) for seed in (1, 1, 2))
    assert all(torch.equal(one[n], again[n]) and not torch.equal(one[n], other[n]) for n in one)
    values = torch.cat([s.flatten() for s in one.values()])
    assert 0 <= values.min() < 0.01 < 0.99 < values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)


def test_random_does_not_touch_the_global_generator(mlp):
    net = mlp()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    scored(sc.Random(), net)
    assert torch.equal(torch.rand(3), expected)


# -- Wanda -----------------------------------------------------------------------------------------


def test_wanda_linear(linear):
    layer = linear([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
    batches = [torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 1.0]]), torch.tensor([[0.0, 4.0, 1.0]])]
    rms = torch.tensor([(25 / 3) ** 0.5, (20 / 3) ** 0.5, 1.0])
    scores = scored(sc.Wanda(), layer, batches)
    torch.testing.assert_close(scores["weight"], layer.weight.detach().abs() * rms)


def test_wanda_weighs_samples_not_batches(linear):
    layer = linear(torch.randn(3, 4))
    x = torch.randn(10, 4)
    whole = scored(sc.Wanda(), layer, [x])["weight"]
    torch.testing.assert_close(scored(sc.Wanda(), layer, [x[:7], x[7:]])["weight"], whole)
    tokens = scored(sc.Wanda(), layer, [x.view(2, 5, 4)])["weight"]  # positions count as samples
    torch.testing.assert_close(tokens, whole)


def test_wanda_conv_runs_over_batch_and_positions():
    conv = nn.Conv2d(2, 3, 3)
    x = torch.randn(4, 2, 5, 6)
    rms = x.square().mean((0, 2, 3)).sqrt()
    expected = conv.weight.detach().abs() * rms.view(1, 2, 1, 1)
    torch.testing.assert_close(scored(sc.Wanda(), conv, [x])["weight"], expected)
    singly = scored(sc.Wanda(), conv, list(x))["weight"]  # images without a batch dim
    torch.testing.assert_close(singly, expected)


def test_wanda_grouped_conv_by_hand():
    # Two groups: outputs 0, 1 read channels 0, 1; outputs 2, 3 read channels 2, 3.
    conv = nn.Conv1d(4, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]).unsqueeze(2))
    x = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    scores = scored(sc.Wanda(), conv, [x])["weight"].squeeze(2)
    assert scores.tolist() == [[1, 20], [3, 40], [500, 6000], [700, 8000]]


def test_wanda_depthwise_conv():
    conv = nn.Conv2d(3, 6, 2, groups=3)
    x = torch.randn(2, 3, 4, 4)
    rms = x.square().mean((0, 2, 3)).sqrt().repeat_interleave(2)
    expected = conv.weight.detach().abs() * rms.view(6, 1, 1, 1)
    torch.testing.assert_close(scored(sc.Wanda(), conv, [x])["weight"], expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_transposed_conv_runs_over_the_first_dim(groups):
    conv = nn.ConvTranspose2d(4, 6, 2, groups=groups)
    x = torch.randn(3, 4, 5, 5)
    expected = conv.weight.detach().abs() * x.square().mean((0, 2, 3)).sqrt().view(4, 1, 1, 1)
    torch.testing.assert_close(scored(sc.Wanda(), conv, [x])["weight"], expected)


def test_wanda_sees_the_inputs_of_inner_layers(mlp):
    net = mlp()
    x = torch.randn(9, 8)
    scores = scored(sc.Wanda(), net, [(x, torch.zeros(9))])
    hidden = net[:2](x).square().mean(0).sqrt()
    torch.testing.assert_close(scores["2.weight"], net[2].weight.detach().abs() * hidden.detach())


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        return self.fc(input=left + right)


def test_wanda_with_keyword_arguments_everywhere():
    net = Keywords()
    left, right = torch.randn(5, 3), torch.randn(5, 3)
    scores = scored(sc.Wanda(), net, [{"left": left, "right": right}])
    expected = net.fc.weight.detach().abs() * (left + right).square().mean(0).sqrt()
    torch.testing.assert_close(scores["fc.weight"], expected)


def test_wanda_on_a_compiled_model_that_has_run(mlp):
    net = mlp().eval()
    compiled = torch.compile(net, backend="eager")
    x = torch.randn(6, 8)
    with torch.no_grad():
        compiled(x)
    expected, got = scored(sc.Wanda(), net, [x]), scored(sc.Wanda(), compiled, [x])
    assert all(torch.equal(expected[n], got[n]) for n in expected)


def test_wanda_on_a_model_compiled_in_place(mlp):
    net, plain = mlp().eval(), mlp()
    net.compile(backend="eager")
    x = torch.randn(6, 8)
    with torch.no_grad():
        net(x)
    expected, got = scored(sc.Wanda(), plain, [x]), scored(sc.Wanda(), net, [x])
    assert all(torch.equal(expected[n], got[n]) for n in expected)


def test_wanda_runs_in_eval_mode_and_leaves_everything_as_it_was(convnet):
    net = convnet()
    net[2].eval()
    before = snapshot(net)
    x = torch.randn(4, 3, 4, 4)
    rms = input_rms(sc.find_targets(net), [x])
    assert unchanged(net, before)  # batch norm's running statistics too
    assert [m.training for m in net] == [True, True, False, True, True, True, True]
    assert not any(m._forward_pre_hooks for m in net)
    frozen = copy.deepcopy(net).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            rms["3.weight"].flatten()[:2], frozen[:3](x).square().mean((0, 2, 3)).sqrt()[:2]
        )


def test_hooks_and_modes_come_back_after_an_error(mlp):
    net = mlp()
    for criterion in (sc.Wanda(), sc.Taylor()):
        with pytest.raises(ModelError, match="shapes cannot be multiplied"):
            scored(criterion, net, [(torch.randn(2, 5), torch.zeros(2, dtype=torch.long))])
        assert all(m.training and not m._forward_pre_hooks for m in net)


class Partly(nn.Sequential):
    """Runs the first of its layers alone."""

    def __init__(self, net: nn.Sequential, number: int) -> None:
        super().__init__(*net)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[: self.number]:
            x = layer(x)
        return x


def test_wanda_without_what_it_needs(mlp, convnet):
    with pytest.raises(CriterionError, match=r"Wanda needs data: pass data=batches"):
        scored(sc.Wanda(), mlp())
    with pytest.raises(CriterionError, match="Wanda was given data without a single batch"):
        scored(sc.Wanda(), mlp(), [])
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(CriterionError, match=r"1\.weight: Wanda needs the weight .* BatchNorm2d; exclude it"):
        scored(sc.Wanda(), convnet(), [x], include=["0", "1"])
    with pytest.raises(CriterionError, match=r"0\.bias: Wanda needs the weight of a Linear or Conv"):
        scored(sc.Wanda(), convnet(), [x], include=["0", "0.bias"])
    net = Partly(mlp(), 2)
    with pytest.raises(CriterionError, match=r"2\.weight: its layer never ran on the data given; exclude it"):
        scored(sc.Wanda(), net, [torch.randn(2, 8)])


@pytest.mark.parametrize("packed", [False, True])
def test_wanda_reads_what_a_recurrent_layer_is_called_with(packed):
    net = nn.LSTM(3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3)
    if packed:
        data = [{"input": nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]))}]
        read = torch.cat([x[:5, 0], x[:3, 1]])
    else:
        data, read = [x], x.flatten(0, 1)
    inputs = ["weight_ih_l0", "weight_ih_l0_reverse"]
    scores = scored(sc.Wanda(), net, data, include=inputs)
    for name in inputs:
        expected = getattr(net, name).detach().abs() * read.square().mean(0).sqrt()
        torch.testing.assert_close(scores[name], expected)


def test_wanda_says_that_it_sees_no_inner_state():
    for net, name in ((nn.GRU(3, 4), "weight_hh_l0"), (nn.LSTMCell(3, 4), "weight_hh")):
        with pytest.raises(CriterionError, match=rf"^{name}: .* multiplies a state inside the .*exclude it$"):
            scored(sc.Wanda(), net, [torch.randn(5, 3)])
        inputs = name.replace("hh", "ih")
        assert list(scored(sc.Wanda(), net, [torch.randn(5, 3)], exclude="*hh*")) == [inputs]


def test_wanda_on_what_a_weight_is_computed_from():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    x = torch.randn(6, 3)
    behind = net[0].parametrizations.weight.original1.detach()
    scores = scored(sc.Wanda(), net, [x])
    expected = behind.abs() * x.square().mean(0).sqrt()
    torch.testing.assert_close(scores["0.parametrizations.weight.original1"], expected)


# -- Taylor ----------------------------------------------------------------------------------------


def test_taylor_by_hand(linear):
    # loss = sum(y), so the gradient of w[i, j] is the sum of x[j] over the batch; mean of two batches.
    layer = linear([[1.0, -2.0], [0.5, 3.0]])
    batches = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0), (torch.tensor([[-2.0, 0.0]]), 0)]
    scores = scored(sc.Taylor(), layer, batches, lambda y, _: y.sum())
    assert scores["weight"].tolist() == [[1.0, 6.0], [0.5, 9.0]]  # |w| x |1, 3|


def test_taylor_uses_cross_entropy_and_labels(mlp):
    net = mlp()
    x, labels = torch.randn(6, 8), torch.randint(0, 4, (6,))
    loss = nn.functional.cross_entropy(net(x), labels)
    gradient = torch.autograd.grad(loss, net[2].weight)[0]
    scores = scored(sc.Taylor(), net, [(x, labels)])
    torch.testing.assert_close(scores["2.weight"], (net[2].weight * gradient).abs().detach())


def test_taylor_touches_no_gradient_buffer_mode_or_flag(convnet):
    net = convnet()
    net[2].eval()
    net[0].weight.requires_grad_(False)
    net[3].weight.grad = torch.full_like(net[3].weight, 7.0)
    before = snapshot(net)
    data = [(torch.randn(4, 3, 4, 4), torch.randint(0, 5, (4,)))]
    scores = scored(sc.Taylor(), net, data)
    assert scores["0.weight"].count_nonzero() > 200  # a frozen weight is scored like any other
    assert unchanged(net, before)
    assert net[3].weight.grad.eq(7).all()
    assert all(p.grad is None for p in net.parameters() if p is not net[3].weight)
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 9
    assert [m.training for m in net] == [True, True, False, True, True, True, True]


def test_taylor_under_prune_which_computes_no_gradients_otherwise(mlp):
    net = mlp()
    x, labels = torch.randn(6, 8), torch.randint(0, 4, (6,))
    scores = scored(sc.Taylor(), net, [(x, labels)])
    masks = sc.prune(net, sc.Taylor(), sc.Uniform(0.5), data=[(x, labels)])
    for name, score in scores.items():
        assert score[~masks[name]].max() <= score[masks[name]].min()
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_taylor_in_half_precision_adds_up_in_float32(linear):
    layer = linear(torch.ones(1, 2, dtype=torch.bfloat16))
    batches = [(torch.tensor([[1.0, 256.0]], dtype=torch.bfloat16), 0)] * 256
    batches += [(torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16), 0)] * 256
    scores = scored(sc.Taylor(), layer, batches, lambda y, _: y.sum())
    assert scores["weight"].tolist() == [[1.0, 128.5]]


def test_taylor_without_what_it_needs(mlp):
    x = torch.randn(2, 8)
    with pytest.raises(CriterionError, match=r"Taylor needs data: pass data=batches"):
        scored(sc.Taylor(), mlp())
    with pytest.raises(CriterionError, match=r"Taylor needs batches of \(inputs, labels\); got inputs alone"):
        scored(sc.Taylor(), mlp(), [x])
    net = Partly(mlp(), 3)
    net.aside = nn.Linear(2, 2)  # pyright: ignore
    with pytest.raises(CriterionError, match=r"aside\.weight: the loss does not depend on it; exclude it"):
        scored(sc.Taylor(), net, [(x, torch.zeros(2, dtype=torch.long))])


# -- a criterion of the user's -----------------------------------------------------------------------


def test_a_function_is_a_criterion_and_scores_may_be_negative(linear):
    def signed(targets, data=None, loss=None):
        return {name: t.weight for name, t in targets.items()}

    layer = linear([[3.0, -1.0, 2.0, -5.0]])
    masks = sc.prune(layer, signed, sc.Uniform(0.5))
    assert masks["weight"].tolist() == [[True, False, True, False]]


def test_wrong_scores_are_refused(mlp):
    with pytest.raises(CriterionError, match=r"<lambda> gave no scores for '2\.weight'"):
        sc.prune(mlp(), lambda targets, *_: {"0.weight": targets["0.weight"].weight}, sc.Uniform(0.5))
    with pytest.raises(
        CriterionError, match=r"0\.weight: the scores have shape \(8, 16\), the weight \(16, 8\)"
    ):
        sc.prune(mlp(), lambda targets, *_: {n: t.weight.T for n, t in targets.items()}, sc.Uniform(0.5))
