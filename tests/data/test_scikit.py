"""scikit-learn's two data sets, and that the points are those that the quoted results were made with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.datasets import make_classification as original
from sklearn.model_selection import train_test_split

from secateur.data import load_data


def test_digits() -> None:
    data = load_data("digits", validation=137)
    assert [len(data.train), len(data.validation), len(data.test)] == [1300, 137, 360]
    assert tuple(data.train.inputs.shape[1:]) == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    together = torch.cat([split.labels for split in (data.train, data.validation, data.test)])
    assert together.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    back = (data.test.inputs * data.std[0] + data.mean[0]) * 16
    expected = train_test_split(load_digits().images, test_size=0.2, random_state=0)[1]
    np.testing.assert_allclose(back[:, 0], expected, atol=1e-5)
    assert data.fingerprint == "59769f35e568691c"


@pytest.mark.parametrize("features", [10, 20, 25, 30])
def test_make_classification(features: int) -> None:
    data = load_data("make-classification", features=features, validation=0.2)
    assert [len(data.train), len(data.validation), len(data.test)] == [1400, 350, 750]
    x, y = original(2500, features, random_state=42)
    _, test_x, _, test_y = train_test_split(x, y, test_size=0.3, random_state=42)
    np.testing.assert_array_equal(data.test.inputs, test_x.astype(np.float32))
    np.testing.assert_array_equal(data.test.labels, test_y)
    assert data.classes == ("0", "1")
    assert data.mean == ()


def test_make_classification_standardised() -> None:
    data = load_data("make-classification", standardise=True)
    assert data.train.inputs.mean(dim=0).abs().max() < 1e-6
    torch.testing.assert_close(data.train.inputs.std(dim=0, correction=0), torch.ones(10))
    assert data.fingerprint != load_data("make-classification").fingerprint


def test_digits_can_be_learnt() -> None:
    data = load_data("digits")
    x, y = data.train.inputs.flatten(1), torch.nn.functional.one_hot(data.train.labels).float()
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y, driver="gelsd").solution
    test = data.test.inputs.flatten(1)
    guess = torch.cat([test, torch.ones(len(test), 1)], 1) @ solution
    assert (guess.argmax(1) == data.test.labels).float().mean() > 0.9
