"""A user's own table: numbers, categories, targets, and cells that are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.data import load_data
from secateur.errors import DataError

HEAD = "size,colour,price,kind\n"
ROWS = [f"{i},{'red' if i % 2 else 'blue'},{i * 10}.5,{'b' if i % 3 else 'a'}\n" for i in range(20)]


def table(tmp_path: Path, text: str = HEAD + "".join(ROWS)) -> str:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    return str(tmp_path / "t.csv")


def test_classes_with_a_category(tmp_path: Path) -> None:
    data = load_data("csv", path=table(tmp_path), target="kind", categorical=["colour"], validation=4)
    assert data.classes == ("a", "b")
    assert [len(data.train), len(data.validation), len(data.test)] == [12, 4, 4]
    assert data.train.inputs.shape == (12, 4)  # size, blue, red, price
    assert data.train.inputs.mean(0).abs().max() < 1e-6
    back = data.test.inputs * torch.tensor(data.std) + torch.tensor(data.mean)
    size = back[:, 0].round().int()
    assert back[:, 2].round().int().tolist() == (size % 2).tolist()
    np.testing.assert_allclose(back[:, 3], size * 10 + 0.5, rtol=1e-4)
    assert data.test.labels.tolist() == (size % 3 != 0).int().tolist()


def test_numbers_as_targets(tmp_path: Path) -> None:
    options = {"path": table(tmp_path), "labels": "numbers", "ignore": ["kind", "colour"], "validation": 4}
    one = load_data("csv", target="price", **options)
    assert one.classes == ()
    assert one.train.labels.shape == (12,)
    assert set(one.test.labels.tolist()) <= {i * 10 + 0.5 for i in range(20)}
    with pytest.raises(DataError, match="no column is left for the inputs"):
        load_data("csv", target=["price", "size"], **options)


def test_empty_cells_are_refused_or_filled(tmp_path: Path) -> None:
    rows = [row if i else row.replace("0,", ",", 1) for i, row in enumerate(ROWS)]
    options = {"path": table(tmp_path, HEAD + "".join(rows)), "target": "kind", "categorical": ["colour"]}
    with pytest.raises(DataError, match="column 'size' is empty in row 1; fill: true"):
        load_data("csv", validation=4, **options)
    data = load_data("csv", validation=4, fill=True, **options)
    assert torch.isfinite(data.train.inputs).all()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {"target": "knd"}, "no column 'knd'; did you mean 'kind'"),
        (None, {}, "column 'colour' holds 'blue' in row 1; numbers are right"),
        (None, {"delimiter": ";;"}, "delimiter is ';;'; it is one character"),
        (None, {"labels": "x"}, "labels is 'x'; it is one of classes, numbers"),
        (HEAD + "1,2\n", {}, "line 2 has 2 cells; 4 are right"),
        ("a,a\n1,2\n", {}, "a name for each column, each once"),
        (HEAD + ROWS[0], {}, "1 rows; three parts need 4 at least"),
    ],
)
def test_what_is_no_table_is_one_clear_error(
    tmp_path: Path, text: str | None, options: dict, message: str
) -> None:
    path = table(tmp_path) if text is None else table(tmp_path, text)
    with pytest.raises(DataError, match=message):
        load_data("csv", **{"path": path, "target": "kind"} | options)
