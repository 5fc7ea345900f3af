"""The device that a recipe names."""

from __future__ import annotations

import torch

from secateur.errors import RecipeError


def pick_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" stands for here.

    Raises:
        RecipeError: it is "cuda", and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device is cuda, and torch finds no CUDA device here; set auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
