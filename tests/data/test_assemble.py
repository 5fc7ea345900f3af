"""Splits, normalising, fingerprints: on arrays whose every value tells where it came from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.data.assemble import Arrays, assemble, fifth_as_test, hold_out
from secateur.data.dataset import Dataset, Split


def arrays(
    number: int = 100, classes: int = 3, dtype: str = "uint8", shape: tuple[int, ...] = (2, 3, 3)
) -> Arrays:
    generator = np.random.default_rng(1)
    train = generator.integers(0, 200, (number, *shape)).astype(dtype)
    test = generator.integers(0, 200, (20, *shape)).astype(dtype)
    return Arrays(train, np.arange(number) % classes, test, np.arange(20) % classes)


def build(source: Arrays, **options) -> Dataset:
    settings = {"validation": 10, "seed": 0} | options
    return assemble("toy", source, ("a", "b", "c"), **settings)


def test_validation_and_train_share_nothing_and_lose_nothing() -> None:
    source = Arrays(np.arange(500.0)[:, None], np.arange(500) % 3, np.zeros((4, 1)), np.arange(4) % 3)
    data = build(source, validation=0.2, normalise=False)
    kept, taken = data.train.inputs.ravel().tolist(), data.validation.inputs.ravel().tolist()
    assert len(taken) == len(data.validation) == 100
    assert not set(kept) & set(taken)
    assert sorted(kept + taken) == list(range(500))
    assert all(label == value % 3 for value, label in zip(kept, data.train.labels.tolist(), strict=True))
    assert all(
        label == value % 3 for value, label in zip(taken, data.validation.labels.tolist(), strict=True)
    )
    other = build(source, validation=0.2, normalise=False, seed=1)
    assert other.validation.inputs.ravel().tolist() != taken


@given(number=st.integers(2, 300), data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_hold_out_partitions(number: int, data: st.DataObject, seed: int) -> None:
    held = data.draw(st.integers(1, number - 1))
    kept, taken = hold_out(number, held, seed)
    assert len(taken) == held
    assert sorted([*kept, *taken]) == list(range(number))


def test_hold_out_is_the_same_for_ever() -> None:
    assert hold_out(10, 4, 0)[1].tolist() == [2, 4, 8, 9]
    assert hold_out(10, 4, 7)[1].tolist() == [0, 2, 5, 8]


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f8", "int64", "float16"])
def test_moments_are_of_what_is_left_for_training(dtype: str) -> None:
    source = arrays(dtype=dtype)
    source.train_inputs[hold_out(100, 10, 0)[1]] = 0  # would drag the mean down if they were counted
    data = build(source)
    kept = source.train_inputs[hold_out(100, 10, 0)[0]].astype(np.float64)
    np.testing.assert_allclose(data.mean, kept.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(data.std, kept.std(axis=(0, 2, 3)))
    assert data.train.inputs.dtype == torch.float32
    assert data.train.inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    expected = (source.test_inputs.astype(np.float64) - kept.mean(axis=(0, 2, 3))[:, None, None]) / kept.std(
        axis=(0, 2, 3)
    )[:, None, None]
    np.testing.assert_allclose(data.test.inputs.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_scale_is_the_unit_of_the_moments_and_not_of_the_result() -> None:
    plain, scaled = build(arrays()), build(arrays(), scale=255.0)
    assert torch.equal(plain.train.inputs, scaled.train.inputs)
    np.testing.assert_allclose(np.array(scaled.mean) * 255, plain.mean)
    raw = build(arrays(), scale=255.0, normalise=False)
    np.testing.assert_allclose(raw.test.inputs.numpy(), arrays().test_inputs / np.float32(255))
    assert raw.mean == raw.std == ()


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, 1e30])
def test_constant_feature_is_centred_and_not_blown_up(value: float) -> None:
    source = arrays(dtype="float64", shape=(3,))
    source.train_inputs[:, 1] = value
    source.test_inputs[:, 1] = value
    data = build(source)
    assert data.std[1] == 1.0
    assert data.train.inputs[:, 1].abs().max() <= 1e-12 * max(value, 1)


def test_many_chunks_give_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    one = build(arrays())
    monkeypatch.setattr("secateur.data.assemble.CHUNK", 40)
    many = build(arrays())
    assert one.mean == many.mean  # sums of whole numbers are exact
    torch.testing.assert_close(one.train.inputs, many.train.inputs)


def test_memory_layout_changes_nothing() -> None:
    source = arrays(dtype="float64")
    turned = Arrays(
        np.asfortranarray(source.train_inputs),
        source.train_labels,
        source.test_inputs.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
        source.test_labels,
    )
    one, other = build(source), build(turned)
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(one.test.inputs, other.test.inputs)


def test_fingerprint_follows_all_that_determines_the_tensors() -> None:
    source = arrays()
    touched = replace(source, train_inputs=source.train_inputs.copy())
    touched.train_inputs[5, 0, 0, 0] ^= 1
    prints = [
        build(source).fingerprint,
        build(source, validation=11).fingerprint,
        build(source, seed=1).fingerprint,
        build(source, options={"size": 3}).fingerprint,
        build(touched).fingerprint,
        build(replace(source, train_labels=source.train_labels[::-1].copy())).fingerprint,
        assemble("other", source, ("a", "b", "c"), validation=10, seed=0).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 16 for text in prints)
    assert build(source).fingerprint == build(source, validation=0.1).fingerprint  # both mean 10 examples


def test_fifth_as_test_does_not_depend_on_anything_but_the_number() -> None:
    labels = np.arange(50) % 3
    source = fifth_as_test("toy", np.arange(50.0)[:, None], labels)
    assert len(source.test_labels) == 10
    values = sorted([*source.train_inputs.ravel(), *source.test_inputs.ravel()])
    assert values == list(range(50))


def test_unfit_arrays(refused) -> None:
    source = arrays()
    with refused(r"^toy: inputs hold a NaN or an infinity, or a number too large for float32$"):
        build(replace(arrays(dtype="float64"), test_inputs=np.full((20, 2, 3, 3), 1e300)))
    with refused(r"^toy: inputs hold a NaN or an infinity, or numbers too large to be squared$"):
        build(replace(arrays(dtype="float64"), train_inputs=arrays(dtype="float64").train_inputs * 1e200))
    with refused(r"^toy: inputs hold a NaN"):
        build(replace(arrays(dtype="float64"), train_inputs=np.full((100, 2, 3, 3), np.nan)))
    with refused(r"^test examples have shape \(2, 3, 2\), the training ones \(2, 3, 3\)"):
        replace(source, test_inputs=source.test_inputs[..., :2])
    with refused(r"^toy: no example of class 'b' is left for training"):
        build(replace(source, train_labels=source.train_labels // 2 * 2))
    with refused(r"^toy: 2 examples; 20 % of them as test data needs at least 3"):
        fifth_as_test("toy", np.zeros((2, 1)), np.zeros(2))


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2).long(), r"^3 inputs and 2 labels; one label an input$"),
        (torch.zeros(0, 2), torch.zeros(0).long(), r"^a split is empty"),
        (torch.zeros(2, 0), torch.zeros(2).long(), r"^a split is empty"),
        ([torch.zeros(2), torch.zeros(3)], torch.zeros(2), r"tensors with as many examples each"),
        ({"a": torch.zeros(2, 2), "b": 3}, torch.zeros(2), r"^a split holds .*; tensors, or tuples or dicts"),
        (torch.zeros(2, 2), torch.tensor([0.0, torch.nan]), r"^labels hold a NaN"),
        (torch.tensor([[1.0, torch.nan]]), torch.zeros(1).long(), r"^inputs hold a NaN"),
        (torch.tensor([[1.0, torch.inf]]), torch.zeros(1).long(), r"^inputs hold a NaN or an infinity"),
    ],
)
def test_split_refuses(inputs: torch.Tensor, labels: torch.Tensor, message: str, refused) -> None:
    with refused(message):
        Split(inputs, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2), r"^toy: train labels are \(2,\) of float32; int64 of \(N,\) is right"),
        (torch.zeros(2, 1).long(), r"^toy: train labels are \(2, 1\) of int64"),
        (torch.tensor([-1, 0]), r"^toy: train holds label -1; classes count from 0$"),
    ],
)
def test_labels_that_are_no_classes_where_there_are_some(labels, message, refused) -> None:
    split = Split(torch.zeros(2, 2), labels)
    with refused(message):
        Dataset("toy", split, split, split, ("a", "b"), fingerprint="f")
    Dataset("toy", split, split, split, fingerprint="f")  # numbers, or maps, are right without classes


def test_dataset_refuses_splits_that_do_not_fit(refused) -> None:
    split = Split(torch.zeros(2, 3), torch.tensor([0, 1]))
    with refused(r"^toy: test examples have shape \(4,\), the training ones \(3,\)"):
        Dataset("toy", split, split, Split(torch.zeros(2, 4), split.labels), ("a", "b"), fingerprint="f")
    with refused(r"^toy: validation holds label 2; 2 classes have labels 0 to 1"):
        Dataset("toy", split, replace(split, labels=torch.tensor([0, 2])), split, ("a", "b"), fingerprint="f")
