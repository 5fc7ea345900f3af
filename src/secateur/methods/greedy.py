"""Greedy pruning: remove, again and again, the unit that the network misses least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree

from secateur.copying import copied
from secateur.errors import BudgetError, CriterionError, NonFiniteError
from secateur.graph.capture import arguments
from secateur.graph.names import unwrapped
from secateur.methods.ablation import Ablation, Example
from secateur.methods.goals import goal_of
from secateur.pruning.calibration import Batches, batches
from secateur.pruning.structured import select_groups
from secateur.running import call, denormals_flushed, run_once
from secateur.structure.compact import compact
from secateur.structure.labels import Array
from secateur.structure.surgery import mask_units
from secateur.structure.units import Structure, trace
from secateur.text import first_line

Judge = Callable[[Any, Any], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Greedy:
    """How :func:`prune_greedily` goes about it.

    ``criterion``: "score" removes the unit without which the score (a classifier's accuracy) is
    largest, ties by the smaller loss, then by the order of groups and units; "output" the one with
    which the outputs of the layers that read it change least (ThiNet, Luo et al. 2017): all that went
    since the last compaction together, relative to those outputs, in closed form, without labels.

    ``scope``: "layer", units compete within their group, and the group with the largest share of its
    units left is next, so that layers shrink evenly; "network", all units compete. After ``every``
    removals the network is compacted and, where a training is given, fine-tuned. ``at_once`` units go
    before the others are judged anew. Each group keeps ``min_kept``. The data are tried in batches of
    ``batch_size``; ``memory``: about the bytes that trying takes beside one batch's activations.
    """

    criterion: Literal["score", "output"] = "score"
    scope: Literal["layer", "network"] = "layer"
    every: int = 16
    at_once: int = 1
    min_kept: int = 1
    batch_size: int = 100
    memory: int = 2**25

    def __post_init__(self) -> None:
        for name, known in (("criterion", ("score", "output")), ("scope", ("layer", "network"))):
            if getattr(self, name) not in known:
                raise BudgetError(f"{name} is {getattr(self, name)!r}; it is {' or '.join(map(repr, known))}")
        for name in ("every", "at_once", "min_kept", "batch_size", "memory"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise BudgetError(f"{name} is {getattr(self, name)!r}; it counts from 1")


@dataclass(frozen=True)
class Removal:
    """A unit that went: ``unit`` is its number in ``group`` in the network given. ``score`` and
    ``loss``: on the data without it; for the output criterion, the change and no score."""

    group: str
    unit: int
    score: float | None
    loss: float


@dataclass(frozen=True)
class GreedyRun:
    """What was removed, in order; by stage (units gone so far, score, loss) after its fine-tuning; the
    groups whose units each took a whole forward to try, or could not be tried, and why; and those that were
    kept, since a forward does not bear their removal."""

    removals: tuple[Removal, ...]
    stages: tuple[tuple[int, float, float], ...]
    slow: Mapping[str, str]
    kept: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"{number} units removed: score {s:.4f}, loss {loss:.4f}" for number, s, loss in self.stages]
        lines += [f"slow {name}: {reason}" for name, reason in self.slow.items()]
        return "\n".join([*lines, *(f"kept {name}: {reason}" for name, reason in self.kept.items())])


def prune_greedily(
    model: nn.Module,
    example_inputs: Any,
    data: Batches,
    *,
    sparsity: float | None = None,
    parameters: float | None = None,
    macs: float | None = None,
    latency_ms: float | None = None,
    score: float | None = None,
    method: Greedy | None = None,
    fine_tune: Callable[[nn.Module], None] | None = None,
    judge: Judge | None = None,
    dense: nn.Module | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    on_stage: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, GreedyRun]:
    """Remove units one by one, each time the one that is missed least; return (small model, run).

    One goal ends it: ``sparsity`` (the share of the weights of Linear and Conv layers that is gone),
    ``parameters`` or ``macs`` (the share left), ``latency_ms`` (one forward on ``example_inputs``, tried
    where the network is compacted), each of the network ``dense`` (default: the model given), or the
    lowest ``score`` that the network may have (after its fine-tuning): the last that has it is returned.

    ``data``: batches of (inputs, labels) to choose on, of all classes: of the validation split, never of
    the test set. ``judge(outputs, labels)`` gives (scores, losses), one each an example; default: right
    or wrong, and cross-entropy. ``fine_tune(model)`` trains the network that it is given, in place, with
    an optimizer of its own. ``on_stage(model)`` hears of each stage; from the network that it is given a
    run that was stopped goes on to the same end (with ``dense``).

    The choices are those of masking each unit and evaluating; they are found faster (see
    :class:`secateur.methods.ablation.Ablation`). The model given is not changed.

    Raises BudgetError where the goal is not one, or cannot be met; CriterionError where data or judge do
    not fit, ModelError where the model does not run on the data; NonFiniteError for a loss that is no number.
    """
    model = unwrapped(model)
    method, dense = method or Greedy(), unwrapped(dense or model)
    goal = goal_of(
        dense, example_inputs, sparsity=sparsity, parameters=parameters, macs=macs, latency_ms=latency_ms,
        score=score,
    )  # fmt: skip
    chunks = _chunks(
        data, method.batch_size, model, labelled=method.criterion == "score" or judge is not None
    )
    example, kwargs = chunks[0].example
    run_once(model, example, kwargs=kwargs, what="the data")
    judge = judge or classified
    groups = select_groups(trace(dense, example_inputs), include, exclude)
    sizes = {name: len(group) for name, group in groups.items()}
    removals: list[Removal] = []
    stages: list[tuple[int, float, float]] = []
    slow: dict[str, str] = {}
    kept: dict[str, str] = {}
    numbers: dict[str, Array] = {}
    small = copied(model)
    while not goal.met(small):
        work = copied(small)
        structure = trace(work, example_inputs)
        # A group that is down to one unit is none any more.
        chosen = replace(structure, groups={n: g for n, g in structure.groups.items() if n in sizes})
        for name, group in chosen.groups.items():
            numbers.setdefault(name, np.arange(len(group)))
        stage = _Stage(work, chosen, method, chunks, judge, sizes)
        slow |= stage.ablation.slow
        gone: list[Removal] = []
        floor = goal.limit if goal.name == "score" and fine_tune is None else None
        while len(gone) < method.every and not goal.met(work, chosen, stage.doomed):
            found = stage.next()
            lost = floor is not None and any(one.score is not None and one.score < floor for one in found)
            if lost or not found:
                break
            stage.remove(found)
            gone += found
        if not gone:
            if goal.name == "score":
                break
            raise BudgetError(f"{goal}: cannot be met with {method.min_kept} units left in each group")
        after, proof = compact(work, example_inputs, structure=structure)
        stuck = {one.group for one in gone} - proof.gone.keys()
        if stuck:  # what stays would be tried for ever: the stage again, without it
            kept |= {name: proof.kept[name] for name in stuck}
            sizes = {name: size for name, size in sizes.items() if name not in stuck}
            continue
        if fine_tune is not None:
            fine_tune(after)
        result = (
            _evaluate(after, chunks, judge) if chunks[0].labels is not None else (float("nan"), float("nan"))
        )
        if goal.name == "score" and result[0] < goal.limit:
            break
        small = after
        removals += [Removal(r.group, int(numbers[r.group][r.unit]), r.score, r.loss) for r in gone]
        stages.append((len(removals), *result))
        for name in chosen.groups.keys() & proof.gone.keys():
            numbers[name] = numbers[name][~proof.gone[name]]
        if on_stage is not None:
            on_stage(small)
    return small, GreedyRun(tuple(removals), tuple(stages), slow, kept)


class _Stage:
    """The removals between two compactions: masks ``model`` as it goes; ``doomed`` says what is gone."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        method: Greedy,
        chunks: Sequence[_Chunk],
        judge: Judge,
        sizes: Mapping[str, int],
    ) -> None:
        self.model, self.structure, self.method = model, structure, method
        self.chunks, self.judge, self.sizes = chunks, judge, sizes
        self.doomed = {name: np.zeros(len(group), dtype=bool) for name, group in structure.groups.items()}
        self.ablation = Ablation(model, structure, chunks[0].example, method.memory)
        self.changes: dict[str, Array] = {}

    def next(self) -> list[Removal]:
        """Return the units that go next; none where every group is down to what it keeps."""
        spare = {name: int((~gone).sum()) - self.method.min_kept for name, gone in self.doomed.items()}
        names = [name for name, number in spare.items() if number > 0 and self._can_try(name)]
        if self.method.scope == "layer" and names:
            names = [max(names, key=lambda n: (spare[n] + self.method.min_kept) / self.sizes.get(n, 1))]
        tried = self._scored(names) if self.method.criterion == "score" else self._changed(names)
        tried.sort(key=lambda one: (-(one.score or 0.0), one.loss))  # stable: ties go by their order
        taken: list[Removal] = []
        for one in tried:
            if len(taken) < self.method.at_once and spare[one.group] > 0:
                spare[one.group] -= 1
                taken.append(one)
        return taken

    def remove(self, units: Sequence[Removal]) -> None:
        for one in units:
            self.doomed[one.group][one.unit] = True
        mask_units(self.model, self.structure, self.doomed)

    def _can_try(self, name: str) -> bool:
        return self.method.criterion == "score" or name in self.ablation.ways

    def _scored(self, names: Sequence[str]) -> list[Removal]:
        """Every unit that is left, with the score and the loss of the network without it."""
        left = {name: np.flatnonzero(~self.doomed[name]) for name in names}
        sums = {name: np.zeros((2, len(self.doomed[name]))) for name in names}
        for chunk in self.chunks:
            with denormals_flushed():
                for name, units, outputs in self.ablation.outputs(chunk.example, left):
                    sums[name][:, units] += chunk.judged(outputs, len(units), self.judge)
        number = sum(chunk.number for chunk in self.chunks)
        return [
            Removal(name, int(u), sums[name][0, u] / number, sums[name][1, u] / number)
            for name, units in left.items()
            for u in units
        ]

    def _changed(self, names: Sequence[str]) -> list[Removal]:
        """Every unit that is left, with the change of what reads its group once it has gone too."""
        found = []
        for name in names:
            if name not in self.changes:
                self.changes[name] = self._products(name)
            products, gone = self.changes[name], self.doomed[name]
            now = products[gone][:, gone].sum()
            more = products.diagonal() + 2 * products[:, gone].sum(1)
            found += [Removal(name, int(u), None, float(now + more[u])) for u in np.flatnonzero(~gone)]
        return found

    def _products(self, name: str) -> Array:
        """Inner products of what any two units of a group make of the outputs that read it, relative
        to the squares of these outputs and summed over the layers that read first."""
        units = np.arange(len(self.doomed[name]))
        products: dict[int, Array] = {}
        squares: dict[int, float] = {}
        for chunk in self.chunks:
            for reader, outputs, parts in self.ablation.changes(chunk.example, name, units):
                products[reader] = products.get(reader, 0.0) + (parts @ parts.T).double().cpu().numpy()
                squares[reader] = squares.get(reader, 0.0) + float(outputs.double().square().sum())
        return sum(products[reader] / max(squares[reader], 1e-300) for reader in products)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Chunk:
    """A batch of the size that all have, of which the first ``number`` examples count."""

    example: Example
    labels: Any
    number: int

    def judged(self, outputs: Any, units: int, judge: Judge) -> Array:
        """Return the sums of scores and of losses by unit, of outputs stacked as (unit, example, ...)."""
        flat = _pytree.tree_map(lambda t: t.flatten(0, 1), outputs)
        labels = _pytree.tree_map(lambda t: torch.cat([t] * units), self.labels)
        both = torch.stack([part.detach().double().cpu() for part in judge(flat, labels)])
        if both.shape != (2, len(_pytree.tree_leaves(labels)[0])):
            raise CriterionError(
                f"the judge gave {[*both.shape[1:]]} scores or losses; one for each of the examples is right"
            )
        sums = both.unflatten(1, (units, -1))[..., : self.number].sum(-1)
        if not sums.isfinite().all():
            raise NonFiniteError("the loss or the score without some unit is not a finite number")
        return sums.numpy()


def classified(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return by example whether a classifier is right (1.0 or 0.0) and its cross-entropy.

    ``outputs``: logits (examples, classes), or anything with ``logits``; one logit is a binary one.
    Where there are positions too, (examples, positions, classes), their mean.
    """
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or logits.shape[:-1] != labels.shape:
        what = [*logits.shape] if isinstance(logits, Tensor) else type(outputs).__name__
        raise CriterionError(
            f"outputs {what} and labels {[*labels.shape]} are no classification; pass judge=, which gives "
            "(scores, losses) of outputs and labels"
        )
    if logits.shape[-1] == 1:
        right = (logits[..., 0] > 0) == labels.bool()
        loss = F.binary_cross_entropy_with_logits(logits[..., 0], labels.to(logits.dtype), reduction="none")
    else:
        right = logits.argmax(-1) == labels
        loss = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    return right.double().flatten(1).mean(1) if right.dim() > 1 else right.double(), (
        loss.flatten(1).mean(1) if loss.dim() > 1 else loss
    )


def _evaluate(model: nn.Module, chunks: Sequence[_Chunk], judge: Judge) -> tuple[float, float]:
    """Return (score, loss) on the data."""
    sums = np.zeros(2)
    for chunk in chunks:
        with denormals_flushed():
            outputs = _pytree.tree_map(lambda t: t[None], call(model, *chunk.example))
        sums += chunk.judged(outputs, 1, judge)[:, 0]
    score, loss = sums / sum(chunk.number for chunk in chunks)
    return float(score), float(loss)


def _chunks(data: Batches, size: int, model: nn.Module, labelled: bool) -> list[_Chunk]:
    """Return the data in batches of one size, the last filled up with its own first examples."""
    pairs = list(batches(data, "prune_greedily", model, inside=False))
    if labelled and any(labels is None for _, labels in pairs):
        raise CriterionError("prune_greedily needs batches of (inputs, labels); got inputs alone")
    conv = any(isinstance(module, nn.Conv2d) for module in model.modules())
    whole = (
        _joined([arguments(inputs, None) for inputs, _ in pairs]),
        _joined([labels for _, labels in pairs]),
    )
    sizes = {len(leaf) for leaf in _pytree.tree_leaves(whole) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1:
        raise CriterionError(
            f"the data have {sorted(sizes)} inputs and labels; a label for each input is right"
        )
    (number,) = sizes
    size = min(size, number)
    chunks = []
    for start in range(0, number, size):
        index = torch.arange(start, start + size)
        index[index >= number] = start
        example, labels = _pytree.tree_map(
            lambda t, i=index: t[i.to(t.device)] if isinstance(t, Tensor) else t, whole
        )
        chunks.append(
            _Chunk(
                _pytree.tree_map(_channels_last, example) if conv else example,
                labels,
                min(size, number - start),
            )
        )
    return chunks


def _joined(parts: list[Any]) -> Any:
    """Join nested tensors along their first dim; whatever else there is, the first."""
    leaves = [_pytree.tree_flatten(part) for part in parts]
    try:
        columns = zip(*(flat for flat, _ in leaves), strict=True)
        joined = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    except (RuntimeError, TypeError, ValueError) as error:
        raise CriterionError(f"the batches of the data cannot be joined: {first_line(error)}") from error
    return _pytree.tree_unflatten(joined, leaves[0][1])


def _channels_last(value: Any) -> Any:
    image = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=torch.channels_last) if image else value
