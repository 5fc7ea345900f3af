"""Training settings: what each may be, in Python as in a recipe."""

from dataclasses import fields

import numpy as np
import pytest

from secateur.errors import RecipeError
from secateur.training.settings import _RULES, Training

NULL = ("batch_size", "clip", "patience")
COUNTS = ("epochs", "batch_size", "shift", "patience")


@pytest.mark.parametrize("name", [field.name for field in fields(Training)])
def test_every_setting_refuses_what_it_is_not(name):
    right = getattr(Training(), name)
    wrong = [float("nan"), float("inf"), -1, "1", "x", [], {}, 1 + 1j, 10**400]
    wrong += [0, 1] if isinstance(right, bool) else [True, False]
    wrong += [0.5, 2.0, 10**10] if name in COUNTS else []
    wrong += [] if name in NULL else [None]
    for value in wrong:
        with pytest.raises(RecipeError, match=f"^{name} is ") as caught:
            Training(**{name: value})
        assert "\n" not in str(caught.value)


def test_what_they_are_is_taken():
    Training(epochs=0, batch_size=None, clip=None, patience=None, shift=0, lr=0, momentum=0)
    Training(epochs=np.int64(3), lr=np.float32(0.1), distill=1, flip=True)
    assert set(_RULES) == {field.name for field in fields(Training)}
