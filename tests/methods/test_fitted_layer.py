import resource

import pytest
import torch
from torch import nn

from networks.drawn import randn
from networks.refitted import combined, pair
from secateur.errors import CriterionError, NonFiniteError
from secateur.methods import fitted_layer
from secateur.methods.fitted_layer import FittedLayer
from secateur.methods.reconstruction import reconstruct
from secateur.structure.layers import layer_view


def layer_of(module: nn.Module, x, y) -> FittedLayer:
    view = layer_view(module)
    assert view is not None
    layer = FittedLayer("", module, module, view)
    assert layer.see([((x,), {}, None)], [((x,), {}, y)]) == ""
    return layer


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_few_rows_give_what_their_sums_give(bias, ridge, kind):
    torch.manual_seed(0)
    if kind == "linear":
        x, modules = randn(7, 30), [nn.Linear(30, 4, bias=bias).double() for _ in range(2)]
        y = randn(7, 4)
    else:
        x, modules = randn(2, 6, 4, 4), [nn.Conv2d(6, 3, 3, bias=bias).double() for _ in range(2)]
        y = randn(2, 3, 2, 2)
    modules[1].load_state_dict(modules[0].state_dict())
    errors = []
    for module, summed in zip(modules, (False, True), strict=True):
        layer = layer_of(module, x, y)
        assert layer.held is not None
        if summed:
            layer.centred()
            assert layer.held is None
        errors.append(layer.refit("layer", ridge))
    assert errors[0] == pytest.approx(errors[1], rel=1e-6, abs=1e-9)
    for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@torch.no_grad()
def test_rows_become_sums_when_there_are_more_than_inputs():
    layer = layer_of(nn.Linear(5, 2), torch.randn(4, 5), torch.randn(4, 2))
    assert layer.held is not None
    x, y = torch.randn(4, 5), torch.randn(4, 2)
    assert layer.see([((x,), {}, None)], [((x,), {}, y)]) == ""
    assert layer.held is None
    assert layer.xx.shape == (6, 6)


@torch.no_grad()
def test_many_inputs_and_few_examples_take_little_memory():
    wide = nn.Linear(65_536, 64)
    x, y = torch.randn(8, 65_536), torch.randn(8, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, after = layer_of(wide, x, y).refit("wide", 1e-9)
    assert after < 1e-6
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9


@torch.no_grad()
def test_what_takes_too_much_is_skipped_and_named(monkeypatch):
    monkeypatch.setattr(fitted_layer, "MEMORY", 8)
    x = randn(40, 5)
    model, dense, structure = pair(combined(True), x, {0: [2]})
    refit = reconstruct(model, dense, structure, [x])
    assert not refit.layers
    assert "inputs of so many examples take over" in next(iter(refit.skipped.values()))
    with pytest.raises(CriterionError, match="would take over"):
        layer_of(nn.Linear(20, 2), torch.randn(2, 20), torch.randn(2, 2)).centred()


@torch.no_grad()
def test_a_nan_among_few_rows_is_named():
    with pytest.raises(NonFiniteError, match="here: what it reads"):
        layer_of(nn.Linear(20, 2), torch.full((2, 20), torch.nan), torch.randn(2, 2)).refit("here", 0.1)
