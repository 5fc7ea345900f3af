"""A folder pruned to a folder: block by block on a text, or where its weights lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.copying import copied
from secateur.deploy.folder import replacing_folder
from secateur.errors import BudgetError, CriterionError, StorageError
from secateur.large.mapped import Mapped, mapped, shards_of
from secateur.large.progress import Progress, in_progress, settings_of
from secateur.large.reopened import reopened
from secateur.large.texts import calls_on
from secateur.large.treatment import Treated, Treatment, check_method
from secateur.large.walk import Walk
from secateur.large.writing import Written, copy_folder, write_folder
from secateur.methods.sparsegpt import sparsegpt
from secateur.numeric import is_real
from secateur.pruning.budgets import Budget
from secateur.pruning.capabilities import says
from secateur.pruning.given import check_cuts
from secateur.pruning.prune import check, notes_of, scored
from secateur.pruning.targets import find_targets
from secateur.storage import as_path
from secateur.text import table

Told = Callable[[int, int, str], None]
"""What is told of the work: how many blocks are done, of how many, and what is done now."""
_ACTIVATIONS = 2 << 30  # bytes of them that stay in memory


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


@torch.no_grad()
def prune_folder(
    source: str | Path,
    target: str | Path,
    criterion: Any = None,
    budget: Budget | None = None,
    *,
    text: str | Path | Tensor | Sequence[Mapping[str, Any]] | None = None,
    units: float = 0.0,
    refit: bool = True,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    sequences: int = 32,
    length: int = 512,
    seed: int = 0,
    ram_limit: int | None = None,
    trust_remote_code: bool = False,
    proof: bool = True,
    on_step: Told | None = None,
) -> PrunedFolder:
    """Prune a folder of transformers to another one, block by block, without ever holding the network.

    A criterion that reads no data zeroes weights where they lie, by any budget, exact over all shards. What
    reads data, and whole units, go block by block: each on what those before it, already pruned, give on the
    text. Work that is interrupted goes on from the last block when it is asked for again.

    Args:
        source: a folder of ``save_pretrained``, with one file of weights or shards.
        target: where the new one goes; it appears when it is complete.
        criterion: what ranks weights, ``Magnitude()`` or ``Wanda()``; or ``secateur.sparsegpt`` itself.
        budget: how much goes, and from where; of what reads data ``Uniform`` or ``NM``.
        text: a file of text, which the folder's tokenizer reads, or of tokens (a .npy of (sequences,
            length)); tokens (sequences, length); or a list of arguments by name, for other networks.
        units: the share of the heads and neurons of each block that are removed.
        refit: whether what reads removed units is refitted to what the block gave with them.
        include: name patterns of weights that are thinned out, see ``secateur.find_targets``.
        exclude: name patterns of those that are not.
        sequences: how many windows of a text file are read.
        length: how many tokens each has; fewer where the model reads no more.
        seed: of the places in the text.
        ram_limit: bytes that this may take beside the pages of files; activations go to files beyond it.
        trust_remote_code: run the code that came with the folder, where its class is of that.
        proof: open what was written in another process, and compare.
        on_step: called with (blocks done, blocks, what is done now).

    Returns:
        What is left, what opens it, and how equal it is.

    Raises:
        StorageError: for a folder that is none of these, or a target that holds something.
        ModelError: for a quantised one, or one with code of its own without ``trust_remote_code``.
        DataError: for a text that cannot be read.
        BudgetError, CriterionError, TargetError, NonFiniteError: as ``secateur.prune``.

    Source:
        Frantar & Alistarh, "SparseGPT", 2023, and Sun et al., Wanda, 2023, for going block by block.

    Example:
        >>> import tempfile, transformers, torch, secateur as sc
        >>> config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)
        >>> folder = tempfile.mkdtemp()
        >>> transformers.GPT2LMHeadModel(config).save_pretrained(folder + "/dense", max_shard_size="60KB")
        >>> pruned = sc.prune_folder(folder + "/dense", folder + "/magnitude", sc.Magnitude(), sc.Global(0.5))
        >>> pruned.sparsity
        0.5
        >>> tokens = torch.randint(64, (8, 16))
        >>> small = sc.prune_folder(folder + "/dense", folder + "/small", units=0.5, text=tokens)
        >>> small.opened_by, sc.from_pretrained(folder + "/small").num_parameters() < 20_000
        ('AutoModelForCausalLM', True)
    """
    source, target = as_path(source), as_path(target)
    treatment, zeroing = _plan(criterion, budget, units, refit, include, exclude)
    if treatment and text is None:
        raise CriterionError("text is missing: what is pruned block by block is chosen on one")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} is there already; name a new folder")
    tell = on_step or (lambda done, number, what: None)
    with mapped(source, remote_code=trust_remote_code) as opened:
        found = PrunedFolder(target)
        if not treatment:
            with replacing_folder(target) as made:
                copy_folder(source, made)
                return _zeroed(found, made, zeroing, include, exclude, trust_remote_code)
        calls = {"sequences": sequences, "length": length, "seed": seed, "remote_code": trust_remote_code}
        batches, example = calls_on(opened.model, text, source, **calls)  # type: ignore[arg-type]
        settings = settings_of(source, batches, {"treatment": treatment})
        with in_progress(target, settings) as progress:
            walk = Walk(opened, batches, example, _memory(opened, ram_limit))
            blocks = _treated(walk, treatment, progress, tell)
            tell(len(blocks), len(blocks), "writing")
            with replacing_folder(target) as made:
                parts = {path: treated.block for path, treated in blocks.items()}
                written = write_folder(opened, opened, parts, made)
                if zeroing is not None:
                    found = _zeroed(found, made, zeroing, include, exclude, trust_remote_code)
                tell(len(blocks), len(blocks), "opening it in another process")
                off = reopened(made, written, opened, parts, walk.examples) if proof else None
    return _told(found, opened, blocks, written, off)


def _plan(
    criterion: Any, budget: Any, units: float, refit: bool, include: Any, exclude: Any
) -> tuple[Treatment, tuple[Any, Budget] | None]:
    """Return what is done block by block, and the criterion and budget of what is done where weights lie."""
    if not is_real(units) or not 0 <= units < 1:
        raise BudgetError(f"units is {units!r}; a share from 0, under 1, is right")
    if (criterion is None) != (budget is None):
        lacks = "budget" if budget is None else "criterion"
        raise BudgetError(f"{lacks} is missing: weights are ranked by a criterion, and a budget says how many go")
    treatment = Treatment(units=float(units), refit=refit)
    if criterion is None:
        if not treatment:
            raise BudgetError("nothing is asked for: give a criterion and a budget, or units=")
        return treatment, None
    if criterion is not sparsegpt:
        check(criterion, budget)
        if says(criterion, "reads_data") is False:
            return treatment, (criterion, budget)  # type: ignore[return-value]
    check_method(criterion, budget)
    return replace(treatment, method=criterion, budget=budget, include=include, exclude=exclude), None


def _treated(walk: Walk, treatment: Treatment, progress: Progress, tell: Told) -> dict[str, Treated]:
    """Return the blocks as they have become, in the dtypes of the folder, as pages of files."""
    found: dict[str, Treated] = {}
    for number, path in enumerate(walk.blocks):
        tell(number, len(walk.blocks), path)
        if not progress.has(number):
            walk.reach(path)
            block = walk.opened.block(path)
            treated = treatment(path, block, walk.inputs(path), walk.examples[path])
            like = walk.opened.model.get_submodule(path)
            progress.keep(number, replace(treated, block=_in_dtypes(treated.block, like)))
            del block, treated
        found[path] = progress.restored(number, walk.opened.block(path, float32=False))
        walk.put(path, found[path].block)
    return found


def _in_dtypes(block: nn.Module, like: nn.Module) -> nn.Module:
    """Give each tensor of a block the dtype that it has in another one."""
    dtypes = {name: tensor.dtype for name, tensor in [*like.named_parameters(), *like.named_buffers()]}
    for module_path, module in block.named_modules():
        for leaf, parameter in module._parameters.items():
            name = f"{module_path}.{leaf}".lstrip(".")
            if parameter is not None:
                parameter.data = parameter.data.to(dtypes[name])
        for leaf, buffer in module._buffers.items():
            name = f"{module_path}.{leaf}".lstrip(".")
            if buffer is not None:
                module._buffers[leaf] = buffer.to(dtypes[name])
    return block


def _memory(opened: Mapped, limit: int | None) -> float:
    """Return how many bytes of activations may stay in memory."""
    return _ACTIVATIONS if limit is None else limit / 4


def _zeroed(
    found: PrunedFolder, made: Path, zeroing: Any, include: Any, exclude: Any, remote_code: bool
) -> PrunedFolder:
    """Zero weights where they lie in a folder's files."""
    criterion, budget = zeroing
    with mapped(made, writable=True, remote_code=remote_code) as opened:
        targets = find_targets(opened.model, include, exclude)
        scores = scored(criterion, targets, None, None, {})
        weights = {name: target.weight for name, target in targets.items()}
        cuts = check_cuts(budget, budget(scores, weights), targets)
        kept = {}
        for name, weight in weights.items():
            weight.masked_fill_(cuts[name].pruned(scores[name]), 0)
            kept[name] = (int(weight.count_nonzero()), weight.numel())
        return replace(found, kept=kept, notes=notes_of(targets, cuts))


def _told(
    found: PrunedFolder, opened: Mapped, blocks: Mapping[str, Treated], written: Written, off: float | None
) -> PrunedFolder:
    """Return the result of a walk over blocks."""
    before = sum(parameter.numel() for parameter in opened.model.parameters())
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
        parameters=(before, before - lost),
        opened_by=written.auto,
        remote_code=written.remote_code,
        changed={setting.name: (setting.old, setting.new) for setting in written.changed},
        max_error=max([*errors, *([] if off is None else [off])], default=None),
    )
