"""Weights of a folder zeroed where they lie, shard by shard: any budget, whatever the folder's size."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.deploy.folder import replacing_folder
from secateur.errors import StorageError
from secateur.large.mapped import mapped, shards_of
from secateur.pruning.budgets import Budget
from secateur.pruning.criteria import Magnitude
from secateur.pruning.given import check_cuts
from secateur.pruning.prune import check, notes_of, scored
from secateur.pruning.targets import find_targets
from secateur.storage import as_path
from secateur.text import table


@dataclass(frozen=True)
class PrunedFolder:
    """A folder whose weights were pruned, and what is left of each tensor.

    Printed it is a table.

    Attributes:
        folder: where it lies.
        kept: by name how many weights are not zero, of how many.
        notes: what was not pruned, and why.

    Example:
        >>> import secateur as sc
        >>> from pathlib import Path
        >>> sc.PrunedFolder(Path("small"), {"a.weight": (5, 10)}, ())
        tensor    weights  kept  sparsity
        a.weight       10     5    50.00%
        all            10     5    50.00%
    """

    folder: Path
    kept: dict[str, tuple[int, int]]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        rows = [("tensor", "weights", "kept", "sparsity")]
        every = [sum(column) for column in zip(*self.kept.values(), strict=True)]
        for name, (left, whole) in [*self.kept.items(), ("all", (every[0], every[1]))]:
            rows.append((name, f"{whole:,}", f"{left:,}", f"{1 - left / max(whole, 1):.2%}"))
        return "\n".join([*table(rows, words=1), *self.notes])

    @property
    def sparsity(self) -> float:
        """The share of all these weights that is zero."""
        left, whole = (sum(column) for column in zip(*self.kept.values(), strict=True))
        return 1 - left / whole


@torch.no_grad()
def prune_folder(
    source: str | Path,
    target: str | Path,
    budget: Budget,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> PrunedFolder:
    """Copy a folder of transformers to ``target`` with its smallest weights zeroed, by whatever budget.

    No tensor is loaded: scores are read from the files' pages, and zeros written there, so that memory stays
    that of one tensor's mask. Exact budgets stay exact over all shards; dtype, shards and every other file
    are the source's.

    Args:
        source: a folder of ``save_pretrained``, with one file of weights or shards.
        target: where the new one goes; it appears when it is complete.
        budget: how much goes, and from where: ``Global``, ``Uniform``, ``NM``, or any other.
        include: name patterns of what is pruned, see ``secateur.find_targets``.
        exclude: name patterns of what is not.

    Returns:
        What is left of each tensor.

    Raises:
        StorageError: for a folder that is none of these, or a target that holds something.
        BudgetError, TargetError, NonFiniteError: as ``secateur.prune``.

    Example:
        >>> import tempfile, transformers, secateur as sc
        >>> config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)
        >>> folder = tempfile.mkdtemp()
        >>> transformers.GPT2LMHeadModel(config).save_pretrained(folder + "/dense", max_shard_size="60KB")
        >>> pruned = sc.prune_folder(folder + "/dense", folder + "/pruned", sc.Global(0.5))
        >>> pruned.sparsity
        0.5
        >>> model = transformers.GPT2LMHeadModel.from_pretrained(folder + "/pruned")
        >>> sc.sparsity(model)
        0.5
    """
    source, target = as_path(source), as_path(target)
    criterion = Magnitude()
    check(criterion, budget)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} is there already; name a new folder")
    shards_of(source)
    with replacing_folder(target) as made:
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, made / file.name)
        with mapped(made, writable=True) as opened:
            targets = find_targets(opened.model, include, exclude)
            scores = scored(criterion, targets, None, None, {})
            weights = {name: target.weight for name, target in targets.items()}
            cuts = check_cuts(budget, budget(scores, weights), targets)
            kept = {}
            for name, weight in weights.items():
                weight.masked_fill_(cuts[name].pruned(scores[name]), 0)
                kept[name] = (int(weight.count_nonzero()), weight.numel())
            notes = notes_of(targets, cuts)
    return PrunedFolder(target, kept, notes)
