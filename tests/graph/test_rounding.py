"""How far off a network's own float32 is, and what that allows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks.drawn import Cancelling, numbers
from networks.parts import After
from secateur.errors import ModelError
from secateur.graph.rounding import Rounding, rounding


def measured(model: nn.Module, x: torch.Tensor, tolerance: float | None = None) -> Rounding:
    with torch.no_grad():
        return rounding(model, [(((x,), {}), model(x))], tolerance)


def test_what_is_measured_is_the_difference_from_float64():
    x = torch.tensor([[0.5, 1.0]])
    third = After(lambda m, x: x / 3)
    own = abs(float(torch.tensor(1 / 3)) - 1 / 3) * 3
    assert measured(third, x).own == pytest.approx(own, rel=1e-6)
    assert measured(After(lambda m, x: x * 2), x) == Rounding(0.0, 1e-4)


def test_the_worst_of_several_calls_counts():
    model, good, bad = After(lambda m, x: (x + 1000) - 1000), torch.tensor([[1.0]]), torch.tensor([[0.1]])
    calls = [(((x,), {}), model(x)) for x in (good, bad, good)]
    found = rounding(model, calls, None)
    assert found.own == measured(model, bad).own > 1e-5
    assert found.allowed == 16 * found.own


def test_what_is_allowed():
    rough = After(lambda m, x: (x + 1e6) - 1e6)
    assert measured(rough, torch.tensor([[0.1]])).allowed == 0.01
    assert 1e-4 < measured(Cancelling(512), numbers(4, 512)).allowed < 0.01
    assert measured(rough, torch.tensor([[0.1]]), tolerance=0.5).allowed == 0.5
    assert measured(nn.Linear(2, 3), numbers(4, 2), tolerance=1e-7).allowed == 1e-7


def test_what_does_not_run_in_float64_has_the_least():
    weight = numbers(3, 2)
    fixed = After(lambda m, x: x.float() @ weight.t())
    assert measured(fixed, numbers(4, 2)).own == pytest.approx(0, abs=1e-6)
    fixed = After(lambda m, x: x @ weight.t())
    assert measured(fixed, numbers(4, 2)) == Rounding(None, 1e-4)


def test_the_model_stays_in_float32():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    measured(model, numbers(4, 3))
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan"), float("inf"), "1e-3", True])
def test_a_tolerance_is_a_positive_number(tolerance):
    with pytest.raises(ModelError, match="a positive share of the largest output is right"):
        measured(nn.Linear(2, 3), numbers(4, 2), tolerance=tolerance)
