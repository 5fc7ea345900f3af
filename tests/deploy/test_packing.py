"""Packed files: small, and read back bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.deploy import packing
from secateur.deploy.packing import pack, unpack, unpack_tensors
from secateur.errors import BudgetError, ModelError, NonFiniteError, StorageError
from secateur.runtime.unpacking import Sparse, read

COMPRESSIONS = ("lzma", "zstd")


def bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""


# -- there and back ----------------------------------------------------------------------------------

DTYPES = {
    torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16,
    torch.bfloat16: torch.int16, torch.int64: torch.int64, torch.int32: torch.int32,
    torch.int16: torch.int16, torch.int8: torch.int8, torch.uint8: torch.uint8, torch.uint16: torch.uint16,
    torch.bool: torch.bool,
}  # fmt: skip


@st.composite
def tensors(draw: Any) -> Tensor:
    """Any bits of any dtype, NaNs with payloads and -0.0 among them, zeros and few values at any share."""
    shape = draw(
        st.sampled_from([(), (0,), (3, 0, 2), (0, 4), (1,), (7,), (1, 9), (9, 1), (5, 3, 2, 2), (40, 30)])
    )
    dtype = draw(st.sampled_from(list(DTYPES)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = int(np.prod(shape, dtype=int))
    raw = torch.from_numpy(random.integers(0, 256, count * dtype.itemsize, np.uint8))
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40]
    if dtype == torch.bool:
        tensor = (raw > 127).reshape(shape)
    else:
        tensor = raw.view(dtype) if count else torch.zeros(0, dtype=dtype)
        if dtype.is_floating_point and count:
            some = torch.from_numpy(random.choice(special, count)).to(dtype)
            tensor = torch.where(torch.from_numpy(random.random(count) < 0.2), some, tensor)
        if count and draw(st.booleans()):
            tensor = tensor[
                torch.from_numpy(random.integers(0, min(count, draw(st.integers(1, 300))), count))
            ]
        tensor = tensor.reshape(shape)
    dead = torch.from_numpy(np.asarray(random.random(shape) < draw(st.sampled_from([0, 0.3, 0.9, 0.999, 1]))))
    return torch.where(dead, torch.zeros((), dtype=dtype), tensor)


@given(st.lists(tensors(), max_size=4), st.sampled_from(COMPRESSIONS))
@settings(max_examples=150, deadline=None)
def test_any_tensor_comes_back_bit_for_bit(tmp_path_factory, given_tensors, compression):
    path = tmp_path_factory.mktemp("packed") / "x"
    named = {f"t{i}": tensor for i, tensor in enumerate(given_tensors)}
    packed = pack(named, path, compression=compression, metadata=[1], signed_zeros=True)
    found, metadata = unpack_tensors(path)
    assert metadata == [1]
    assert packed.bytes == path.stat().st_size
    for name, tensor in named.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)
    dense, _ = read(path)
    for name, sparse in read(path, sparse=True)[0].items():
        if isinstance(sparse, Sparse):
            made = np.zeros(sparse.shape, sparse.values.dtype)
            made.reshape(-1)[sparse.positions] = sparse.values
            assert (np.diff(sparse.positions) > 0).all()
            sparse = made
        assert sparse.tobytes() == dense[name].tobytes()


def test_bfloat16_is_float32_in_numpy_and_itself_in_torch(tmp_path):
    tensor = torch.tensor([1.5, -0.0, 3.0]).bfloat16()
    pack({"w": tensor}, tmp_path / "x", signed_zeros=True)
    array = read(tmp_path / "x")[0]["w"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.5, 0.0, 3.0]
    assert bits(unpack_tensors(tmp_path / "x")[0]["w"]) == bits(tensor)


def test_a_negative_zero_is_a_zero_unless_asked(tmp_path):
    weight = -torch.rand(50, 40) * (torch.rand(50, 40) > 0.9)  # what multiplying by a mask leaves
    small = pack({"w": weight}, tmp_path / "a")
    large = pack({"w": weight}, tmp_path / "b", signed_zeros=True)
    assert torch.equal(unpack_tensors(tmp_path / "a")[0]["w"], weight)
    assert not unpack_tensors(tmp_path / "a")[0]["w"].signbit()[weight == 0].any()
    assert bits(unpack_tensors(tmp_path / "b")[0]["w"]) == bits(weight)
    assert small.bytes < large.bytes


def test_tensors_that_are_one_are_stored_once(tmp_path):
    weight = torch.randn(30, 20)
    packed = pack({"a": weight, "b": weight.T, "c": weight, "d": weight[:, :10]}, tmp_path / "x")
    assert [t.name for t in packed.tensors] == ["a", "b", "d"]
    found = read(tmp_path / "x")[0]
    assert found["c"] is found["a"]
    assert np.array_equal(found["b"], weight.T.numpy())
    assert np.array_equal(found["d"], weight[:, :10].numpy())


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_each_way_is_taken_where_it_is_the_smallest(tmp_path, compression):
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 96, generator=random)
    chance = torch.rand(64, 96, generator=random)
    columns = torch.zeros(64, 96)
    columns[:, ::17] = (noise * (chance > 0.6))[:, ::17]
    given = {
        "dense": noise, "half": noise * (chance > 0.5), "few": noise * (chance > 0.95), "columns": columns,
        "shared": torch.randint(1, 17, (64, 96), generator=random) / 7, "one": torch.ones(64),
    }  # fmt: skip
    packed = pack(given, tmp_path / "x", compression=compression)
    ways = {t.name: t.encoding for t in packed.tensors}
    assert ways["dense"] == "dense, float32"
    assert ways["half"].startswith("mask")
    assert ways["few"].startswith("gaps")
    assert "by column" in ways["columns"]
    assert ways["shared"] == "dense, 16 values in 4 bits"
    assert ways["one"] == "dense, 1 values in 0 bits"
    by_name = {t.name: t for t in packed.tensors}
    assert by_name["few"].bytes < 0.06 * by_name["few"].dense_bytes
    assert by_name["shared"].bytes < 1.02 * 64 * 96 / 2 + 64


def test_long_gaps_and_long_streams(tmp_path):
    weight = torch.zeros(900, 700)
    weight.view(-1)[torch.randint(0, weight.numel(), (900,))] = torch.randn(900)
    many = torch.randint(-9, 9, (500, 900), dtype=torch.int8)
    pack({"w": weight, "many": many}, tmp_path / "x")
    found = read(tmp_path / "x")[0]
    assert np.array_equal(found["w"], weight.numpy())
    assert np.array_equal(found["many"], many.numpy())


# -- lossy -------------------------------------------------------------------------------------------


def test_float16_rounds_weights_and_nothing_else(tmp_path):
    given = {
        "w": torch.randn(40, 30),
        "b": torch.randn(1000),
        "n": torch.randn(2, 2),
        "i": torch.ones(99, 99).int(),
    }
    packed = pack(given, tmp_path / "x", values="float16")
    found = unpack_tensors(tmp_path / "x")[0]
    assert torch.equal(found["w"], given["w"].half().float())
    assert all(torch.equal(found[name], given[name]) for name in "bni")
    errors = {t.name: t.error for t in packed.tensors}
    assert 0 < errors["w"] < 1e-3
    assert errors["b"] == 0


def test_a_codebook_of_so_many_values_and_zeros_stay(tmp_path):
    weight = torch.randn(40, 30) * (torch.rand(40, 30) > 0.7)
    packed = pack({"w": weight, "kept": weight}, tmp_path / "x", values=8)
    found = unpack_tensors(tmp_path / "x")[0]["w"]
    assert torch.equal(found == 0, weight == 0)
    assert len(found[found != 0].unique()) == 8
    assert packed.tensors[0].error == pytest.approx(float((found - weight).abs().max() / weight.abs().max()))
    assert "8 values in" in packed.tensors[0].encoding
    pack({"w": weight.half(), "z": torch.zeros(90, 90)}, tmp_path / "y", values=8)
    assert unpack_tensors(tmp_path / "y")[0]["w"].dtype == torch.float16


def test_exclude_and_smallest_keep_tensors_exact(tmp_path):
    given = {"a.weight": torch.randn(40, 30), "b.weight": torch.randn(40, 30), "c.weight": torch.randn(4, 4)}
    pack(given, tmp_path / "x", values=4, exclude="a.*", smallest=16)
    found = unpack_tensors(tmp_path / "x")[0]
    assert torch.equal(found["a.weight"], given["a.weight"])
    assert len(found["b.weight"].unique()) == len(found["c.weight"].unique()) == 4
    with pytest.raises(StorageError, match=r"exclude pattern 'a.wieght' matches nothing; did you mean"):
        pack(given, tmp_path / "x", values=4, exclude=["a.wieght"])


def test_what_cannot_be_rounded_is_named(tmp_path):
    large = torch.full((40, 30), 1e6)
    with pytest.raises(StorageError, match=r"w: 1e\+06 is too large for float16; exclude it"):
        pack({"w": large}, tmp_path / "x", values="float16")
    for values in ("float16", 16):
        with pytest.raises(
            NonFiniteError, match=r"w: holds a NaN or an infinity; pack it lossless or exclude"
        ):
            pack({"w": large / 0}, tmp_path / "x", values=values)
    assert not list(tmp_path.iterdir())


# -- models ------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.into, self.mid, self.norm = nn.Linear(12, width), nn.Linear(width, 12), nn.BatchNorm1d(12)
        self.out = nn.Linear(12, width)
        self.out.weight = self.into.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.mid(self.into(x).relu())))


def test_a_model_comes_back_tied(tmp_path):
    net = Tied().eval()
    sc.prune(net, sc.Magnitude(), sc.Global(0.8))
    packed = pack(net, tmp_path / "x", metadata={"accuracy": 0.98})
    assert "out.weight" not in {t.name for t in packed.tensors}
    fresh = Tied().eval()
    assert unpack(fresh, tmp_path / "x") is fresh
    assert fresh.out.weight is fresh.into.weight
    x = torch.randn(5, 12)
    assert torch.equal(net(x), fresh(x))
    assert int(fresh.norm.num_batches_tracked) == 0
    assert read(tmp_path / "x")[1] == {"accuracy": 0.98}


def test_a_compacted_model_gives_its_shapes(tmp_path):
    def make(width: int = 24) -> nn.Module:
        layers = nn.Linear(12, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 5)
        return nn.Sequential(*layers).eval()

    net, x = make(), torch.randn(5, 12)
    structure = sc.trace(net, x, streams=True)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small = sc.compact(net, x, structure=structure)[0].eval()
    pack(small, tmp_path / "x")
    fresh: Any = unpack(make(), tmp_path / "x").eval()
    assert fresh[0].weight.shape == (12, 12)
    assert torch.equal(small(x), fresh(x))
    with pytest.raises(ModelError, match=r"x: the file has a module .*; load it into a .*Sequential"):
        unpack(nn.Sequential(nn.Linear(12, 24)), tmp_path / "x")
    with pytest.raises(ModelError, match="load it into the model at its full size"):
        unpack(make(width=5), tmp_path / "x")


def test_a_state_dict_must_fit(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    pack(net.state_dict(), tmp_path / "x")
    fresh = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    unpack(fresh, tmp_path / "x")
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    with pytest.raises(ModelError, match=r"the model has no tensor '1.bias', which the file has"):
        unpack(nn.Sequential(nn.Linear(4, 3)), tmp_path / "x")
    with pytest.raises(ModelError, match=r"the file has no tensor '2.bias', which the model has"):
        unpack(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)), tmp_path / "x")
    for other in (nn.Linear(4, 3).double(), nn.Linear(5, 3)):
        with pytest.raises(ModelError, match=r"0.bias|0.weight is \(3, 4\) .* Pack the model itself"):
            unpack(nn.Sequential(other, nn.BatchNorm1d(3)), tmp_path / "x")


def test_a_description_that_is_none_is_refused(tmp_path, monkeypatch):
    for model in ({}, {"class": "x", "modules": {"": 3}}, {"class": 1, "modules": {}}):
        said = {**model, "tied": {}}
        monkeypatch.setattr(packing, "describe", lambda net, said=said: (net.state_dict(), dict(said)))
        pack(nn.Linear(2, 3), tmp_path / "x")
        with pytest.raises(StorageError, match="what it says of the model's modules is damaged"):
            unpack(nn.Linear(2, 3), tmp_path / "x")


def test_weights_that_are_not_finite_are_refused_unless_asked_for(tmp_path):
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    for number, packed in enumerate((net, net.state_dict())):
        pack(packed, tmp_path / f"{number}")
        fresh = nn.Linear(2, 3)
        with pytest.raises(NonFiniteError, match="weight holds a NaN or an infinity"):
            unpack(fresh, tmp_path / f"{number}")
        assert torch.isfinite(fresh.weight).all()
        found: Any = unpack(fresh, tmp_path / f"{number}", allow_nonfinite=True)
        assert found.weight[0, 0].isnan()


# -- refusals ----------------------------------------------------------------------------------------


def test_settings_that_are_none(tmp_path):
    tensor = {"w": torch.ones(3)}
    for call, error, message in [
        ({"values": "lossy"}, StorageError, "values is 'lossy'; it is 'lossless', 'float16' or a number"),
        ({"values": 1}, BudgetError, "values is 1; .* from 2 to 256"),
        ({"values": True}, BudgetError, "values is True"),
        ({"compression": "gzip"}, StorageError, "compression is 'gzip'; it is 'lzma' or 'zstd'"),
        ({"metadata": {1, 2}}, StorageError, "x: the metadata cannot be written as JSON"),
        ({"metadata": float("nan")}, StorageError, "x: the metadata cannot be written as JSON"),
    ]:
        with pytest.raises(error, match=message):
            pack(tensor, tmp_path / "x", **call)
    for bad, message in [
        (torch.ones(2, dtype=torch.complex64), "w: a torch.strided tensor of complex64 on cpu"),
        (torch.ones(2, 2).to_sparse(), "w: a torch.sparse_coo tensor"),
        (torch.ones(2, device="meta"), "on meta cannot be packed"),
        ([1.0], "'w' is a list; tensors by name can be packed"),
    ]:
        with pytest.raises(StorageError, match=message):
            pack({"w": bad}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file(tmp_path):
    pack({"w": torch.ones(3)}, tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(StorageError):
        pack({"w": torch.zeros(3)}, tmp_path / "x", metadata={1})
    assert (tmp_path / "x").read_bytes() == before


def test_the_table_adds_up(tmp_path):
    packed = pack(
        {"w": torch.randn(90, 80) * (torch.rand(90, 80) > 0.9), "b": torch.randn(90)}, tmp_path / "x"
    )
    lines = repr(packed).splitlines()
    assert lines[0].split() == ["tensor", "encoding", "bytes", "dense", "ratio", "error"]
    assert lines[-1].split() == ["all", f"{packed.bytes:,}", "29,160", f"{packed.ratio:.1f}x"]
    assert packed.ratio == 4 * (90 * 80 + 90) / Path(packed.path).stat().st_size
