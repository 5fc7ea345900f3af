"""The actions that make a small file: weights that share a few values, and the packed network."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from secateur.deploy.packing import pack, unpack
from secateur.errors import StorageError
from secateur.experiments.claim import PACKED
from secateur.experiments.specs import PackSpec, ShareSpec
from secateur.experiments.state import fresh_network
from secateur.experiments.work import Work
from secateur.pruning.sharing import share_weights
from secateur.training.evaluate import evaluate_on
from secateur.training.settings import Training


@dataclass(frozen=True)
class Share:
    """The surviving weights of each target share a few values, which are then trained."""

    step: str
    spec: ShareSpec
    training: Training
    kind: ClassVar[str] = "share"

    def run(self, work: Work) -> None:
        spec, state = self.spec, work.state
        sharing = share_weights(
            state.model, state.masks, values=spec.values, include=spec.include, exclude=spec.exclude
        )
        if not state.retrained:
            work.cut(copy.deepcopy(state.model))
        work.train(state.model, self.step, self.training, sharing.held)


@dataclass(frozen=True)
class Pack:
    """The network written to a small file, and the one read back from it in its place."""

    step: str
    spec: PackSpec
    kind: ClassVar[str] = "pack"

    def run(self, work: Work) -> None:
        state, path = work.state, work.claim.part("state-packed")
        values = "lossless" if self.spec.values is None else self.spec.values
        packed = pack(state.model, path, values=values, compression=self.spec.compression)
        unpacked = _unpacked(path, work)
        if values == "lossless":
            _check_equal(unpacked, state.model)
        else:
            split = work.data.validation
            before, after = (evaluate_on(model, split).accuracy for model in (state.model, unpacked))
            cost = {"examples": len(split), "accuracy": after, "accuracy_lossless": before}
            packed = pack(
                state.model,
                path,
                values=values,
                compression=self.spec.compression,
                metadata={"validation": cost},
            )
            unpacked = _unpacked(path, work)
            change = 100 * (after - before)
            state.notes[self.step] = [
                f"packed with values {values}: {change:+.2f} points of validation accuracy"
            ]
        state.model, state.packed, state.bytes_packed = unpacked, path, packed.bytes
        if state.masks is not None:
            state.masks = state.masks.bind(unpacked)
        if not state.retrained:
            work.cut(copy.deepcopy(unpacked))


def _unpacked(path: Path, work: Work) -> nn.Module:
    fresh = fresh_network(work.plan, work.seed, work.dense, work.state.options)
    return unpack(fresh, path).to(next(work.state.model.parameters()).device)


def _check_equal(unpacked: nn.Module, model: nn.Module) -> None:
    found = unpacked.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in found or not torch.equal(found[name], tensor):
            raise StorageError(f"{PACKED}: {name} is not unpacked as it was packed; please report it")
