"""A user's own loaders: streamed, and a validation part drawn where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from secateur.data import load_data
from secateur.data.dataset import Stream
from secateur.errors import DataError

MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def loader(number, start, shuffle=False):
    rows = torch.arange(start, start + number, dtype=torch.float32)[:, None]
    return DataLoader(TensorDataset(rows, rows * 2), batch_size=4, shuffle=shuffle)

def three(number=20):
    return loader(number, 0, True), loader(8, 100), loader(8, 200)

def two():
    return loader(20, 0, True), loader(8, 200)

def one():
    return loader(20, 0)

def ended():
    return iter([]), iter([]), iter([])

def batches():
    own = [(torch.ones(2, 3), torch.ones(2))] * 3
    return own, own, own

def undrawn():
    own = [(torch.ones(2, 3), torch.ones(2))] * 3
    return own, own
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownloaders.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "ownloaders", raising=False)


def rows(split: Stream) -> list[float]:
    return sorted(torch.cat([inputs for inputs, _ in split]).flatten().tolist())


def test_three_loaders_are_streamed_as_they_are() -> None:
    data = load_data("ownloaders:three", number=12)
    assert isinstance(data.train, Stream)
    assert [len(data.train), len(data.validation), len(data.test)] == [12, 8, 8]
    assert rows(data.train) == list(range(12))
    assert rows(data.train) == rows(data.train)
    again, other = load_data("ownloaders:three", number=12), load_data("ownloaders:three", number=13)
    assert data.fingerprint == again.fingerprint != other.fingerprint


def test_of_two_loaders_validation_is_drawn_by_the_seed() -> None:
    one, other = (load_data("ownloaders:two", validation=5, seed=seed) for seed in (0, 1))
    assert [len(one.train), len(one.validation), len(one.test)] == [15, 5, 8]
    assert sorted(rows(one.train) + rows(one.validation)) == list(range(20))
    assert rows(one.validation) != rows(other.validation)
    assert one.fingerprint != other.fingerprint


def test_plain_lists_of_batches() -> None:
    assert len(load_data("ownloaders:batches").train) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", r"gave a DataLoader; a secateur.data.dataset.Dataset, or loaders"),
        ("ended", r"an iterator, which ends; what gives its batches each time"),
        ("undrawn", r"gave two loaders, and no validation part can be drawn from the first"),
    ],
)
def test_what_is_no_data_set_is_one_clear_error(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(f"ownloaders:{name}")
