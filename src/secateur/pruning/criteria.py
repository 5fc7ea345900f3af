"""Importance scores: ``criterion(targets, data, loss)`` gives one score an entry, low ones go first.

A criterion returns, for each target's name, either the tensor of scores or a function from a slice
of rows to their scores; the second form never makes anything of the network's size.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.errors import CriterionError
from secateur.pruning.targets import Target, Targets

Rows = Callable[[slice], Tensor]
Batches = Iterable[Any]
Loss = Callable[[Any, Any], Tensor]


class Criterion(Protocol):
    """Gives the importance of every entry of every target."""

    def __call__(
        self, targets: Targets, data: Batches | None = None, loss: Loss | None = None
    ) -> Mapping[str, Tensor | Rows]: ...


@dataclass(frozen=True)
class Magnitude:
    """|w|: the size of the weight itself; needs no data."""

    def __call__(self, targets: Targets, data: Any = None, loss: Any = None) -> dict[str, Rows]:
        weights = {name: t.weight.detach() for name, t in targets.items()}
        return {n: lambda rows, w=w: w[rows].abs() for n, w in weights.items()}


@dataclass(frozen=True)
class Random:
    """Uniform random scores from ``seed``: the baseline that every criterion has to beat."""

    seed: int = 0

    def __call__(self, targets: Targets, data: Any = None, loss: Any = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: torch.rand(target.weight.shape, generator=generator).to(target.weight.device)
            for name, target in targets.items()
        }


@dataclass(frozen=True)
class Wanda:
    """|w| x rms of the input that w multiplies (Sun et al., 2023); needs data, no labels.

    The rms runs over the batch and every position. The paper compares weights within one output:
    that is what it does under a budget per layer, one row at a time; here the budget decides.
    """

    def __call__(self, targets: Targets, data: Batches | None = None, loss: Any = None) -> dict[str, Rows]:
        rms = input_rms(targets, data)
        weights = {name: (t.weight.detach(), rms[name]) for name, t in targets.items()}
        return {
            name: lambda rows, w=w, r=r: w[rows].abs() * (r if r.shape[0] == 1 else r[rows])
            for name, (w, r) in weights.items()
        }


@dataclass(frozen=True)
class Taylor:
    """|w x gradient of the loss|: what the loss would change by, to first order (Molchanov et al., 2017).

    Needs ``data`` of (inputs, labels); ``loss(outputs, labels)`` is cross-entropy unless given.
    The gradient is the mean over the batches; neither ``.grad`` nor any buffer changes.
    """

    def __call__(
        self, targets: Targets, data: Batches | None = None, loss: Loss | None = None
    ) -> dict[str, Rows]:
        gradients = mean_gradients(targets, data, loss or nn.functional.cross_entropy)
        pairs = {name: (t.weight.detach(), gradients[name]) for name, t in targets.items()}
        return {n: lambda rows, w=w, g=g: (w[rows] * g[rows]).abs() for n, (w, g) in pairs.items()}


def input_rms(targets: Targets, data: Batches | None) -> dict[str, Tensor]:
    """Return the rms of each target's input by channel, shaped to broadcast over its weight."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(targets, 0)

    def watch(name: str, target: Target) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = (args[0] if args else kwargs["input"]).detach().to(torch.float32)
            dim = inputs.dim() - target.weight.dim() + 1  # channels, batched or not
            others = [d for d in range(inputs.dim()) if d != dim]
            total = inputs.square().sum(others).double()
            sums[name] = sums[name] + total if name in sums else total
            counts[name] += inputs.numel() // inputs.shape[dim]

        return target.module.register_forward_pre_hook(hook, with_kwargs=True)

    for name, target in targets.items():
        layer = hasattr(target.module, "in_features") or hasattr(target.module, "in_channels")
        if not layer or target.weight.dim() < 2:
            raise CriterionError(
                f"{name}: Wanda needs the weight of a Linear or Conv layer, which its input "
                f"multiplies; this is a parameter of {type(target.module).__name__}; exclude it"
            )
    handles = [watch(name, target) for name, target in targets.items()]
    try:
        with scoring(targets.model), torch.no_grad():
            for inputs, _ in batches(data, "Wanda", targets.model):
                call(targets.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    unused = [name for name in targets if name not in sums]
    if unused:
        raise CriterionError(f"{unused[0]}: its layer never ran on the data given; exclude it")
    return {n: _over_weight(t, (sums[n] / counts[n]).sqrt()) for n, t in targets.items()}


def _over_weight(target: Target, rms: Tensor) -> Tensor:
    weight = target.weight
    rms = rms.to(weight.dtype if weight.element_size() >= 4 else torch.float32)
    ones = [1] * (weight.dim() - 2)
    if target.input_dim == 0:
        return rms.reshape(-1, 1, *ones)
    groups = getattr(target.module, "groups", 1)
    if groups == 1:
        return rms.reshape(1, -1, *ones)
    by_group = rms.reshape(groups, -1)
    return by_group.repeat_interleave(weight.shape[0] // groups, 0).reshape(*weight.shape[:2], *ones)


def mean_gradients(targets: Targets, data: Batches | None, loss: Loss) -> dict[str, Tensor]:
    """Return the mean over the batches of the loss's gradient with respect to each target."""
    weights = [target.weight for target in targets.values()]
    frozen = [w for w in weights if not w.requires_grad]
    sums = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
    number = 0
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with scoring(targets.model), torch.enable_grad():
            for inputs, labels in batches(data, "Taylor", targets.model):
                if labels is None:
                    raise CriterionError("Taylor needs batches of (inputs, labels); got inputs alone")
                value = loss(call(targets.model, inputs), labels)
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
                for name, total, gradient in zip(targets, sums, gradients, strict=True):
                    if gradient is None:
                        raise CriterionError(f"{name}: the loss does not depend on it; exclude it")
                    total += gradient
                number += 1
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    return {name: total / number for name, total in zip(targets, sums, strict=True)}


def batches(data: Batches | None, who: str, model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yield (inputs, labels or None) on the model's device from whatever the user calls batches."""
    if data is None:
        raise CriterionError(f"{who} needs data: pass data=batches, an iterable of (inputs, labels)")
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    number = 0
    for number, batch in enumerate(data, 1):  # noqa: B007
        pair = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        yield _to(pair[0], device), _to(pair[1], device)
    if not number:
        raise CriterionError(f"{who} was given data without a single batch")


def call(model: nn.Module, inputs: Any) -> Any:
    """Run ``model`` on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _to(v, device) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to(v, device) for v in value]
    return value.to(device) if isinstance(value, Tensor) else value


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and back as it was; compiled modules run as they were written,
    since compiled code skips hooks that are younger than it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # Its import takes a second, and nobody who has not imported it has compiled anything.
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
