"""Running somebody's network on somebody's inputs, without leaving a trace on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` on a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and back as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Take denormal numbers for zero, as pruned networks want (they make many, and each costs a
    hundred times a normal one), and leave the processor as it was."""
    smallest = float("5e-324")
    before = smallest * 1.0 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def as_written() -> Iterator[None]:
    """Run compiled modules as they were written: compiled code skips hooks younger than itself."""
    # Its import takes a second, and nobody who has not imported it has compiled anything.
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        yield


def run_once(model: nn.Module, inputs: Any, context: AbstractContextManager[Any] | None = None) -> Any:
    """Run ``model`` once in eval mode without gradients; a failure is one ModelError."""
    try:
        with evaluating(model), torch.no_grad(), context or nullcontext():
            return call_model(model, inputs)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{type(model).__name__} does not run on example inputs {_shapes(inputs)}: {first}"
        ) from error


def _shapes(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_shapes(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_shapes(v) for v in value) + ")"
    return repr(value)
