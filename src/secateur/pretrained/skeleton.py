"""The network that a configuration builds, its parameters without values: it takes no memory, and no time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def skeleton(kind: Any, config: Any, **options: Any) -> Any:
    """Return a model of a configuration in eval mode, whose parameters lie on the meta device and whose
    buffers hold what the class computes; the configuration stays as it was.

    ``options``: further ones of transformers' ``_from_config``, like ``dtype``.
    """
    from transformers.initialization import no_init_weights

    with _parameters_nowhere(), no_init_weights():
        return kind._from_config(copy.deepcopy(config), **options).eval()


@contextmanager
def _parameters_nowhere() -> Iterator[None]:
    """Let every parameter that a module is given lie on the meta device. ``torch.device("meta")`` would take
    the buffers along, which no file of weights brings back."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]  # pyright: ignore
    try:
        yield
    finally:
        nn.Module.register_parameter = register
