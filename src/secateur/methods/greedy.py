"""Greedy pruning: remove, again and again, the unit that the network misses least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import nn

from secateur.copying import copied
from secateur.errors import BudgetError
from secateur.graph.names import unwrapped
from secateur.measure.macs import count_macs
from secateur.measure.size import count_parameters
from secateur.methods.goals import Goal, goal_of
from secateur.methods.reconstruction import reconstruct
from secateur.methods.removals import Removal, Stage
from secateur.methods.tries import Judge, Tries, judging, tries_of
from secateur.pruning.calibration import Batches
from secateur.pruning.criteria import Criterion
from secateur.pruning.structured import select_groups
from secateur.pruning.unit_criteria import UnitCriterion
from secateur.running import run_once
from secateur.structure.compact import compact
from secateur.structure.labels import Array
from secateur.structure.proof import Proof
from secateur.structure.tracing import trace
from secateur.structure.units import Structure
from secateur.task.base import Task
from secateur.task.built_in import classification

_CRITERIA = ("score", "output", "reconstruction")
_GOALS = ("sparsity", "parameters", "macs", "latency_ms", "score")


@dataclass(frozen=True)
class Greedy:
    """How ``prune_greedily`` goes about it: what is missed least, and how often it is judged anew.

    Args:
        criterion: "score" removes the unit without which the score (a classifier's accuracy) is best, ties
            by the smaller loss, then by the order of groups and units; "output" the one with which what its
            readers put out changes least, with all that went since the last compaction, in closed form,
            without labels; "reconstruction" the one with which it changes least once these layers are
            refitted, and refits them where the network is compacted. Any other criterion (``sc.L2Norm()``)
            removes the unit of lowest score, each time.
        scope: "layer", units compete within their group, and the group with the largest share of its units
            left is next, so that layers shrink evenly; "network", all units compete.
        every: after so many removals the network is compacted and, where a training is given, fine-tuned.
        at_once: so many units go before the others are judged anew.
        min_kept: how many units each group keeps.
        batch_size: how many examples are tried at a time.
        memory: about the bytes that trying takes beside one batch's activations.

    Raises:
        BudgetError: for a setting that is not one of these.

    Source:
        "output": Luo et al., "ThiNet" (ICCV 2017). "reconstruction": ``secateur.Reconstruction``.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> x, method = torch.randn(32, 8), sc.Greedy(criterion="output", every=4)
        >>> small, run = sc.prune_greedily(net, x[:1], [x], parameters=0.5, method=method)
        >>> [units for units, score, loss in run.stages]  # after how many removals it was compacted
        [4, 8, 9]
    """

    criterion: Literal["score", "output", "reconstruction"] | Criterion | UnitCriterion = "score"
    scope: Literal["layer", "network"] = "layer"
    every: int = 16
    at_once: int = 1
    min_kept: int = 1
    batch_size: int = 100
    memory: int = 2**25

    def __post_init__(self) -> None:
        for name, known in (("criterion", _CRITERIA), ("scope", ("layer", "network"))):
            own = name == "criterion" and callable(self.criterion) and not isinstance(self.criterion, type)
            if not own and getattr(self, name) not in known:
                raise BudgetError(f"{name} is {getattr(self, name)!r}; it is {' or '.join(map(repr, known))}")
        for name in ("every", "at_once", "min_kept", "batch_size", "memory"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise BudgetError(f"{name} is {getattr(self, name)!r}; it counts from 1")


@dataclass(frozen=True)
class GreedyRun:
    """What a greedy search removed, in order, and what that cost; printed it is a line a stage.

    Attributes:
        removals: each unit that went: ``group``, ``unit`` (its number there at first), ``score``, ``loss``.
        stages: by compaction (units gone so far, score, loss), after its fine-tuning.
        slow: the groups whose units each took a whole forward to try, or could not be tried, and why.
        kept: the groups that were kept, since a forward does not bear their removal.
        proofs: of each stage, that its network equals the masked one.
        parameters: of the dense network and of the small one.
        macs: the dense multiply-adds of both.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> x = torch.randn(32, 8)
        >>> small, run = sc.prune_greedily(net, x[:1], [(x, net(x).argmax(1))], macs=0.75)
        >>> len(run.removals), run.macs, run.parameters, len(run.proofs)
        (4, (192, 144), (212, 160), 1)
    """

    removals: tuple[Removal, ...]
    stages: tuple[tuple[int, float, float], ...]
    slow: Mapping[str, str]
    kept: Mapping[str, str] = field(default_factory=dict)
    proofs: tuple[Proof, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)

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
    task: Task | None = None,
    judge: Judge | None = None,
    dense: nn.Module | None = None,
    kwargs: Mapping[str, Any] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    on_stage: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, GreedyRun]:
    """Remove units one by one, each time the one that is missed least; return (small model, run). One goal
    ends it, and the model given is not changed.

    The choices are those of masking each unit and evaluating; they are found faster (see
    ``secateur.methods.ablation.Ablation``). From the network that ``on_stage`` is given a run that was
    stopped goes on to the same end, with ``dense``.

    Args:
        model: the network.
        example_inputs: what it is called on: a tensor, a tuple or list of arguments, or a dict of them by
            name.
        data: batches of (inputs, labels) to choose on, of all classes: of the validation split, never of the
            test set.
        sparsity: a goal, the share of the weights of Linear and Conv layers that is gone, from 0 and under 1.
        parameters: a goal, the share of the parameters that is left, over 0 and up to 1.
        macs: a goal, the share of the dense multiply-adds that is left, likewise.
        latency_ms: a goal, of one forward on ``example_inputs``, tried where the network is compacted.
        score: a goal, the worst score that the network may have after its fine-tuning: the last that has it
            is returned.
        method: how to go about it.
        fine_tune: ``fine_tune(model)`` trains the network that it is given, in place, with an optimizer of
            its own.
        task: what outputs are judged by; default: classification, right or wrong, and cross-entropy.
        judge: in its place ``judge(outputs, labels)`` gives (scores, losses), one each an example.
        dense: what the shares are of; default: the model given.
        kwargs: arguments by name beside ``example_inputs``, and for the batches that do not give them
            themselves.
        include: name patterns of groups, as in ``secateur.prune``.
        exclude: name patterns of those left out.
        on_stage: ``on_stage(model)`` hears of each stage.

    Returns:
        The small network, and the record of the run, which holds the proofs.

    Raises:
        BudgetError: where the goal is not one, or cannot be met.
        CriterionError: where data or judge do not fit.
        ModelError: where the model does not run on the data.
        NonFiniteError: for a loss that is no number.

    Example:
        >>> import secateur as sc, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> x = torch.randn(32, 8)
        >>> small, run = sc.prune_greedily(model, x[:2], [(x, model(x).argmax(1))], macs=0.5)
        >>> run.macs
        (384, 192)
    """
    model, dense, method = unwrapped(model), unwrapped(dense or model), method or Greedy()
    if not isinstance(method, Greedy):
        raise BudgetError(f"method is {method!r}; it is a Greedy, like Greedy(every=4)")
    if fine_tune is not None and not callable(fine_tune):
        raise BudgetError(f"fine_tune is {fine_tune!r}; it is a function that trains the network it is given")
    goal = goal_of(
        dense, example_inputs, kwargs, _GOALS, sparsity=sparsity, parameters=parameters, macs=macs,
        latency_ms=latency_ms, score=score,
    )  # fmt: skip
    labelled = method.criterion == "score" or judge is not None
    by = judging(judge, classification() if task is None else task)
    tries = tries_of(data, model, by, size=method.batch_size, labelled=labelled, kwargs=kwargs)
    example, named = tries.chunks[0].example
    run_once(model, example, kwargs=named, what="the data")
    groups = select_groups(trace(dense, example_inputs, kwargs=kwargs), include, exclude)
    sizes = {name: len(group) for name, group in groups.items()}
    search = _Search(copied(model), sizes, goal, method, tries, fine_tune)
    while not goal.met(goal.cost(search.small)):
        done = len(search.stages)
        if not search.advance():
            break
        if on_stage is not None and len(search.stages) > done:
            on_stage(search.small)
    return search.small, search.run()


@dataclass
class _Search:
    """A search under way: ``small`` is what it has come to, ``sizes`` the units that the groups to be pruned
    had at first, and ``numbers`` those units of each that are left."""

    small: nn.Module
    sizes: Mapping[str, int]
    goal: Goal
    method: Greedy
    tries: Tries
    fine_tune: Callable[[nn.Module], None] | None
    removals: list[Removal] = field(default_factory=list)
    stages: list[tuple[int, float, float]] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    slow: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Array] = field(default_factory=dict)

    def advance(self) -> bool:
        """Remove some units, compact and fine-tune; False where the score would be lost."""
        goal, work = self.goal, copied(self.small)
        structure = trace(work, goal.example_inputs, kwargs=goal.kwargs)
        # A group that is down to one unit is none any more.
        chosen = replace(structure, groups={n: g for n, g in structure.removable.items() if n in self.sizes})
        taken = self._masked(Stage(work, chosen, self.method, self.tries, self.sizes))
        if not taken:
            if goal.name == "score":
                return False
            raise goal.missed(self.method.min_kept, goal.cost(self.small))
        if self.method.criterion == "reconstruction":
            reconstruct(work, self.small, structure, self.tries.pairs)
        small, proof = compact(work, goal.example_inputs, kwargs=goal.kwargs, structure=structure)
        if stuck := {one.group for one in taken} - proof.pruned.keys():
            # What stays would be tried for ever: the stage again, without it.
            self.kept |= {name: proof.kept[name] for name in stuck}
            self.sizes = {name: size for name, size in self.sizes.items() if name not in stuck}
            return True
        if self.fine_tune is not None:
            self.fine_tune(small)
        score, loss = self.tries.evaluated(small)
        if goal.name == "score" and self._worse(score, goal.limit):
            return False
        self._note(chosen, taken, proof)
        self.small = small
        self.stages.append((len(self.removals), score, loss))
        return True

    def _masked(self, stage: Stage) -> list[Removal]:
        """Mask units one after the other, until there are enough of them or the goal is met."""
        goal = self.goal
        for name, group in stage.structure.groups.items():
            self.numbers.setdefault(name, np.arange(len(group)))
        self.slow |= stage.ablation.slow
        meter = goal.meter(stage.model, stage.structure)
        watched = goal.name == "score" and self.fine_tune is None
        taken: list[Removal] = []
        while len(taken) < self.method.every and not goal.met(meter(stage.pruned)):
            found = stage.next()
            scores = [one.score for one in found if one.score is not None]
            if not found or (watched and any(self._worse(score, goal.limit) for score in scores)):
                break
            stage.remove(found)
            taken += found
        return taken

    def _worse(self, score: float, limit: float) -> bool:
        return self.tries.judge.oriented(score) < self.tries.judge.oriented(limit)

    def _note(self, structure: Structure, taken: Sequence[Removal], proof: Proof) -> None:
        self.proofs.append(proof)
        self.removals += [replace(one, unit=int(self.numbers[one.group][one.unit])) for one in taken]
        for name in structure.groups.keys() & proof.pruned.keys():
            self.numbers[name] = self.numbers[name][~proof.pruned[name]]

    def run(self) -> GreedyRun:
        """Return the record of what was done."""
        goal, dense = self.goal, self.goal.dense
        macs = [count_macs(net, goal.example_inputs, goal.kwargs).dense for net in (dense, self.small)]
        return GreedyRun(
            tuple(self.removals),
            tuple(self.stages),
            self.slow,
            self.kept,
            tuple(self.proofs),
            (count_parameters(dense), count_parameters(self.small)),
            (macs[0], macs[1]),
        )
