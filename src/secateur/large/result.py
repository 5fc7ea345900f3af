"""What is left of a folder that was pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from secateur.large.mapped import Mapped
from secateur.large.treatment import Treated
from secateur.large.writing import Written
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


def told_of(
    found: PrunedFolder,
    source: Mapped,
    opened: Mapped,
    blocks: Mapping[str, Treated],
    written: Written | None,
    off: float | None,
) -> PrunedFolder:
    """Return the result of a walk over blocks; what was ``written`` the first rank knows."""
    whole, before = (sum(p.numel() for p in one.model.parameters()) for one in (source, opened))
    lost = sum(
        sum(p.numel() for p in opened.model.get_submodule(path).parameters())
        - sum(p.numel() for p in treated.block.parameters())
        for path, treated in blocks.items()
    )
    errors = [error for treated in blocks.values() for error in treated.errors]
    notes = dict.fromkeys(note for treated in blocks.values() for note in treated.notes)
    return replace(
        found,
        kept={**found.kept, **{n: pair for treated in blocks.values() for n, pair in treated.kept.items()}},
        units={f"{path}: {n}": pair for path, treated in blocks.items() for n, pair in treated.units.items()},
        notes=(*found.notes, *notes),
        parameters=(whole, before - lost),
        opened_by=written.auto if written else "",
        remote_code=written is not None and written.remote_code,
        changed=_fewer(source, opened)
        | {s.name: (s.old, s.new) for s in (written.changed if written else ())},
        max_error=max([*errors, *([] if off is None else [off])], default=None),
    )


def _fewer(source: Mapped, opened: Mapped) -> dict[str, tuple[Any, Any]]:
    """Return what the configuration of a network with fewer blocks says otherwise, but for lists."""
    before, after = source.model.config.to_dict(), opened.model.config.to_dict()
    return {n: (v, after[n]) for n, v in before.items() if type(v) is int and after.get(n) != v}
