"""Data sets that come with scikit-learn, so that nothing has to be downloaded."""

from __future__ import annotations

import numpy as np

from secateur.data.assemble import Array, Arrays, assemble
from secateur.data.checks import check_flag, check_whole
from secateur.data.dataset import Dataset
from secateur.factories import need


def digits(*, validation: int | float = 0.1, seed: int = 0) -> Dataset:
    """Handwritten digits of scikit-learn: 1,797 grey images of 8x8, 10 classes; 360 are test data.

    Images are (N, 1, 8, 8). The test part does not depend on ``seed``.
    """
    sets = need("sklearn.datasets", "scikit-learn")
    images, labels = sets.load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.uint8)  # whole numbers from 0 to 16
    arrays = _parted(images, labels, 0.2, 0)
    return assemble("digits", arrays, tuple("0123456789"), validation=validation, seed=seed, scale=16.0)


def make_classification(
    *, features: int = 10, standardise: bool = False, validation: int | float = 0.1, seed: int = 0
) -> Dataset:
    """scikit-learn's make_classification: 2,500 points with 10 `features`, 2 classes, 30 % test data.

    Two clusters a class, everything else at scikit-learn's defaults, both the points and the test part
    drawn with random_state 42, whatever ``seed`` is. ``standardise``: each feature to mean 0 and
    deviation 1 by the training split.
    """
    check_whole("features", features, 4, 10_000)
    check_flag("standardise", standardise)
    sets = need("sklearn.datasets", "scikit-learn")
    points, labels = sets.make_classification(
        n_samples=2500, n_features=features, n_classes=2, n_clusters_per_class=2, random_state=42
    )
    arrays = _parted(points, labels, 0.3, 42)
    drawn = {"validation": validation, "seed": seed}
    more = {"options": {"features": features, "standardise": standardise}, "normalise": standardise}
    return assemble("make-classification", arrays, ("0", "1"), **drawn, **more)


def diabetes(*, validation: int | float = 0.1, seed: int = 0) -> Dataset:
    """Diabetes of scikit-learn: 442 patients with 10 figures each, and how far the disease got in a year.

    Inputs (N, 10) have mean 0 and deviation 1 by the training split; labels (N,) are in hundreds, 0.25 to
    3.46. 88 are test data, whatever ``seed`` is.
    """
    sets = need("sklearn.datasets", "scikit-learn")
    selection = need("sklearn.model_selection", "scikit-learn")
    figures, progress = sets.load_diabetes(return_X_y=True)
    x, test_x, y, test_y = selection.train_test_split(
        figures, progress / 100.0, test_size=0.2, random_state=0
    )
    return assemble("diabetes", Arrays(x, y, test_x, test_y), (), validation=validation, seed=seed)


def _parted(inputs: Array, labels: Array, share: float, state: int) -> Arrays:
    """Set a share aside as test data, drawn by scikit-learn."""
    selection = need("sklearn.model_selection", "scikit-learn")
    labels = labels.astype(np.int64)
    x, test_x, y, test_y = selection.train_test_split(inputs, labels, test_size=share, random_state=state)
    return Arrays(x, y, test_x, test_y)
