"""Small networks by the names under which the tests ask for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from launched import launch
from torch import nn

import networks.plain


@pytest.fixture
def linear() -> Callable[..., nn.Linear]:
    return networks.plain.linear


@pytest.fixture
def convnet() -> Callable[[], nn.Sequential]:
    return networks.plain.convnet


@pytest.fixture
def mlp() -> Callable[[], nn.Sequential]:
    """Make a small two-layer network, the same one each time."""
    return lambda: networks.plain.mlp(8, 16, 4, seed=1)


@pytest.fixture(scope="session")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """What so many processes found that computed together; they run once, since their start takes seconds."""
    return cache(lambda number: launch(number, tmp_path_factory.mktemp("ranks")))
