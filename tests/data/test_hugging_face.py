"""Folders of Hugging Face's datasets: columns by name, splits as they are, or a fifth set aside."""

from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.data import load_data

datasets = pytest.importorskip("datasets")


def rows(number: int) -> dict[str, list]:
    rng = np.random.default_rng(number)
    return {
        "input_ids": rng.integers(0, 9, (number, 5)).tolist(),
        "attention_mask": np.ones((number, 5), int).tolist(),
        "size": rng.normal(3, 2, (number, 2)).tolist(),
        "label": [index % 3 for index in range(number)],
        "price": rng.normal(size=number).tolist(),
        "text": ["a"] * number,
        "ragged": [[1] * (1 + index % 2) for index in range(number)],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "set"
    parts = {"train": datasets.Dataset.from_dict(rows(40)), "test": datasets.Dataset.from_dict(rows(9))}
    datasets.DatasetDict(parts).save_to_disk(str(place))
    return place


def test_tokens_are_inputs_by_name(folder: Path) -> None:
    data = load_data("hf-folder", path=folder, inputs=["input_ids", "attention_mask"], validation=10)
    assert data.train.inputs.keys() == {"input_ids", "attention_mask"}
    assert data.train.inputs["input_ids"].dtype == torch.int64
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 10, 9]
    assert data.classes == ("0", "1", "2")


def test_numbers_of_one_split_in_parquet(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(rows(40)).to_parquet(str(tmp_path / "a.parquet"))
    data = load_data("hf-folder", path=tmp_path, inputs=["size"], label="price", validation=8)
    assert data.train.inputs.shape == (24, 2)
    assert float(data.train.inputs.mean().abs()) < 1e-6
    assert data.train.labels.dtype == torch.float32
    assert len(data.test) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ["input_id"]}, r"has no column 'input_id'; did you mean 'input_ids'"),
        ({"inputs": "input_ids"}, r"it is a list of columns"),
        ({"inputs": ["text"]}, r"column 'text': <U1; numbers, or lists of them, are right: tokenise"),
        ({"inputs": ["ragged"]}, r"column 'ragged': rows of shapes .*; one is right: pad, or cut, them"),
    ],
)
def test_what_is_no_input_is_named(folder: Path, options, message: str, refused) -> None:
    with refused(message):
        load_data("hf-folder", path=folder, **options)


def test_a_folder_of_another_kind(tmp_path: Path, refused) -> None:
    with refused(r"holds neither dataset_dict\.json nor \*\.parquet of a training part"):
        load_data("hf-folder", path=tmp_path, inputs=["a"])
    with refused(r"no such folder"):
        load_data("hf-folder", path=tmp_path / "no", inputs=["a"])
