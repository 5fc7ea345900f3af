"""The proof that a small network computes what the masked one does: outputs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Proof:
    """What ``secateur.compact`` did and how far the small network's outputs are off.

    Errors are relative to the largest |output|, in ``dtype``. Printed it is a summary.

    Attributes:
        inputs: how many calls were compared.
        dtype: what they were computed in: float64 where the model allows it.
        max_error: the largest error with the weights as they are.
        max_error_randomised: with the surviving ones randomised under the same masks.
        removed: by group the units that went, of how many.
        parameters: of the model given, and of the small one.
        macs: the dense multiply-adds of both, on the example inputs.
        kept: units that are dead and stay, and why.
        folded: units whose constant output went into the next bias.
        changed: attributes that were set.
        pruned: by group a bool for each unit, whether it went.
        units: how many units every group had.
        optimizer: the small model's, where one was given.
        scheduler: likewise.
        masks: likewise.
        notes: calls that were not compared, and what did not follow.
        unseen: parameters that no call has read and that have a dim of a size that was cut: another path may
            fail on them.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> x = torch.randn(2, 8)
        >>> _ = sc.prune(net, sc.L2Norm(), sc.Uniform(0.25), structure=sc.trace(net, x))
        >>> small, proof = sc.compact(net, x)
        >>> proof.removed, proof.parameters, proof.macs
        ({'0 -> 2': (4, 16)}, (212, 160), (384, 288))
        >>> proof.dtype, proof.max_error < 1e-12
        ('float64', True)
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
    pruned: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    optimizer: Any = None
    scheduler: Any = None
    masks: Any = None
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def gone(self) -> Mapping[str, Any]:
        """The old name of ``pruned``."""
        return self.pruned

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """The proof alone, as searches that compact more than once have several."""
        return (self,)

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


def untraced(structure: Any) -> str:
    """Return what is wrong with a ``structure`` that was not traced from the model at hand."""
    if not hasattr(structure, "model"):
        return f"is a {type(structure).__name__}; pass what trace(model, example_inputs) returns"
    return (
        "was traced from another model (a copy, or one on the meta device, is another); "
        "trace this very model again"
    )
