"""Other inputs like the example: another number of them, other numbers."""

from __future__ import annotations

import torch

from secateur.graph.draws import other_batch, rebatched, redrawn


def test_examples_are_repeated_where_the_first_dim_is_the_batch():
    x, mask = torch.arange(6.0).view(2, 3), torch.ones(3)
    (found,), named = rebatched(((x,), {"mask": mask, "scale": 2.0}), 2, 5)
    assert torch.equal(found, x[[0, 1, 0, 1, 0]])
    assert named["mask"] is mask
    assert named["scale"] == 2.0
    assert torch.equal(rebatched(x, 2, 1), x[:1])
    assert rebatched(torch.tensor(1.0), 1, 3).dim() == 0


def test_another_batch_has_other_numbers_and_the_same_ones_at_every_call():
    given = {"x": torch.randn(2, 50) * 9, "flat": torch.full((2, 50), 0.5), "words": torch.tensor([[3], [7]])}
    one, two = other_batch(given, 2, 40), other_batch(given, 2, 40)
    assert {name: tuple(t.shape) for name, t in one.items()} == {
        "x": (40, 50),
        "flat": (40, 50),
        "words": (40, 1),
    }
    assert all(torch.equal(one[name], two[name]) for name in given)
    assert 6 < one["x"].std() < 12
    assert one["flat"].std() > 0.5, "one number all over says too little"
    assert set(one["words"].flatten().tolist()) == set(range(8))


def test_integers_keep_the_range_of_their_place():
    """Of features that index a table each, and of numbers in a row."""
    given = torch.stack((torch.arange(40) % 3, torch.arange(40) % 30 - 5), 1)
    found = redrawn(given, torch.Generator().manual_seed(0))
    assert set(found[:, 0].tolist()) == {0, 1, 2}
    assert found[:, 1].min() < 0
    assert 10 < found[:, 1].max() <= 24
    row = redrawn(torch.tensor([9, 0, 0, 0, 0, 0, 0, 0]), torch.Generator().manual_seed(0))
    assert set(row[1:].tolist()) <= set(range(10))
    assert row[1:].any()
    assert redrawn(torch.tensor(7), torch.Generator().manual_seed(0)).dim() == 0
