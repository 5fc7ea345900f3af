"""A training in a claimed folder that goes on from its last epoch after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from secateur.data.dataset import Dataset
from secateur.experiments.claim import Claim, newest_snapshots, write_snapshot
from secateur.training.fit import Epoch, History, fit
from secateur.training.settings import Training


def fit_resumed(
    claim: Claim,
    network: nn.Module,
    data: Dataset,
    training: Training,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    **around: Any,
) -> History:
    """Train ``network`` as ``fit`` does, which is given ``seed`` and ``around``, with a snapshot
    of the kind "training" after every epoch. It is of this training alone: from another network or with other
    settings one begins anew.
    """
    checkpoint, of = claim.part("training"), {"of": _name(network, training, seed)}
    for begun in newest_snapshots(claim.folder, "training"):
        if begun.values == of and "run" in begun.files:
            shutil.copyfile(begun.files["run"], checkpoint)
            break

    def snapshot(row: Epoch) -> None:
        run = claim.part("training")
        checkpoint.replace(run)
        write_snapshot(claim, "training", of, {"run": run})
        on_epoch(row)

    return fit(
        network,
        data.train,
        data.validation,
        training,
        seed=seed,
        checkpoint=checkpoint,
        on_epoch=snapshot,
        **around,
    )


def _name(network: nn.Module, training: Training, seed: int) -> str:
    """Return the hash of a training: what it starts from, its settings, its seed."""
    digest = hashlib.sha256(json.dumps([asdict(training), seed]).encode())
    for name, tensor in network.state_dict().items():
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(plain.numpy().data)
    return digest.hexdigest()
