"""Averages of a network: masked wherever they keep its weights, held with it, and seen where they can be."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur as sc
from networks.toy import loss_of, step
from secateur.errors import MaskError, NonFiniteError, SecateurWarning

OF = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}


class ModelEmaV2(nn.Module):
    """As timm's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval()
        self.decay = 0.9

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        for average, value in zip(self.module.parameters(), model.parameters(), strict=True):
            average.copy_(self.decay * average + (1 - self.decay) * value)


class ModelEma:
    """As timm's first, and YOLO's: no module itself."""

    def __init__(self, model: nn.Module) -> None:
        self.ema = copy.deepcopy(model)
        self.inner = ModelEmaV2(model)
        self.inner.module = self.ema

    def update_parameters(self, model: nn.Module) -> None:
        self.inner.update_parameters(model)


class WeightAveraging:
    """As Lightning's callback."""

    def __init__(self, model: nn.Module) -> None:
        self._average_model: AveragedModel | None = AveragedModel(model, **OF)
        self.trainer = {"model": model}

    def update_parameters(self, model: nn.Module) -> None:
        assert self._average_model is not None
        self._average_model.update_parameters(model)


class EMAModel:
    """As diffusers'."""

    def __init__(self, model: nn.Module, trained: bool = False) -> None:
        self.shadow_params = [
            p.detach().clone() for p in model.parameters() if p.requires_grad or not trained
        ]
        self.trained = trained
        self.temp_stored_params = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        values = [p for p in model.parameters() if p.requires_grad or not self.trained]
        for average, value in zip(self.shadow_params, values, strict=True):
            average.lerp_(value, 0.1)


class ByName:
    """As many write it: a dict of tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            self.shadow[name].lerp_(value, 0.1)


def kept_in(average: Any) -> dict[str, Tensor]:
    if isinstance(average, WeightAveraging):
        average = average._average_model
    if isinstance(average, (ModelEmaV2, AveragedModel)):
        return dict(average.module.named_parameters())
    if isinstance(average, EMAModel):
        return dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), average.shadow_params, strict=True))
    return dict(average.ema.named_parameters()) if isinstance(average, ModelEma) else average.shadow


KINDS = [
    lambda net: AveragedModel(net, **OF),
    lambda net: AveragedModel(torch.compile(net, backend="eager"), **OF),
    ModelEmaV2,
    ModelEma,
    WeightAveraging,
    EMAModel,
    ByName,
]


def dead(masks: sc.Masks, average: Any) -> bool:
    kept = {n.removeprefix("_orig_mod."): t for n, t in kept_in(average).items()}
    return not any(kept[name][~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize("kind", KINDS)
def test_apply_and_held_mask_averages(mlp, kind):
    net = mlp()
    average = kind(net)
    average.update_parameters(net)
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.75))
    assert not dead(masks, average)
    masks.apply(average)
    assert dead(masks, average)
    assert any(t.count_nonzero() for t in kept_in(average).values())

    net = mlp()
    average = kind(net)
    masks = masks.bind(net)
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    with masks.held(optimizer, averaged=average):
        for _ in range(4):
            step(net, optimizer)
            average.update_parameters(net)
            assert dead(masks, average)
        with torch.no_grad():
            kept_in(average)[next(iter(kept_in(average)))].add_(1)  # loaded from a checkpoint, say
    assert dead(masks, average)


def test_several_averages_and_during(mlp):
    net = mlp()
    averages = [AveragedModel(net, **OF), EMAModel(net)]
    optimizer = SGD(net.parameters(), lr=0.1)
    arguments = optimizer, net, sc.Magnitude(), sc.Global(0.8), sc.Cubic(3)
    with sc.during(*arguments, every=2, averaged=averages) as pruning:
        for _ in range(5):
            step(net, optimizer)
            for average in averages:
                average.update_parameters(net)
    assert all(dead(pruning.masks, average) for average in averages)
    assert sc.sparsity(averages[0].module) >= 0.8


def test_a_list_of_the_trained_parameters_alone(mlp):
    net = mlp()
    net[0].bias.requires_grad_(False)
    average = EMAModel(net, trained=True)
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5)).apply(average)
    assert not average.shadow_params[1][~masks["2.weight"]].any()


def test_what_is_no_average_of_it(mlp):
    net = mlp()
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    optimizer = SGD(net.parameters(), lr=0.1)
    both = ModelEma(net)
    both.other = copy.deepcopy(net)  # type: ignore[attr-defined]
    empty = WeightAveraging(net)
    empty._average_model = None
    for average, message in (
        (ModelEmaV2(nn.Linear(2, 2)), r"ModelEmaV2 has no parameter '0\.weight'"),
        (EMAModel(nn.Linear(2, 2)), "EMAModel holds no network, and no dict or list of tensors"),
        (empty, "WeightAveraging holds no network"),
        (object(), "object holds no network"),
        (both, "ModelEma holds 2 networks that the masks fit"),
    ):
        with pytest.raises(MaskError, match=message):
            masks.apply(average)
        with pytest.raises(MaskError, match=message), masks.held(optimizer, averaged=average):
            pytest.fail("the block must not run")
    average = AveragedModel(net)
    with torch.no_grad():
        average.module[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"0\.weight holds a NaN"):
        masks.apply(average)


# -- averages in sight -----------------------------------------------------------------------------------


class WithAverage(nn.Module):
    def __init__(self, net: nn.Module, average: Any) -> None:
        super().__init__()
        self.net = net
        self.average = average


def in_the_optimizer(net: nn.Module, average: Any) -> SGD:
    optimizer = SGD(net.parameters(), lr=0.1)
    optimizer.ema = average  # type: ignore[attr-defined]
    return optimizer


def in_a_hook(net: nn.Module, average: Any) -> SGD:
    optimizer = SGD(net.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(net))
    return optimizer


@pytest.mark.parametrize("make", [in_the_optimizer, in_a_hook])
@pytest.mark.parametrize("kind", [AveragedModel, ModelEmaV2, ModelEma, EMAModel, WeightAveraging])
def test_held_warns_of_an_average_that_it_sees(mlp, kind, make):
    net = mlp()
    average = kind(net)
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    optimizer = make(net, average)
    sees = pytest.warns(SecateurWarning, match=f"^{kind.__name__} keeps an average .*averaged=it")
    with sees as caught, masks.held(optimizer):
        pass
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with masks.held(optimizer, averaged=average):
            loss_of(net).backward()
            optimizer.step()


def test_held_warns_of_an_average_beside_the_network(mlp):
    net = mlp()
    both = WithAverage(net, AveragedModel(net))
    masks = sc.prune(both.net, sc.Magnitude(), sc.Uniform(0.5))
    net.register_module("average", both.average)
    with (
        pytest.warns(SecateurWarning, match="^AveragedModel keeps"),
        masks.held(SGD(both.parameters(), lr=0.1)),
    ):
        pass


def test_no_warning_where_there_is_none(mlp):
    net = nn.Sequential(*mlp(), nn.AvgPool1d(2))
    masks = sc.prune(net, sc.Magnitude(), sc.Uniform(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with masks.held(SGD(net.parameters(), lr=0.1)):
            pass
