"""A trial under way: what its actions work on, and how they train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.data.dataset import Dataset, Examples, each_tensor
from secateur.experiments.claim import Claim
from secateur.experiments.dense import OnEpoch, calibration_batches
from secateur.experiments.plan import Plan
from secateur.experiments.resumed import fit_resumed
from secateur.experiments.state import TrialState, save_state
from secateur.measure.macs import count_macs
from secateur.structure.proof import Proof
from secateur.task.base import Task
from secateur.training.batches import seed_of
from secateur.training.evaluate import Evaluation, evaluate
from secateur.training.settings import Training


@dataclass
class Work:
    """A plan with its seed, data, dense network and claimed folder, and the state that its actions change."""

    plan: Plan
    seed: int
    data: Dataset
    dense: nn.Module
    claim: Claim
    on_epoch: OnEpoch
    state: TrialState

    @property
    def task(self) -> Task:
        return self.plan.task.build()

    def example(self, number: int = 2) -> Any:
        """Return the inputs of a few validation examples, on the network's device."""
        device = next(self.state.model.parameters()).device
        return each_tensor(lambda tensor: tensor.to(device), self.data.validation.first(number))

    def score(self, network: nn.Module, split: Examples | None = None) -> Evaluation:
        """Judge a network by the task, on the validation split or another."""
        return evaluate(network, self.data.validation if split is None else split, self.task)

    def calibration(self, number: int) -> list[tuple[Any, Any]]:
        return calibration_batches(self.data.train, number, self.seed)

    def train(
        self,
        network: nn.Module,
        step: str,
        training: Training,
        holding: Callable[[torch.optim.Optimizer], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Train a network with the masks held; its curve goes under the name of the ``step``. A run that
        was killed in it goes on from its last epoch, until the state that it led to is saved."""
        history = fit_resumed(
            self.claim,
            network,
            self.data,
            training,
            task=self.task,
            seed=seed_of(self.seed, step),
            on_epoch=lambda row: self.on_epoch(step, row),
            masks=self.state.masks,
            teacher=self.dense if training.distill else None,
            holding=holding,
        )
        self.state.curves[step] = history.as_dicts()
        self.spent("retrain", history.seconds)
        self.state.retrained = self.state.retrained or training.epochs > 0

    def cut(self, pruned: nn.Module) -> None:
        """Note that this is the network after a pruning: nothing has been retrained since."""
        self.state.pruned, self.state.retrained = pruned, False

    def replace(self, small: nn.Module, step: str, done: object, skipped: Sequence[str] = ()) -> None:
        """Put a really smaller network in the place of the one before, as the result of a pruning; what was
        ``done`` becomes a note."""
        if isinstance(done, Proof):  # it counts multiply-adds of two examples, results those of one
            before, after = (
                count_macs(network, self.example(1)).dense for network in (self.state.model, small)
            )
            done = replace(done, macs=(before, after))
        self.state.model, self.state.structured, self.state.compacted = small, True, True
        self.state.notes[step] = ["; ".join(repr(done).splitlines()), *skipped]
        self.cut(copy.deepcopy(small))

    def spent(self, kind: str, seconds: float) -> None:
        self.state.seconds[kind] = self.state.seconds.get(kind, 0.0) + seconds

    def save(self) -> None:
        save_state(self.state, self.claim)
