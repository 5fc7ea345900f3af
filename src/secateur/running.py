"""Running somebody's network on somebody's inputs, without leaving a trace on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from secateur.copying import copied, fresh
from secateur.errors import ModelError, SecateurError
from secateur.text import first_line


def arguments(
    example_inputs: Any, kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs): a tensor is one argument, a tuple or list several, a dict keywords."""
    named = dict(kwargs or {})
    if isinstance(example_inputs, Mapping):
        return (), {**example_inputs, **named}
    if isinstance(example_inputs, (tuple, list)) and not isinstance(example_inputs, PackedSequence):
        return tuple(example_inputs), named
    return (() if example_inputs is None else (example_inputs,)), named


def call_model(model: nn.Module, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call ``model`` on a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    args, named = arguments(inputs, kwargs)
    with uncached(model):
        return model(*args, **named)


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Let networks of transformers keep no keys and values of the past while they run: where nobody asks
    for the cache by argument, it is no output, and its heads can go."""
    configs = {id(own): own for module in model.modules() if (own := vars(module).get("config")) is not None}
    cached = [own for own in configs.values() if getattr(own, "use_cache", None) is True]
    for own in cached:
        own.use_cache = False
    try:
        yield
    finally:
        for own in cached:
            own.use_cache = True


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` on, on GPUs too if they are in use, and leave the random state as it was."""
    with torch.random.fork_rng(devices=_gpus_in_use()):
        reseed(seed)
        yield


def reseed(seed: int) -> None:
    """Seed the CPU, and the GPUs if they are in use: ``torch.manual_seed`` seeds those that will be, too."""
    torch.default_generator.manual_seed(seed)
    if _gpus_in_use():
        torch.cuda.manual_seed_all(seed)


def _gpus_in_use() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


@contextmanager
def in_full_precision() -> Iterator[None]:
    """Multiply float32 numbers as they are. A GPU may round them to TF32 first, convolutions by default, or
    not, by how many channels there are: networks that are equal would come out different."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    backends: list[Any] = [cuda.matmul, cudnn.conv, cudnn.rnn]
    rounding = [backend for backend in backends if backend.fp32_precision == "tf32"]
    try:
        for backend in rounding:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend in rounding:
            backend.fp32_precision = "tf32"


def run_once(
    model: nn.Module,
    inputs: Any,
    context: AbstractContextManager[Any] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    what: str = "example inputs",
) -> Any:
    """Run a copy of ``model`` once in eval mode without gradients; a failure is one ModelError."""
    with in_full_precision():
        return forward_once(copied(model), inputs, context, kwargs=kwargs, what=what)


def forward_once(
    work: nn.Module,
    inputs: Any,
    context: AbstractContextManager[Any] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    what: str = "example inputs",
) -> Any:
    """Do what ``run_once`` does with a network that is a copy already, and stays in eval mode."""
    work.eval()
    with torch.no_grad(), failing(work, inputs, what):
        inputs, kwargs = fresh((inputs, kwargs))
        with context or nullcontext():
            return call_model(work, inputs, kwargs)


@contextmanager
def failing(model: nn.Module, inputs: Any, what: str) -> Iterator[None]:
    """Whatever a forward raises on these inputs is one ModelError that shows their shapes."""
    try:
        yield
    except SecateurError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise ModelError(
            f"{type(model).__name__} does not run on {what} {shapes(inputs)}: {first_line(error)}"
        ) from error


def shapes(value: Any) -> str:
    """Return the shapes and dtypes of nested inputs, as one reads them in a message."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return f"nested of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {shapes(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(shapes(v) for v in value) + ")"
    return repr(value)


def call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a model in eval mode without gradients."""
    with evaluating(model), torch.no_grad(), in_full_precision():
        return call_model(model, args, kwargs)
