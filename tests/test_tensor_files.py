"""Files of tensors: there and back, the same bytes as safetensors', and a clear no to what is none."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from secateur import storage
from secateur.errors import SecateurError, StorageError
from secateur.storage import (
    load_tensors,
    save_tensors,
)

# -- tensors -----------------------------------------------------------------------------------------


def test_tensors_there_and_back_with_metadata(tmp_path):
    shared = torch.arange(6.0)
    tensors = {
        "half": torch.tensor([[1.5, -0.0]], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "other empty": torch.zeros(3, 0),
        "number": torch.tensor(2**40),
        "transposed": torch.arange(6).view(2, 3).T,
        "needs grad": torch.ones(2, requires_grad=True),
        "whole": shared,
        "view": shared[2:4],
        "same": shared,
    }
    metadata = {"version": 1, "names": ["a", {"b": None}], "text": "1"}
    save_tensors(tmp_path / "x.safetensors", tensors, metadata)
    loaded, found = load_tensors(tmp_path / "x.safetensors")
    assert found == metadata
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
    assert not loaded["needs grad"].requires_grad
    assert set(load_file(tmp_path / "x.safetensors")) == set(tensors)  # other tools read it


@pytest.mark.parametrize("value", [float("nan"), torch.ones(1)])
def test_metadata_that_json_has_not(tmp_path, value):
    with pytest.raises(StorageError, match=r"x: the metadata cannot be written as JSON"):
        save_tensors(tmp_path / "x", {"a": torch.ones(1)}, {"value": value})
    assert not list(tmp_path.iterdir())


def test_metadata_of_other_tools_stay_text(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x", metadata={"format": "pt", "list": "[1]"})
    assert load_tensors(tmp_path / "x")[1] == {"format": "pt", "list": [1]}


def test_a_header_of_any_length_is_read(tmp_path):
    # The file begins with the header's length: at 128, 384, ... bytes with 0x80, as a pickle does.
    first = set()
    for length in range(1, 300):
        save_tensors(tmp_path / "x", {"n" * length: torch.ones(1)})
        first.add((tmp_path / "x").read_bytes()[0])
        assert list(load_tensors(tmp_path / "x")[0]) == ["n" * length]
    assert 0x80 in first


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


def test_pickles_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(3)}, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(StorageError, match=r"model\.safetensors: a pickle checkpoint \(torch\.save\)"):
        load_tensors(path)
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(StorageError, match="a pickle checkpoint"):
        load_tensors(path)
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
        with pytest.raises(StorageError, match=r"pickle checkpoint|not a complete safetensors file"):
            load_tensors(path)
    assert not (tmp_path / "bomb").exists()
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(StorageError, match="which can run code when it is loaded"):
        load_tensors(path)


def test_truncated_at_any_length(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, {"a": torch.arange(5.0), "b": torch.ones(3).bool()}, {"k": "v"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StorageError, match=r"x: not a complete safetensors file: .+"):
            load_tensors(path)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_byte_crashes_nothing(tmp_path_factory, position, value):
    path = tmp_path_factory.getbasetemp() / "damaged"
    save_tensors(path, {"a": torch.arange(5.0), "b": torch.ones(3).bool()}, {"k": "v"})
    whole = bytearray(path.read_bytes())
    whole[position % len(whole)] = value
    path.write_bytes(whole)
    try:
        tensors, metadata = load_tensors(path)
    except SecateurError:
        return
    assert all(isinstance(t, torch.Tensor) for t in tensors.values())
    assert all(isinstance(key, str) for key in metadata)


def test_text_is_not_tensors(tmp_path):
    (tmp_path / "x").write_text(json.dumps({"a": 1}) * 10)
    with pytest.raises(StorageError, match="not a complete safetensors file"):
        load_tensors(tmp_path / "x")


def header(text: bytes, body: bytes = b"", size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body


def item(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def several(**items: object) -> bytes:
    return json.dumps(items).encode()


NO_TENSORS = {
    "a header longer than the file": header(b"{}", size=2**40),
    "a header of 2^64 - 1 bytes": header(b"{}", size=2**64 - 1),
    "no object": header(b"[1, 2]"),
    "no UTF-8": header(b'{"\xff": 1}'),
    "a deep header": header(b'{"a": ' * 5000),
    "a hole": header(several(a=item(offsets=(4, 8))), bytes(8)),
    "one over the other": header(several(a=item(), b=item(offsets=(2, 6))), bytes(6)),
    "the same twice": header(several(a=item(), b=item()), bytes(4)),
    "the end before the start": header(several(a=item(offsets=(4, 0))), bytes(4)),
    "more than there is": header(several(a=item(shape=(1 << 40,), offsets=(0, 1 << 42))), bytes(4)),
    "a size that overflows": header(several(a=item(shape=(1 << 33, 1 << 33))), bytes(4)),
    "a negative size": header(several(a=item(shape=(-1,))), bytes(4)),
    "a size with a comma": header(several(a=item(shape=(1.5,))), bytes(4)),
    "bytes that follow": header(several(a=item()), bytes(9)),
    "a dtype of none": header(several(a=item(dtype="F5")), bytes(4)),
    "metadata that are a list": header(several(a=item(), __metadata__=["x"]), bytes(4)),
    "metadata that hold a number": header(several(a=item(), __metadata__={"x": 1}), bytes(4)),
    "a name with a line end": header(several(**{"a\n": item()}), bytes(4)),
    "a name with an escape": header(several(**{"\x1b[31m": item()}), bytes(4)),
}


@pytest.mark.parametrize("what", NO_TENSORS)
def test_headers_that_lie(tmp_path, what):
    (tmp_path / "x").write_bytes(NO_TENSORS[what])
    with pytest.raises(StorageError, match=r"x: (not a complete safetensors file|.* cannot be the name of)"):
        load_tensors(tmp_path / "x")


def test_metadata_that_are_no_plain_json_stay_text(tmp_path):
    texts = {
        "a": "NaN",
        "b": "[" * 100_000,
        "c": "9" * 5000,
        "d": '{"x": 1, "x": 2}',
        "e": '"\\ud800"',
        "f": "[1]",
    }
    save_file({"a": torch.ones(1)}, tmp_path / "x", metadata=texts)
    assert load_tensors(tmp_path / "x")[1] == texts | {"f": [1]}


# -- the same bytes ----------------------------------------------------------------------------------


def test_a_file_is_byte_for_byte_what_safetensors_itself_writes(tmp_path):
    draw = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2, (24,), dtype=torch.uint8, generator=draw)
    dtypes = [dtype for dtype in storage.DTYPES if dtype != torch.bool]
    tensors = {f'n{i % 7} é\x01"{i}': raw[: 8 * (i % 4)].clone().view(d) for i, d in enumerate(dtypes * 2)}
    tensors |= {"bool": raw.bool(), "number": torch.tensor(3.0), "empty": torch.zeros(0, 3)}
    for metadata in ({}, {"one": "é\u2028\x7f"}):
        save_file(tensors, tmp_path / "theirs", metadata={k: json.dumps(v) for k, v in metadata.items()})
        save_tensors(tmp_path / "ours", tensors, metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_two_processes_write_the_same_bytes(tmp_path):
    code = (
        "import sys, torch\n"
        "from secateur.storage import save_tensors\n"
        "save_tensors(sys.argv[1], {n: torch.ones(2) for n in set('abcdef')}, {n: 1 for n in set('uvwx')})\n"
    )
    for seed in "123":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, tmp_path / seed], env=environment, check=True)
    assert len({(tmp_path / seed).read_bytes() for seed in "123"}) == 1


def test_a_dtype_that_the_format_has_not(tmp_path):
    with pytest.raises(StorageError, match=r"x: a is torch.complex128, which safetensors cannot hold"):
        save_tensors(tmp_path / "x", {"a": torch.ones(1, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())
