"""After folding, every image of a real test split is answered as before, borders included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.data import load_data
from secateur.methods.branch_annealing import BranchAnnealing
from secateur.models import build_model
from secateur.training.fit import fit
from secateur.training.settings import Training

NETWORKS = [
    ("lenet-300-100", {}, "mnist", "mnist/train-images-idx3-ubyte.gz"),
    ("convnet-25", {}, "cifar10-first5", "cifar10-images.tar.gz"),
    ("vgg-16-bn", {"width": 0.25}, "cifar10", "cifar10-images.tar.gz"),
    ("resnet-20", {"shortcut": "conv"}, "cifar10", "cifar10-images.tar.gz"),
]


@torch.no_grad()
def answers(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(part) for part in images.split(200)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "source", "file"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_every_image_of_the_test_split_is_answered_as_before(
    name: str, options: dict[str, Any], source: str, file: str, need
):
    need(file)
    data = load_data(source, validation=1000)
    few = data.train.drawn(2048, 0)
    model = build_model(name, seed=0, **options)
    fit(model, few, data.validation, Training(epochs=2, lr=1e-3), seed=0)
    annealing = BranchAnnealing(model, few.inputs[:2], data=[few.inputs[:512]])
    annealing.alpha = 0.2
    fit(annealing.network, few, data.validation, Training(epochs=1, lr=1e-3), seed=1)
    annealing.alpha = 0.0
    small, proof = annealing.fold()
    assert proof.max_error <= 1e-9  # in float64; the small network's weights are float32 again
    before, after = (answers(model.eval(), data.test.inputs) for model in (annealing.network, small))
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert len(before.argmax(1).unique()) > 2
