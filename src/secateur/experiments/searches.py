"""The actions that search and train in turn: greedy pruning, structure selection, annealing."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from torch import nn

from secateur.experiments.specs import AnnealSpec, GreedySpec, SelectionSpec
from secateur.experiments.steps import make_annealing
from secateur.experiments.work import Work
from secateur.methods.annealing import Stage, anneal_branches
from secateur.methods.branch_annealing import BranchAnnealing
from secateur.methods.greedy import Greedy, prune_greedily
from secateur.methods.structure_selection import StructureSelection
from secateur.training.batches import seed_of
from secateur.training.evaluate import evaluate_on
from secateur.training.settings import Training


@dataclass(frozen=True)
class GreedyCut:
    """Units removed one by one until a goal is met, with a training after every so many."""

    step: str
    spec: GreedySpec
    training: Training | None
    kind: ClassVar[str] = "prune"

    def run(self, work: Work) -> None:
        spec, state = self.spec, work.state
        chosen_on = work.data.validation.drawn(spec.examples, seed_of(work.seed, self.step))
        floor = None
        if spec.accuracy_drop is not None:
            floor = evaluate_on(work.dense, chosen_on).accuracy - spec.accuracy_drop / 100

        def fine_tune(small: nn.Module) -> None:
            assert self.training is not None
            work.cut(copy.deepcopy(small))
            done = sum(step.startswith(f"{self.step}.") for step in state.curves)
            work.train(small, f"{self.step}.{done}", self.training)

        def on_stage(small: nn.Module) -> None:
            """From here a killed trial goes on."""
            state.model, state.structured, state.compacted = small, True, True
            if self.training is None:
                work.cut(copy.deepcopy(small))
            work.save()

        state.masks, state.requested = None, None
        state.model, run = prune_greedily(
            state.model,
            work.example(1 if spec.latency_ms is not None else 2),
            [(chosen_on.inputs, chosen_on.labels)],
            sparsity=spec.sparsity,
            parameters=spec.parameters,
            macs=spec.macs,
            latency_ms=spec.latency_ms,
            score=floor,
            method=Greedy(spec.criterion, spec.scope, spec.every, spec.at_once, spec.min_kept),
            fine_tune=fine_tune if self.training is not None else None,
            dense=work.dense,
            include=spec.include,
            exclude=spec.exclude,
            on_stage=on_stage,
        )
        state.structured = state.compacted = True
        state.notes[self.step] = [f"slow to try {name}: {why}" for name, why in run.slow.items()]
        state.notes[self.step] += [f"kept {name}: {why}" for name, why in run.kept.items()]
        if state.pruned is None:
            work.cut(copy.deepcopy(state.model))


@dataclass(frozen=True)
class Select:
    """Factors on units and blocks trained until many are zero; what they scale is removed for real."""

    step: str
    spec: SelectionSpec
    training: Training
    kind: ClassVar[str] = "prune"

    def run(self, work: Work) -> None:
        spec, state = self.spec, work.state
        selection = StructureSelection(
            state.model,
            work.example(),
            penalty=spec.penalty,
            lr=spec.lr,
            momentum=spec.momentum,
            include=spec.include,
            exclude=spec.exclude,
            blocks=spec.blocks,
            units=spec.units,
        )
        state.masks, state.requested = None, None
        work.train(selection.network, self.step, self.training, selection.trained)
        small, selected = selection.fold(spec.threshold)
        skipped = [f"no factor on {name}: {why}" for name, why in selection.skipped.items()]
        work.replace(small, self.step, ["; ".join(repr(selected).splitlines()), *skipped])


@dataclass(frozen=True)
class Anneal:
    """Narrow branches take the place of the layers in stages of training, and are folded."""

    step: str
    spec: AnnealSpec
    training: Training
    kind: ClassVar[str] = "prune"

    @property
    def stages(self) -> int:
        """How many trainings there are, with one at each alpha."""
        return len(make_annealing(self.spec).descent.alphas())

    def run(self, work: Work) -> None:
        spec, state = self.spec, work.state
        branches = BranchAnnealing(
            state.model,
            work.example(),
            ratio=spec.ratio,
            start=spec.start if state.annealed is None else "random",  # what was saved takes its place
            data=work.calibration(spec.calibration),
            include=spec.include,
            exclude=spec.exclude,
            seed=seed_of(work.seed, self.step),
        )
        if state.annealed is not None:
            branches.network.load_state_dict(state.annealed)
        state.masks, state.requested = None, None

        def fine_tune(network: nn.Module, rate: float) -> None:
            name = f"{self.step}.{len(state.stages[self.step])}"
            work.train(network, name, replace(self.training, lr=self.training.lr * rate))

        def evaluate(network: nn.Module) -> tuple[float, float]:
            found = evaluate_on(network, work.data.validation)
            return found.accuracy, found.loss

        def on_stage(stages: tuple[Stage, ...]) -> None:
            """From here a killed trial goes on."""
            state.stages[self.step] = [asdict(stage) for stage in stages]
            state.annealed = branches.network.state_dict()
            work.save()

        done = [Stage(**row) for row in state.stages.get(self.step, [])]
        anneal_branches(branches, fine_tune, evaluate, make_annealing(spec), stages=done, on_stage=on_stage)
        small, proof = branches.fold()
        state.annealed = None
        skipped = [f"no branch beside {name}: {why}" for name, why in branches.skipped.items()]
        work.replace(small, self.step, ["; ".join(repr(proof).splitlines()), *skipped])
