"""Checkpoints as people have them, made safetensors state dicts."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from secateur.errors import StorageError
from secateur.experiments.commands.convert import convert
from secateur.storage import load_tensors


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


class Wrapped(nn.Module):
    """What DataParallel, torch.compile and trainers make of names."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, net())


STATE = net().state_dict()
TURNED = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in STATE.items()}
SPARSE = {k: v.to_sparse() if k == "0.weight" else v for k, v in STATE.items()}


def masked():
    model = net()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model.state_dict()


FILES = {
    "plain": (STATE, []),
    "in data parallel": (Wrapped("module").state_dict(), ["'module.' stripped"]),
    "compiled": (Wrapped("_orig_mod").state_dict(), ["'_orig_mod.' stripped"]),
    "nested, with an optimizer": (
        {"epoch": 3, "best": 0.9, "model": STATE, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        ["its part 'model'"],
    ),
    "of a trainer": (
        {
            "pytorch-lightning_version": "2.0",
            "state_dict": {f"model.{k}": v for k, v in STATE.items()},
            "optimizer_states": [{"state": {"exp_avg": torch.zeros(3)}}],
            "hyper_parameters": {"lr": 0.1},
        },
        ["its part 'state_dict'", "'model.' stripped, which every name began with"],
    ),
    "with an average beside": (
        {"model": STATE, "ema": {"module": {k: v * 2 for k, v in STATE.items()}, "decay": 0.9}},
        ["its part 'model'", "left: 'ema/module'"],
    ),
    "with numbers among the tensors": ({**STATE, "classes": 3, "names": ["a", "b"]}, []),
    "turned": (TURNED, ["laid out row by row"]),
    "a view of more": ({k: torch.cat([v, v])[: len(v)] if v.dim() else v for k, v in STATE.items()}, []),
    "sparse": (SPARSE, ["made dense: 0.weight"]),
}


@pytest.mark.parametrize("name", FILES)
def test_the_weights_come_out_as_they_were(name, tmp_path):
    value, said = FILES[name]
    torch.save(value, tmp_path / "old.pth")
    text = convert(tmp_path / "old.pth", tmp_path / "new.safetensors")
    tensors, _ = load_tensors(tmp_path / "new.safetensors")
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[key], STATE[key]) for key in STATE)
    net().load_state_dict(tensors)
    for part in said:
        assert part in text
    assert f"{len(STATE)} tensors" in text


def test_masks_are_applied(tmp_path):
    torch.save(masked(), tmp_path / "old.pth")
    text = convert(tmp_path / "old.pth", tmp_path / "new.safetensors")
    tensors, _ = load_tensors(tmp_path / "new.safetensors")
    assert tensors.keys() == STATE.keys()
    assert (tensors["0.weight"] == 0).sum() == 12
    assert "1 masks of torch.nn.utils.prune applied (0.weight)" in text


def test_tied_tensors_are_written_each(tmp_path):
    table = torch.randn(5, 4)
    torch.save({"a.weight": table, "b.weight": table}, tmp_path / "old.pth")
    assert "tied, written each: b.weight is a.weight" in convert(
        tmp_path / "old.pth", tmp_path / "new.safetensors"
    )
    tensors, _ = load_tensors(tmp_path / "new.safetensors")
    assert torch.equal(tensors["a.weight"], tensors["b.weight"])


def test_a_file_that_was_saved_on_another_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"state_dict": STATE}, tmp_path / "old.pth")
    convert(tmp_path / "old.pth", tmp_path / "new.safetensors")
    assert load_tensors(tmp_path / "new.safetensors")[0].keys() == STATE.keys()


def test_another_part_and_names_that_are_ones_own(tmp_path):
    value = {"model": STATE, "ema": {"module": {f"model.{k}": v * 2 for k, v in STATE.items()}}}
    torch.save(value, tmp_path / "old.pth")
    convert(tmp_path / "old.pth", tmp_path / "new.safetensors", key="ema/module", keep_prefix=True)
    tensors, _ = load_tensors(tmp_path / "new.safetensors")
    assert torch.equal(tensors["model.0.weight"], 2 * STATE["0.weight"])
    with pytest.raises(StorageError, match=r"no state dict 'ema/modul'; did you mean 'ema/module'"):
        convert(tmp_path / "old.pth", tmp_path / "new.safetensors", key="ema/modul")


def test_what_the_network_does_not_have_is_dropped(tmp_path):
    torch.save({**STATE, "loss.weight": torch.ones(3), "loss.bias": torch.ones(1)}, tmp_path / "old.pth")
    text = convert(tmp_path / "old.pth", tmp_path / "new.safetensors", drop=["loss.*"])
    assert "dropped: loss.weight, loss.bias" in text
    assert load_tensors(tmp_path / "new.safetensors")[0].keys() == STATE.keys()
    with pytest.raises(StorageError, match=r"--drop los: no tensor is called so"):
        convert(tmp_path / "old.pth", tmp_path / "never.safetensors", drop=["los"])
    assert not (tmp_path / "never.safetensors").exists()


def test_what_is_dropped_is_not_in_the_way_of_a_prefix_and_one_alone_is_stripped(tmp_path):
    """``net`` is a part of the network's own, behind the trainer's ``model``."""
    state = {f"model.net.{name}": tensor for name, tensor in STATE.items()}
    torch.save(state | {"loss.weight": torch.ones(3)}, tmp_path / "old.pth")
    text = convert(tmp_path / "old.pth", tmp_path / "new.safetensors", drop=["loss.*"])
    assert "'model.' stripped" in text
    assert "'net.' stripped" not in text
    assert load_tensors(tmp_path / "new.safetensors")[0].keys() == {f"net.{name}" for name in STATE}


def test_another_prefix_and_another_precision(tmp_path):
    old, new = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save({f"student.model.{name}": tensor.half() for name, tensor in STATE.items()}, old)
    assert "'student.model.' stripped" in convert(old, new, strip="student.model.", dtype="float32")
    tensors, _ = load_tensors(new)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["0.weight"], STATE["0.weight"].half().float())
    with pytest.raises(StorageError, match=r"--strip teacher.: student\.model\.0\.weight does not begin so"):
        convert(old, new, strip="teacher.")
    with pytest.raises(StorageError, match="--dtype int8: is none of float32, float64"):
        convert(old, new, dtype="int8")


def test_what_is_no_data_is_refused_with_the_reason(tmp_path):
    old, new = tmp_path / "old.pth", tmp_path / "new.safetensors"
    torch.save(net(), old)
    with pytest.raises(StorageError, match=r"holds more than data \(.*torch.nn.modules.container.Sequential"):
        convert(old, new)
    torch.jit.save(torch.jit.script(net()), old)
    with pytest.raises(StorageError, match="a TorchScript program"):
        convert(old, new)
    for content in (b"", b"nonsense", b"PK\x03\x04 cut"):
        old.write_bytes(content)
        with pytest.raises(StorageError, match=r"old\.pth: "):
            convert(old, new)
    torch.save({"epoch": 3, "optimizer": {"state": {"step": torch.ones(3)}}}, old)
    with pytest.raises(StorageError, match="holds no state dict"):
        convert(old, new)
    with pytest.raises(StorageError, match="there is no such file"):
        convert(tmp_path / "none.pth", new)
    quantized = torch.quantize_per_tensor(torch.randn(3, 3), 0.1, 0, torch.qint8)
    torch.save({"a": quantized}, old)
    with pytest.raises(StorageError, match="a is quantized"):
        convert(old, new)
    assert not new.exists()
