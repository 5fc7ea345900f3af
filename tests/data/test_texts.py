"""Texts as windows of tokens, cut into three parts that share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.data import load_data
from secateur.errors import DataError


def test_parts_follow_each_other_and_labels_are_the_next_token(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    data = load_data("text", path=str(tmp_path / "a.txt"), context=4, test=0.1, validation=2)
    # the last 10 bytes are test: two windows of 4 and one more token; 9 before them validation
    assert data.test.inputs.tolist() == [[90, 91, 92, 93], [94, 95, 96, 97]]
    assert data.test.labels.tolist() == [[91, 92, 93, 94], [95, 96, 97, 98]]
    assert data.validation.inputs.flatten().tolist() == list(range(81, 89))
    assert data.validation.labels.flatten().tolist() == list(range(82, 90))
    assert data.train.inputs.flatten().tolist() == list(range(80))
    assert data.train.labels.flatten().tolist() == list(range(1, 81))
    assert len(data.vocabulary) == 256
    few = load_data("text", path=str(tmp_path / "a.txt"), context=4, test=0.1, validation=2, train=3)
    assert len(few.train) == 3
    assert few.fingerprint != data.fingerprint


def test_the_vocabulary_is_the_training_part_s(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("abäa" * 20 + "abz€" * 5, encoding="utf-8")
    data = load_data("text", path=str(tmp_path), context=2, unit="characters", test=0.2, validation=4)
    assert data.vocabulary == ("a", "b", "ä", "<other>")
    assert data.train.inputs[0].tolist() == [0, 1]
    assert data.train.labels[0].tolist() == [1, 2]
    assert data.test.inputs[:2].tolist() == [[0, 1], [3, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context is 0; it is a whole number from 1"),
        ({"unit": "words"}, "unit is 'words'; it is one of characters, bytes"),
        ({"test": 1.0}, "test is 1.0; it is a share between 0 and 1"),
        ({"train": 0}, "train is 0; it is a whole number from 1"),
        ({"context": 60}, "three parts of windows of 60 need more"),
        ({"unit": "characters"}, r"not UTF-8 text \(unit: bytes reads anything\)"),
        ({"path": "none.txt"}, "none.txt: cannot be read"),
    ],
)
def test_what_is_no_text_is_one_clear_error(tmp_path: Path, options: dict, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match=message):
        load_data("text", **{"path": str(tmp_path / "a.txt"), "context": 4} | options)


def test_tiny_shakespeare() -> None:
    try:
        data = load_data("tinyshakespeare", context=64, validation=0.05, download=False)
    except DataError as error:
        pytest.skip(str(error))
    assert len(data.vocabulary) == 66
    text = "".join(data.vocabulary[token] for token in data.train.inputs[0])
    assert text.startswith("First Citizen:\nBefore we proceed")
    assert torch.equal(data.train.inputs.flatten()[1:], data.train.labels.flatten()[:-1])
