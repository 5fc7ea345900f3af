"""Digits on photographs: places, colours and maps, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.data import load_data, scenes
from secateur.data.assemble import Arrays


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten digits of one dark square each, and ten photographs of one grey each."""
    ink = np.zeros((10, 1, 28, 28), np.uint8)
    ink[:, :, 10:12, 10:13] = 255
    grey = (np.arange(10, dtype=np.uint8)[:, None, None, None] * 20).repeat(3, 1)
    photographs = grey.repeat(32, 2).repeat(32, 3)
    labels = np.arange(10)
    monkeypatch.setattr(scenes, "arrays_of", lambda *a: Arrays(ink, labels, ink, labels))
    monkeypatch.setattr(
        scenes, "obtain", lambda *a: (Arrays(photographs, labels, photographs, labels), "a note")
    )


def test_maps_lie_over_the_digits(sources: None) -> None:
    data = load_data("digits-on-cifar10", train=10, test=10, validation=2)
    assert data.note == "a note"
    assert data.classes == ()
    assert data.train.inputs.shape == (8, 3, 32, 32)
    digits: list[int] = []
    backgrounds: list[int] = []
    for split in (data.train, data.validation):
        for image, found in zip(split.inputs, split.labels, strict=True):
            pixels = (
                image * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
            ) * 255
            assert int((found > 0).sum()) == 6  # 2 x 3 dark pixels
            (label,) = found[found > 0].unique().tolist()
            behind = pixels[:, found == 0]
            assert float(behind.std()) < 1e-3  # nothing of the digit outside its map
            digits.append(label - 1)
            backgrounds.append(round(float(behind.mean())))
    assert sorted(digits) == list(range(10))  # each digit and each photograph once
    assert sorted(backgrounds) == [20 * number for number in range(10)]


def test_all_digits_as_one_class(sources: None) -> None:
    data = load_data("digits-on-cifar10", train=10, test=5, digits=False, validation=2)
    assert data.train.labels.unique().tolist() == [0, 1]
    assert int(data.test.labels.sum()) == 5 * 6


def test_the_seed_draws_validation_alone(sources: None) -> None:
    one, other = (
        load_data("digits-on-cifar10", train=10, test=5, seed=seed, validation=2) for seed in (0, 1)
    )
    assert torch.equal(one.test.labels, other.test.labels)
    assert not torch.equal(one.validation.labels, other.validation.labels)
    assert one.fingerprint != other.fingerprint
