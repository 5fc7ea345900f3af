"""``save`` and ``load``: the same model in another process, and a clear no to everything else."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from networks import saved
from networks.saved import MODELS, Attention, Normed, Recurrent, inputs
from secateur.errors import ModelError, NonFiniteError, StorageError
from secateur.methods.structure_selection import StructureSelection
from secateur.storage import digest_of, load_tensors, save_tensors


def small(name: str) -> nn.Module:
    """A model that lost half of its units."""
    net, x = MODELS[name]().eval(), inputs(name)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    structure = sc.trace(net, x, streams=True)
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    return sc.compact(net, x, structure=structure)[0].eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    sc.save(small("norms"), tmp_path / "norms.safetensors")
    return tmp_path / "norms.safetensors"


@pytest.mark.parametrize("name", MODELS)
def test_another_process_computes_the_same_bit_for_bit(name, tmp_path):
    net = small(name)
    sc.save(net, tmp_path / "net.safetensors")
    command = [sys.executable, str(Path(saved.__file__)), name, str(tmp_path / "net.safetensors")]
    done = subprocess.run([*command, str(tmp_path / "out.pt")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), net(inputs(name)))


def test_tied_weights_stay_tied(tmp_path):
    net = small("gpt2")
    sc.save(net, tmp_path / "net.safetensors")
    again: Any = sc.load(MODELS["gpt2"](), tmp_path / "net.safetensors")
    assert again.inner.lm_head.weight is again.inner.transformer.wte.weight
    assert again.inner.lm_head.weight.shape == (61, 12)


def test_the_eps_of_a_norm_comes_back(file):
    again: Any = sc.load(Normed(eps=1e-3), file)
    assert again.last.eps == 0.25 * 11 / again.last.normalized_shape[0]
    assert again.first.full_size == 11
    assert sc.load(again, file) is again
    assert again.first.full_size == 11


def test_training_mode_and_requires_grad_are_those_of_the_model_given(file):
    for training in (True, False):
        fresh = Normed().train(training)
        fresh.up.weight.requires_grad_(training)
        again: Any = sc.load(fresh, file)
        assert again is fresh
        assert all(module.training == training for module in again.modules())
        assert again.up.weight.requires_grad == training
        assert again.up.bias.requires_grad


def refused(path: Path, kind: type[Exception], words: str, model: nn.Module | None = None) -> None:
    """Loading fails with one line that says why, and changes nothing."""
    model = model or Normed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(kind, match=words) as caught:
        sc.load(model, path)
    assert type(caught.value) is kind
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_one_byte_of_a_tensor_changed(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    refused(file, StorageError, "changed or damaged since")


def test_one_byte_of_the_metadata_changed(file):
    content = file.read_bytes()
    assert content.count(rb"\"full_size\": 11") == 1
    file.write_bytes(content.replace(rb"\"full_size\": 11", rb"\"full_size\": 12"))
    refused(file, StorageError, "changed or damaged since")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(file, StorageError, "not a complete safetensors file")


def test_other_kinds_of_files(tmp_path):
    torch.save(Normed().state_dict(), tmp_path / "pickle.pt")
    refused(tmp_path / "pickle.pt", StorageError, "a pickle checkpoint")
    (tmp_path / "notes.txt").write_text("nothing of the kind, but long enough for a header\n")
    refused(tmp_path / "notes.txt", StorageError, "not a complete safetensors file")
    save_tensors(tmp_path / "state.safetensors", Normed().state_dict())
    refused(tmp_path / "state.safetensors", StorageError, "not a model saved by secateur")
    refused(tmp_path / "none.safetensors", StorageError, "no such file")
    refused(tmp_path, StorageError, "is a folder")


def test_another_class(file):
    refused(file, ModelError, "load it into a", Recurrent())
    refused(file, ModelError, "has a module", Attention())


def test_a_module_of_another_class(file):
    model = Normed()
    model.last = nn.LayerNorm(11)  # type: ignore[assignment]
    refused(file, ModelError, "module 'last' was a torch.nn.modules.normalization.RMSNorm", model)


def test_a_missing_and_an_additional_module(file):
    model: Any = Normed()
    del model.up
    refused(file, ModelError, "the file has a module 'up' and the model has not", model)
    model = Normed()
    model.more = nn.Linear(2, 2)
    refused(file, ModelError, "the model has a module 'more' and the file has not", model)


def test_missing_and_additional_tensors(file):
    model = Normed()
    model.register_buffer("more", torch.zeros(2))
    refused(file, ModelError, "has no tensor 'more', which the model needs", model)
    model = Normed()
    model.up.bias = None  # type: ignore[assignment]
    refused(file, ModelError, "holds a tensor 'up.bias' that the model has not", model)


def test_a_model_that_is_smaller_than_what_was_saved(file):
    model = Normed()
    model.up = nn.Linear(11, 2)
    refused(file, ModelError, "more than the model's", model)


def test_a_layer_norm_of_another_full_size(file):
    model = Normed()
    model.first = nn.LayerNorm(12)
    refused(file, ModelError, re.escape("cut from a LayerNorm over 11 channels and has 12 here"), model)


def rewritten(file: Path, change: Any) -> None:
    """Change tensors and metadata of a file, and give it the digest that fits."""
    tensors, metadata = load_tensors(file)
    metadata.pop("sha256")
    change(tensors, metadata)
    save_tensors(file, tensors, {**metadata, "sha256": digest_of(tensors, metadata)})


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("last", "eps", "small"),
        ("last", "eps", -1.0),
        ("last", "eps", [1]),
        ("up", "out_features", 1.5),
        ("up", "out_features", "seven"),
        ("first", "eps", 0.1),
    ],
)
def test_a_size_that_is_none(file, place, name, value):
    rewritten(file, lambda tensors, metadata: metadata["modules"][place][1].update({name: value}))
    refused(file, StorageError, f"'{name}' of module '{place}' cannot be")


def test_a_header_that_promises_too_much(file):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"]["secateur"] == '"model 2"'
    file.write_bytes(struct.pack("<Q", 1 << 40) + content[8:])
    refused(file, StorageError, "not a complete safetensors file")


class Branch(nn.Module):
    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def stacked(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), *(blocks or (Branch(), Branch())), nn.Linear(7, 3))


def test_a_removed_block_is_removed_again(tmp_path):
    x = torch.randn(4, 5)
    chosen = StructureSelection(stacked(), x)
    with torch.no_grad():
        chosen.network.factors["x + 2.down"].zero_()
        chosen.network.factors["1.up -> 1.down"][:4] = 0
    net, selected = chosen.fold()
    assert selected.identities == ("2",)
    path = tmp_path / "net.safetensors"
    sc.save(net, path)
    for model in (stacked(), sc.load(stacked(), path)):
        again: Any = sc.load(model, path)
        assert again is model
        assert type(again[2]) is nn.Identity
        assert again[1].up.out_features == 5
        with torch.no_grad():
            assert torch.equal(again(x), net(x))
    sc.save(again, tmp_path / "again.safetensors")
    assert type(sc.load(stacked(), tmp_path / "again.safetensors")[2]) is nn.Identity  # type: ignore[index]

    for other in (nn.Linear(7, 7), nn.Identity()):
        words = f"module '2' was a .*Branch .* and is a .*{type(other).__name__}"
        refused(path, ModelError, words, stacked(Branch(), other))
    sc.save(stacked(Branch(), nn.Identity()), path)  # an Identity of the user's own stands for nothing
    refused(path, ModelError, "the model has a module '2.", stacked())


@pytest.mark.parametrize(
    "removed", [{"": "Normed"}, {"up": "torch.nn.modules.linear.Linear"}, {"up": 1}, ["up"]]
)
def test_a_removed_block_that_is_none(file, removed):
    tensors, metadata = load_tensors(file)
    metadata.pop("sha256")
    metadata["removed"] = removed
    save_tensors(file, tensors, {**metadata, "sha256": digest_of(tensors, metadata)})
    refused(file, StorageError, "cannot be a block that was removed|modules is damaged")


def test_modules_and_tensors_below_a_removed_block(file):
    tensors, metadata = load_tensors(file)
    metadata.pop("sha256")
    metadata["removed"] = {"up": "torch.nn.modules.linear.Linear"}
    metadata["modules"]["up"] = ["torch.nn.modules.linear.Identity", {}]
    save_tensors(file, tensors, {**metadata, "sha256": digest_of(tensors, metadata)})
    refused(file, ModelError, "holds a tensor 'up.bias' that the model has not")
    metadata["modules"]["up.more"] = ["torch.nn.modules.linear.Linear", {}]
    save_tensors(file, tensors, {**metadata, "sha256": digest_of(tensors, metadata)})
    refused(file, ModelError, "the file has a module 'up.more' and the model has not")


# -- a file whose digest is right and whose content is not -------------------------------------------


DAMAGED = "what it says of the model's modules is damaged"
FORGERIES: dict[str, tuple[type[Exception], str, Any]] = {
    "no class": (StorageError, DAMAGED, lambda t, m: m.pop("class")),
    "a class that is a list": (StorageError, DAMAGED, lambda t, m: m.update({"class": ["Normed"]})),
    "no modules": (StorageError, DAMAGED, lambda t, m: m.pop("modules")),
    "a module that is a number": (StorageError, DAMAGED, lambda t, m: m["modules"].update(up=1.5)),
    "a module of one part": (StorageError, DAMAGED, lambda t, m: m["modules"]["up"].pop()),
    "sizes that are a number": (StorageError, DAMAGED, lambda t, m: m["modules"]["up"].__setitem__(1, 3)),
    "a class that is a number": (StorageError, DAMAGED, lambda t, m: m["modules"]["up"].__setitem__(0, 3)),
    "ties that are a list": (StorageError, DAMAGED, lambda t, m: m.update(tied=["up.bias"])),
    "a tie to nothing": (StorageError, "cannot be tied to 'gone'", lambda t, m: m["tied"].update(x="gone")),
    "a tie to a dict": (StorageError, "'x' cannot be tied to {}", lambda t, m: m["tied"].update(x={})),
    "a tensor tied to another": (
        ModelError,
        "first.weight and first.bias are one tensor there and two in the model",
        lambda t, m: (t.pop("first.weight"), m["tied"].update({"first.weight": "first.bias"})),
    ),
    "a size that is true": (
        StorageError,
        "'in_features' of module 'up' cannot be True",
        lambda t, m: m["modules"]["up"][1].update(in_features=True),
    ),
    "a size that is a list": (
        StorageError,
        r"'in_features' of module 'up' cannot be \[3\]",
        lambda t, m: m["modules"]["up"][1].update(in_features=[3]),
    ),
    "a size of another tensor": (
        StorageError,
        "the sizes of module 'up' are not those of its tensors",
        lambda t, m: m["modules"]["up"][1].update(in_features=3),
    ),
    "no full size": (ModelError, "cut from a LayerNorm over", lambda t, m: m["modules"]["first"][1].clear()),
    "a NaN": (
        NonFiniteError,
        "up.bias holds a NaN or an infinity",
        lambda t, m: t["up.bias"].fill_(torch.nan),
    ),
    "an infinity": (NonFiniteError, "up.bias holds", lambda t, m: t["up.bias"][:1].fill_(torch.inf)),
    "float64": (
        ModelError,
        r"up.bias is torch.float64 there and torch.float32 in the model; .* model.to\(torch.float64\)",
        lambda t, m: t.update({"up.bias": t["up.bias"].double()}),
    ),
    "integers": (
        ModelError,
        "up.bias is torch.int32",
        lambda t, m: t.update({"up.bias": t["up.bias"].int()}),
    ),
    "a dim of none": (
        ModelError,
        "up.bias has 2 dims",
        lambda t, m: t.update({"up.bias": t["up.bias"][None]}),
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_everything_is_checked_before_the_first_change(file, what):
    kind, words, change = FORGERIES[what]
    rewritten(file, change)
    refused(file, kind, words)


def test_nonfinite_weights_are_loaded_when_asked_for(file):
    rewritten(file, lambda tensors, metadata: tensors["up.bias"].fill_(torch.nan))
    assert sc.load(Normed(), file, allow_nonfinite=True).up.bias.isnan().all()  # type: ignore[union-attr]


def test_a_buffer_that_is_infinite_by_nature(tmp_path):
    def masked() -> nn.Module:
        model = Normed()
        model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        return model

    sc.save(masked(), tmp_path / "x")
    assert sc.load(masked(), tmp_path / "x").mask.isinf().any()  # type: ignore[union-attr]


def test_weights_that_are_tied_here_and_not_there(tmp_path):
    def made(tied: bool) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if tied:
            model[1].weight = model[0].weight
        return model

    sc.save(made(tied=False), tmp_path / "x")
    words = "1.weight and 0.weight are two tensors there and one in the model"
    refused(tmp_path / "x", ModelError, words, made(tied=True))


def test_a_class_that_cannot_take_it_leaves_the_model_whole(file):
    class Stubborn(nn.Linear):
        """Refuses a new bias, after other tensors have been given to other modules."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "bias" and "bias" in self._parameters:
                raise RuntimeError("no")
            super().__setattr__(name, value)

    Stubborn.__module__, Stubborn.__qualname__ = nn.Linear.__module__, "Linear"
    model = Normed()
    model.out = Stubborn(11, 4)
    before = {name: (type(module), repr(module)) for name, module in model.named_modules()}
    refused(file, RuntimeError, "no", model)
    assert {name: (type(module), repr(module)) for name, module in model.named_modules()} == before
    assert "full_size" not in vars(model.first)


def test_a_file_with_holes_that_claims_a_giant_model(tmp_path):
    item = {"dtype": "BOOL", "shape": [2**31], "data_offsets": [0, 2**31]}
    header = json.dumps({"a": item, "__metadata__": {"secateur": json.dumps("model 2")}}).encode()
    with (tmp_path / "x").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**31)
    refused(tmp_path / "x", ModelError, "holds 2,147,483,648 values, far more than the model, which has")


def test_heads_that_are_not_those_of_the_tensors(tmp_path):
    sc.save(small("attention"), tmp_path / "x")
    rewritten(tmp_path / "x", lambda tensors, metadata: metadata["modules"]["mix"][1].update(num_heads=7))
    refused(tmp_path / "x", StorageError, "the sizes of module 'mix' are not those", Attention())
