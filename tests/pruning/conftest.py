"""What the tests of the pruning core share: small networks, and hypothesis without surprises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return request.param


@pytest.fixture
def linear() -> Callable[..., nn.Linear]:
    """Make a Linear of given weights: ``linear([[1.0, -2.0]])``."""

    def make(weight: list[list[float]] | Tensor, bias: list[float] | None = None) -> nn.Linear:
        matrix = torch.as_tensor(weight, dtype=None if isinstance(weight, Tensor) else torch.float32)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, dtype=matrix.dtype)
        with torch.no_grad():
            layer.weight.copy_(matrix)
            if bias is not None:
                layer.bias.copy_(torch.tensor(bias))
        return layer

    return make


@pytest.fixture
def mlp() -> Callable[[], nn.Sequential]:
    """Make a small two-layer network, the same one each time."""

    def make() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    return make


@pytest.fixture
def convnet() -> Callable[[], nn.Sequential]:
    """Make a network with an embedding of every default target kind and of what is never one."""

    def make() -> nn.Sequential:
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=4, padding=1),
            nn.ConvTranspose2d(8, 4, 2, stride=2),
            nn.Flatten(),
            nn.Linear(4 * 8 * 8, 5),
        )

    return make
