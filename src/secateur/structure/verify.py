"""The proof that a small network computes what the masked one does: outputs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from secateur.measure.running import evaluating

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Proof:
    """What :func:`secateur.compact` did and how far the small network's outputs are off.

    ``max_error`` and ``max_error_randomised`` are relative to the largest |output|, in ``dtype``: with
    the weights as they are, and with the surviving ones randomised under the same masks. ``removed``:
    by group the units that went, of how many, and ``gone`` a bool for each; ``units``: how many every
    group had. ``kept``: units that are dead and stay, and why.
    ``folded``: units whose constant output went into the next bias. ``changed``: attributes set.
    ``notes``: calls that were not compared, and what did not follow. ``unseen``: parameters that no call
    has read and that have a dim of a size that was cut: another path may fail on them.
    """

    inputs: int
    dtype: str
    max_error: float
    max_error_randomised: float
    removed: Mapping[str, tuple[int, int]]
    parameters: tuple[int, int]
    macs: tuple[float, float]
    kept: Mapping[str, str] = field(default_factory=dict)
    folded: int = 0
    changed: tuple[str, ...] = ()
    gone: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    optimizer: Any = None
    scheduler: Any = None
    masks: Any = None
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def __repr__(self) -> str:
        units = sum(count for count, _ in self.removed.values())
        sizes = {name: total for name, (_, total) in self.removed.items()} | dict(self.units)
        before, after = self.parameters
        macs = "" if not self.macs[0] else f", {self.macs[0]:,.0f} -> {self.macs[1]:,.0f} MACs"
        lines = [
            f"{units} of {sum(sizes.values())} units removed, in {len(self.removed)} of {len(sizes)} groups: "
            f"{before:,} -> {after:,} parameters ({before / max(1, after):.2f}x fewer){macs}",
            f"equal to the masked network to {self.max_error:.1e} (surviving weights randomised: "
            f"{self.max_error_randomised:.1e}), {self.dtype}, {self.inputs} calls",
        ]
        if self.folded:
            lines.append(f"{self.folded} constant units folded into the next layer's bias")
        lines += [f"kept {name}: {reason}" for name, reason in self.kept.items()]
        lines += [f"note: {note}" for note in self.notes]
        if self.unseen:
            lines.append(
                f"no example ran what reads {', '.join(self.unseen)}, of a size that was cut: give examples= "
                "or methods= that do"
            )
        return "\n".join(lines)


def tensors_in(outputs: Any) -> list[Tensor]:
    """Return the tensors of nested outputs, of every dtype, in order."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif id(value) not in seen and not isinstance(value, (str, type, nn.Module)):
            seen.add(id(value))
            leaves = _pytree.tree_leaves(value)
            if len(leaves) != 1 or leaves[0] is not value:
                inside: Iterable[Any] = leaves
            elif isinstance(value, Mapping):
                inside = value.values()
            elif isinstance(value, (list, tuple, set)):
                inside = value
            else:
                slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
                inside = [*getattr(value, "__dict__", {}).values(), *(getattr(value, s, None) for s in slots)]
            for part in inside:
                look(part)

    look(outputs)
    return found


def hollow(outputs: Any) -> bool:
    """Whether the numbers of some output are all NaN: then a comparison says nothing of it."""
    return any(t.numel() and bool(t.isnan().all()) for t in tensors_in(outputs))


def difference(expected: Any, found: Any) -> float:
    """Return the largest difference over all outputs, relative to the largest |expected| of each;
    infinite where they have not even the same shapes, or integers or bools that differ."""
    wanted, given = tensors_in(expected), tensors_in(found)
    if len(wanted) != len(given) or any(a.shape != b.shape for a, b in zip(wanted, given, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(wanted, given, strict=True):
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                return float("inf")
            continue
        a, b = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a, b))
        a, b = a.detach().double(), b.detach().double()
        same = (a == b) | (a.isnan() & b.isnan())
        off = torch.where(same, 0.0, (a - b).abs())
        if not torch.isfinite(off).all():
            return float("inf")
        finite = a[torch.isfinite(a)]
        scale = float(finite.abs().max()) if finite.numel() else 1.0
        worst = max(worst, float(off.max()) / max(scale, 1e-30))
    return worst


def call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a model in eval mode without gradients."""
    with evaluating(model), torch.no_grad():
        return model(*args, **kwargs)


def untraced(structure: Any) -> str:
    """Return what is wrong with a ``structure`` that was not traced from the model at hand."""
    if not hasattr(structure, "model"):
        return f"is a {type(structure).__name__}; pass what trace(model, example_inputs) returns"
    return (
        "was traced from another model (a copy, or one on the meta device, is another); "
        "trace this very model again"
    )


class Widened(TorchFunctionMode):
    """Where a forward asks for float32 it gets float64: casts inside a model round nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = tuple(torch.float64 if part is torch.float32 else part for part in args)
        kwargs = {k: torch.float64 if part is torch.float32 else part for k, part in (kwargs or {}).items()}
        return func(*args, **kwargs)


def as_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Return nested arguments with their floating-point tensors in ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(as_dtype(part, dtype) for part in value)
    if isinstance(value, dict):
        return {key: as_dtype(part, dtype) for key, part in value.items()}
    return value


def redrawn(value: Any, generator: torch.Generator) -> Any:
    """Return nested arguments with other numbers: of the same scale, or integers in the same range."""
    if isinstance(value, Tensor):
        if not value.numel() or value.dtype == torch.bool or value.is_complex():
            return value
        if not value.is_floating_point():
            low, high = min(0, int(value.min())), int(value.max()) + 1
            return torch.randint(low, high, value.shape, generator=generator).to(value)
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        deviation = value.std() if value.numel() > 1 else value.abs().mean()
        return value.mean() + noise * deviation.clamp(min=1e-3)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(redrawn(part, generator) for part in value)
    if isinstance(value, dict):
        return {key: redrawn(part, generator) for key, part in value.items()}
    return value


def resized(value: Any, size: int, other: int) -> Any:
    """Return nested arguments with each dim of ``size`` cut, or repeated from its start, to ``other``."""

    def new(leaf: Any) -> Any:
        for dim in range(leaf.dim()) if isinstance(leaf, Tensor) else ():
            if leaf.shape[dim] == size:
                leaf = leaf.index_select(dim, torch.arange(other, device=leaf.device) % size)
        return leaf

    return _pytree.tree_map(new, value)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Multiply every parameter by random numbers of both signs and every running variance by
    positive ones, in place: zeros stay zeros, and nothing else stays what it was."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            factor = torch.rand(parameter.shape, generator=generator) + 0.5
            sign = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            if parameter.dim() < 2:
                sign = sign.abs()  # scales of norms keep their sign, as a variance must
            parameter.mul_((factor * sign).to(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")) and buffer.is_floating_point():
            buffer.mul_((torch.rand(buffer.shape, generator=generator) + 0.5).to(buffer))


@torch.no_grad()
def rescale(model: nn.Module) -> None:
    """Give every weight matrix the size at which a signal neither dies nor grows (He et al., 2015), in
    place: what reaches an output as less than its rounding is equal whatever it is."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dim() > 1:
            squares = parameter.square().sum()
            if squares > 0 and torch.isfinite(squares):
                parameter.mul_((2 * len(parameter) / squares).sqrt())
