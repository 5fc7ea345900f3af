"""How many weights a budget takes of each tensor, and weights to take from."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from secateur.pruning.selection import Scores

shares = st.floats(0, 1)
shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)


def of(weights: list[Tensor]) -> tuple[dict[str, Scores], dict[str, Tensor]]:
    named = {f"w{i}": w for i, w in enumerate(weights)}
    return {n: Scores(n, tuple(w.shape), w.abs().__getitem__) for n, w in named.items()}, named


def pruned(budget, weights: list[Tensor]) -> list[Tensor]:
    scores, named = of(weights)
    cuts = budget(scores, named)
    assert list(cuts) == list(named)
    return [cuts[n].pruned(scores[n]) for n in named]


def counts(budget, weights: list[Tensor]) -> list[int]:
    return [int(d.count_nonzero()) for d in pruned(budget, weights)]


def random(sizes: list[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    """Weights without ties, of another scale in each layer."""
    torch.manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64) * 4.0 ** -(i % 3) for i, s in enumerate(sizes)]
