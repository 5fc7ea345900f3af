"""A network of the zoo made ready to be pruned, so that no error hides, and how the result is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .zoo import Arguments, Network

EXACT, CAST = 1e-9, 1e-5
LEAST_GONE = 0.1


@dataclass(frozen=True)
class Outcome:
    """What became of one network: pass, refused, wrong, fails, hangs or skipped."""

    status: str
    gone: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    reason: str = ""


def verdict(gone: float, error: float, tolerance: float, seconds: float) -> Outcome:
    """Judge a pruned network that ran: a wrong result weighs more than a small gain."""
    if not error <= tolerance:
        return Outcome("wrong", gone, error, seconds, f"differs from the masked network by {error:.1e}")
    if gone < LEAST_GONE:
        return Outcome("refused", gone, error, seconds, f"only {gone:.1%} of the parameters are gone")
    return Outcome("pass", gone, error, seconds)


@dataclass
class Case:
    """A network ready to be pruned: its weights randomised, in float64 where it can be."""

    model: nn.Module
    draws: list[Arguments]
    tolerance: float


def prepare(network: Network, wide: bool = True) -> Case:
    """Build ``network`` and draw its inputs twice; Unavailable where it cannot be built here."""
    torch.manual_seed(0)
    model = network.build().eval()
    randomise(model)
    draws = [network.inputs() for _ in range(2)]
    calibrate(model, draws[0])
    if not wide:
        return Case(model, draws, CAST)
    doubled = [((*(double(a) for a in args),), {k: double(v) for k, v in kw.items()}) for args, kw in draws]
    model.double()
    try:
        with torch.no_grad(), Casts() as casts:
            model(*doubled[0][0], **doubled[0][1])
    except (RuntimeError, TypeError):
        return Case(model.float(), draws, CAST)
    return Case(model, doubled, CAST if casts.found else EXACT)


class Casts(TorchDispatchMode):
    """Watches for operators that make narrower numbers out of float64."""

    found = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if any(t.dtype == torch.float64 for t in tensors(args)):
            narrow = (torch.float32, torch.float16, torch.bfloat16)
            self.found = self.found or any(t.dtype in narrow for t in tensors(out))
        return out


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings (a ModelOutput is one)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def relative_error(expected: Any, got: Any) -> float:
    """The largest difference over all tensors, each relative to its largest expected number."""
    pairs = list(zip(tensors(expected), tensors(got), strict=False))
    if len(list(tensors(expected))) != len(list(tensors(got))) or any(a.shape != b.shape for a, b in pairs):
        return inf
    worst = 0.0
    for a, b in pairs:
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
            return inf
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)))
    return worst


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Bring every weight to unit gain and draw the rest, so that zeros and ones hide no error."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    turned = {id(m.weight) for m in model.modules() if isinstance(m, nn.modules.conv._ConvTransposeNd)}
    for name, parameter in model.named_parameters():
        if sum(size > 1 for size in parameter.shape) > 1:
            axis = 1 if id(parameter) in turned else 0
            fan_in = 1 if id(parameter) in tables else parameter.numel() / parameter.shape[axis]
            parameter.copy_(torch.where(parameter == 0, torch.randn_like(parameter) * 0.1, parameter))
            parameter.mul_(fan_in**-0.5 / parameter.std().clamp(min=1e-6))
        elif "bias" in name.rpartition(".")[2]:
            parameter.normal_(0, 0.2)
        else:
            parameter.uniform_(0.5, 1.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


@torch.no_grad()
def calibrate(model: nn.Module, arguments: Arguments) -> None:
    """Set batch norms near what they see; else deep networks fade into their biases, and errors with them."""

    def near(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        # one variance for all channels: that of one channel is close to 0 where a map has one pixel
        variance = inputs[0].var(axes, correction=0).mean().clamp(min=1e-2)
        mean = inputs[0].mean(axes)
        module.running_mean.copy_(mean + 0.3 * variance.sqrt() * torch.randn_like(mean))
        module.running_var.copy_(variance * (torch.rand_like(mean) + 0.5))

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [m.register_forward_pre_hook(near) for m in norms if m.running_var is not None]
    model(*arguments[0], **arguments[1])
    for hook in hooks:
        hook.remove()
