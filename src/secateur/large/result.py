"""What is left of a folder that was pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.text import table


@dataclass(frozen=True)
class PrunedFolder:
    """A folder that was pruned, and what is left of it.

    Printed it is a table of the tensors that were thinned out, and lines on the rest.

    Attributes:
        folder: where it lies.
        kept: by name of a tensor that was thinned out, how many weights are not zero, of how many.
        notes: what was not pruned, and why.
        units: by group of heads or neurons how many are left, of how many.
        parameters: of the whole network, before and after.
        opened_by: the auto class of transformers that opens it, with ``trust_remote_code=True`` where
            ``remote_code`` says so; ``secateur.from_pretrained`` never needs that.
        remote_code: whether a plan says its sizes, which no stock configuration does.
        changed: by name what its configuration says now, (before, now).
        max_error: the largest relative difference that was seen: of a block from the masked one, or of what
            another process opened.

    Example:
        >>> import secateur as sc
        >>> from pathlib import Path
        >>> sc.PrunedFolder(Path("small"), {"a.weight": (5, 10)})
        small
        tensor    weights  kept  sparsity
        a.weight       10     5    50.00%
        all            10     5    50.00%
    """

    folder: Path
    kept: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    units: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    parameters: tuple[int, int] | None = None
    opened_by: str = ""
    remote_code: bool = False
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    max_error: float | None = None

    def __repr__(self) -> str:
        how = " with trust_remote_code=True, and by secateur.from_pretrained without"
        lines = [f"{self.folder}" + (f": opened by {self.opened_by}" if self.opened_by else "")]
        lines[0] += how if self.remote_code else ""
        if self.parameters:
            before, after = self.parameters
            lines.append(f"parameters {before:,} -> {after:,} ({after / before:.1%})")
        if self.changed:
            said = ", ".join(f"{name} {new} (was {old})" for name, (old, new) in self.changed.items())
            lines.append(f"config.json says {said}")
        if self.max_error is not None:
            lines.append(f"equal, block by block and opened in another process, to {self.max_error:.1e}")
        if self.kept:
            rows = [("tensor", "weights", "kept", "sparsity")]
            every = [sum(column) for column in zip(*self.kept.values(), strict=True)]
            for name, (left, whole) in [*self.kept.items(), ("all", (every[0], every[1]))]:
                rows.append((name, f"{whole:,}", f"{left:,}", f"{1 - left / max(whole, 1):.2%}"))
            lines += table(rows, words=1)
        return "\n".join([*lines, *self.notes])

    @property
    def sparsity(self) -> float:
        """The share of the weights of these tensors that is zero."""
        if not self.kept:
            return 0.0
        left, whole = (sum(column) for column in zip(*self.kept.values(), strict=True))
        return 1 - left / whole
