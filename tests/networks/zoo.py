"""A network by name: what it is built by and what it is fed with; and a list that classes enter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Inputs = Callable[[], Arguments]


class Unavailable(LookupError):
    """The installed packages lack what a network is built from."""


@dataclass(frozen=True)
class Network:
    """A network by name; ``inputs`` draws new positional and keyword arguments at each call."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs


class Zoo(list[Network]):
    """A list of networks that module classes enter by decoration."""

    def __call__(self, inputs: Inputs, name: str = "", **sizes: Any) -> Callable[[type], type]:
        """Enter the decorated class, built with ``sizes``; the name is the class's, in snake case."""

        def enter(cls: type) -> type:
            snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
            self.append(Network(name or snake, lambda: cls(**sizes), inputs))
            return cls

        return enter


def floats(*shapes: tuple[int, ...], **named: tuple[int, ...]) -> Inputs:
    """Inputs of normal numbers, one tensor a shape."""

    def draw() -> Arguments:
        return tuple(torch.randn(s) for s in shapes), {k: torch.randn(s) for k, s in named.items()}

    return draw


def tokens(vocabulary: int, *shapes: tuple[int, ...]) -> Inputs:
    """Inputs of integers below ``vocabulary``, one tensor a shape."""

    def draw() -> Arguments:
        return tuple(torch.randint(vocabulary, s) for s in shapes), {}

    return draw
