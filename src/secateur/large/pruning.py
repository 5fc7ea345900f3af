"""A folder pruned to a folder: block by block on a text, or where its weights lie."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.deploy.folder import replacing_folder
from secateur.errors import BudgetError, CriterionError, StorageError
from secateur.large.configuring import Kept
from secateur.large.depth import by_influence, by_perplexity, kept_without, removable
from secateur.large.evaluating import perplexity
from secateur.large.fitting import Limit, bytes_of, share_for
from secateur.large.mapped import Mapped, mapped
from secateur.large.progress import Progress, in_progress, settings_of
from secateur.large.ranks import Ranks
from secateur.large.reopened import reopened
from secateur.large.result import PrunedFolder, told_of
from secateur.large.texts import calls_on
from secateur.large.treatment import Treated, Treatment, check_method
from secateur.large.walk import ACTIVATIONS, Walk
from secateur.large.writing import copy_folder, write_folder
from secateur.methods.sparsegpt import sparsegpt
from secateur.numeric import is_real
from secateur.pruning.budgets import Budget
from secateur.pruning.capabilities import says
from secateur.pruning.entries import scored
from secateur.pruning.given import check_cuts
from secateur.pruning.prune import check, notes_of
from secateur.pruning.targets import find_targets
from secateur.storage import as_path

Told = Callable[[int, int, str], None]
"""What is told of the work: how many blocks are done, of how many, and what is done now."""
Blocks = Mapping[str, Treated]


@torch.no_grad()
def prune_folder(
    source: str | Path,
    target: str | Path,
    criterion: Any = None,
    budget: Budget | None = None,
    *,
    text: str | Path | Tensor | Sequence[Mapping[str, Any]] | None = None,
    blocks: float = 0.0,
    blocks_by: str = "influence",
    experts: float = 0.0,
    experts_by: str = "reap",
    units: float = 0.0,
    parameters: float | None = None,
    memory: int | str | None = None,
    context: int = 4096,
    batch: int = 1,
    refit: bool = True,
    recover: int = 0,
    rank: int | None = None,
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
    text. Work that is interrupted goes on from the last block when it is asked for again. Where a process
    group is up, each rank reads its part of the text, and the first writes.

    Args:
        source: a folder of ``save_pretrained``, with one file of weights or shards.
        target: where the new one goes; it appears when it is complete.
        criterion: what ranks weights, ``Magnitude()`` or ``Wanda()``; or ``secateur.sparsegpt`` itself.
        budget: how much goes, and from where; of what reads data ``Uniform`` or ``NM``.
        text: a file of text, which the folder's tokenizer reads, or of tokens (a .npy of (sequences,
            length)); tokens (sequences, length); or a list of arguments by name, for other networks.
        blocks: the share of the blocks that are removed whole, before all else.
        blocks_by: "influence", how little a block changes what passes through it, or "perplexity", that of
            the text without each, one after the other, which takes as many evaluations as there are blocks.
        experts: the share of the experts of each mixture that are removed.
        experts_by: "reap" or "frequency", see ``secateur.score_experts``.
        units: the share of the heads and neurons of each block that are removed.
        parameters: instead of ``units``, the share of all parameters that may be left.
        memory: or the bytes that may be, "5GB" say, of weights in their dtype and of the keys and values that
            a causal language model keeps.
        context: of how many tokens these are, with ``memory``.
        batch: and of how many sequences.
        refit: whether what reads removed units is refitted to what the block gave with them.
        recover: how often the text is read to train each block towards what it gave before; zeros stay.
        rank: of low-rank adapters that are trained then, and merged, instead of all weights.
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
    for name, share in (("blocks", blocks), ("experts", experts), ("units", units)):
        if not is_real(share) or not 0 <= share < 1:
            raise BudgetError(f"{name} is {share!r}; a share from 0, under 1, is right")
    if blocks_by not in ("influence", "perplexity"):
        raise BudgetError(f"blocks_by is {blocks_by!r}; it is 'influence' or 'perplexity'")
    treatment = Treatment(float(experts), experts_by, float(units), refit, recover=recover, rank=rank)
    treatment, zeroing = _with_weights(treatment, criterion, budget, include, exclude)
    limit = None
    if parameters is not None or memory is not None:
        if units:
            raise BudgetError(
                "units is a share that goes, parameters= and memory= what may be left: give one"
            )
        size = None if memory is None else bytes_of(memory)
        limit = Limit(parameters, size, context, batch)
        treatment = replace(treatment, units=0.5)  # found below
    by_block = bool(treatment or blocks)
    if zeroing is None and not by_block:
        raise BudgetError("nothing is asked for: give a criterion and a budget, or units=, experts=, blocks=")
    if recover and not treatment:
        raise BudgetError("recover trains blocks that were pruned on the text; none is")
    if by_block and text is None:
        raise CriterionError("text is missing: what is pruned block by block is chosen on one")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} is there already; name a new folder")
    ranks = Ranks.here()
    tell = on_step if on_step is not None and ranks.first else _silent
    work = _Work(source, target, treatment, zeroing, trust_remote_code, proof, tell, ranks)
    with mapped(source, remote_code=trust_remote_code) as opened:
        if text is None:
            return work.only_zeroed()
        batches, example = calls_on(
            opened.model, text, source, sequences=sequences, length=length, seed=seed, ranks=ranks,
            remote_code=trust_remote_code,
        )  # fmt: skip
        depth, asked = (float(blocks), blocks_by), (treatment, limit, zeroing, ranks.number)
        settings = settings_of(source, batches, (*asked, depth))
        with in_progress(target, settings, ranks) as progress:
            walk = Walk(opened, batches, example, ACTIVATIONS if ram_limit is None else ram_limit / 4)
            kept = work.depth(walk, depth, progress) if blocks else None
            with mapped(source, remote_code=trust_remote_code, kept=kept) as shorter:
                if kept is not None:
                    walk = Walk(shorter, batches, example, walk.memory)
                if limit is not None:
                    treatment = replace(treatment, units=share_for(walk, limit))
                return replace(work, treatment=treatment).done(opened, walk, progress)


def _silent(done: int, number: int, what: str) -> None:
    del done, number, what


def _with_weights(
    treatment: Treatment, criterion: Any, budget: Any, include: Any, exclude: Any
) -> tuple[Treatment, Zeroing | None]:
    """Return what is done block by block, and what is done where weights lie."""
    if (criterion is None) != (budget is None):
        lacks = "budget" if budget is None else "criterion"
        raise BudgetError(
            f"{lacks} is missing: weights are ranked by a criterion, and a budget says how many go"
        )
    if criterion is None:
        return treatment, None
    if criterion is not sparsegpt:
        check(criterion, budget)
        if says(criterion, "reads_data") is False:
            return treatment, Zeroing(criterion, budget, include, exclude)
    check_method(criterion, budget)
    return replace(treatment, method=criterion, budget=budget, include=include, exclude=exclude), None


@dataclass(frozen=True)
class Zeroing:
    """Weights that are zeroed where they lie: ranked by a criterion that reads no data, by any budget."""

    criterion: Any
    budget: Any
    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None


@dataclass(frozen=True)
class _Work:
    """What is asked of a folder."""

    source: Path
    target: Path
    treatment: Treatment
    zeroing: Zeroing | None
    remote_code: bool
    proof: bool
    tell: Told
    ranks: Ranks

    def depth(self, walk: Walk, depth: tuple[float, str], progress: Progress) -> Kept:
        """Return the blocks that stay; found once."""
        gone = progress.gone()
        if gone is None:
            share, by = depth
            if by == "influence":
                gone = by_influence(walk, share, self.tell, self.ranks)
            else:
                able = removable(walk.opened, walk.blocks)
                score = partial(self._perplexity, walk.batches)
                options = {"remote_code": self.remote_code}
                gone = by_perplexity(self.source, walk.blocks, able, share, score, self.tell, **options)
            self.ranks.wait()  # none looks for it any more
            if self.ranks.first:
                progress.remember(gone)
        return kept_without(walk.blocks, gone)

    def _perplexity(self, batches: Any, opened: Mapped) -> float:
        """Return the geometric mean of the ranks' perplexities."""
        told = self.ranks.gather(perplexity(opened, batches, _silent)[0])
        return math.exp(sum(map(math.log, told)) / len(told))

    def done(self, source: Mapped, walk: Walk, progress: Progress) -> PrunedFolder:
        """Treat what a walk goes through, and write it."""
        blocks = _treated(walk, self.treatment, progress, self.tell, self.ranks)
        found, number = PrunedFolder(self.target), len(blocks)
        parts = {path: treated.block for path, treated in blocks.items()}
        self.tell(number, number, "writing")
        if not self.ranks.first:
            self.ranks.wait()
            return told_of(found, source, walk.opened, blocks, None, None)
        try:
            return self._written(source, walk, blocks, parts)
        finally:
            self.ranks.wait()

    def _written(self, source: Mapped, walk: Walk, blocks: Blocks, parts: Any) -> PrunedFolder:
        found, number = PrunedFolder(self.target), len(blocks)
        with replacing_folder(self.target) as made:
            written = write_folder(source, walk.opened, parts, made)
            off = None
            if self.proof:
                self.tell(number, number, "opening it in another process")
                off = reopened(made, written, walk.opened, parts, walk.examples)
            if self.zeroing is not None:
                found = self.zeroed(found, made)
        return told_of(found, source, walk.opened, blocks, written, off)

    def only_zeroed(self) -> PrunedFolder:
        """Copy the folder, and zero weights in the copy."""
        try:
            if not self.ranks.first:
                return PrunedFolder(self.target)
            with replacing_folder(self.target) as made:
                copy_folder(self.source, made)
                return self.zeroed(PrunedFolder(self.target), made)
        finally:
            self.ranks.wait()

    def zeroed(self, found: PrunedFolder, made: Path) -> PrunedFolder:
        """Zero weights where they lie in a folder's files."""
        assert self.zeroing is not None
        criterion, budget = self.zeroing.criterion, self.zeroing.budget
        with mapped(made, writable=True, remote_code=self.remote_code, plan=True) as opened:
            targets = find_targets(opened.model, self.zeroing.include, self.zeroing.exclude)
            scores = scored(criterion, targets, None, None, {})
            weights = {name: target.weight for name, target in targets.items()}
            cuts = check_cuts(budget, budget(scores, weights), targets)
            kept = {}
            for name, weight in weights.items():
                pruned = cuts[name].pruned(scores[name])
                weight.masked_fill_(pruned, 0)
                kept[name] = (weight.numel() - int(pruned.count_nonzero()), weight.numel())
            return replace(found, kept=kept, notes=notes_of(targets, cuts))


def _treated(
    walk: Walk, treatment: Treatment, progress: Progress, tell: Told, ranks: Ranks
) -> dict[str, Treated]:
    """Return the blocks as they have become, in the dtypes of the folder, as pages of files: on every rank
    those that the first has written."""
    found: dict[str, Treated] = {}
    done = {number for number in range(len(walk.blocks)) if progress.has(number)}
    ranks.wait()
    for number, path in enumerate(walk.blocks):
        tell(number, len(walk.blocks), path)
        if treatment and number not in done:
            walk.reach(path)
            block = walk.opened.block(path)
            treated = treatment(path, block, walk.inputs(path), walk.examples[path])
            like = walk.opened.model.get_submodule(path)
            if ranks.first:
                progress.keep(number, replace(treated, block=_in_dtypes(treated.block, like)))
            ranks.wait()
            del block, treated
            gc.collect()  # networks refer to themselves, and a block is large
        block = walk.opened.block(path, float32=False) if path else walk.opened.model
        found[path] = progress.restored(number, block) if treatment else Treated(block)
        walk.put(path, found[path].block)
    if treatment.experts and not any(treated.experts for treated in found.values()):
        raise BudgetError(f"experts={treatment.experts:g}: no block has a mixture of experts")
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
