import pytest
import torch
from torch import nn

from secateur.data.dataset import Dataset, Split
from secateur.errors import StorageError
from secateur.experiments.by_class import by_class
from secateur.experiments.schema import validated_row


class Says(nn.Module):
    """Answers with the class that stands in the first feature, plus ``more``."""

    def __init__(self, more):
        super().__init__()
        self.more = more

    def forward(self, x):
        return nn.functional.one_hot((x[:, 0].long() + self.more) % 4, 4).float()


def test_each_class_alone_and_none_that_the_test_split_lacks():
    seen = torch.tensor([0, 0, 0, 1, 1, 2]).float()  # what the network sees
    labels = torch.tensor([0, 0, 1, 1, 1, 3])  # and what is right
    split = Split(torch.stack([seen, seen], 1), labels)
    data = Dataset("d", split, split, split, ("a", "b", "c", "d"), fingerprint="f")
    rows = by_class(data, Says(0), Says(1))
    assert rows == [
        {"name": "a", "number": 2, "dense": 1.0, "pruned": 0.0},
        {"name": "b", "number": 3, "dense": pytest.approx(2 / 3), "pruned": pytest.approx(1 / 3)},
        {"name": "d", "number": 1, "dense": 0.0, "pruned": 1.0},
    ]


def row_with(by_class):
    own = {"id": "ab", "method": "m", "state": "finished", "point": {}, "seed": 0, "metrics": {"macs": 1}}
    config = {"data": {"name": "d"}, "model": {"name": "m"}, "steps": []}
    return own | {
        "layers": [],
        "curves": {},
        "epochs": {},
        "config": config,
        "classes": 2,
        "by_class": by_class,
    }


def test_the_schema_takes_shares_alone():
    right = {"name": "a", "number": 2, "dense": 1.0, "pruned": 0.0}
    assert validated_row(row_with([right]), "r")["by_class"] == [right]
    for wrong in ({"dense": 1.5}, {"number": -1}, {"name": 3}, {"pruned": None}):
        with pytest.raises(StorageError, match=f"r: by_class.0.{next(iter(wrong))} is"):
            validated_row(row_with([right | wrong]), "r")
