"""What is no network where one belongs, and no path where one belongs, is one clear error everywhere."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur.errors import ModelError, StorageError

X = torch.ones(2, 4)
LAYER = torch.nn.Linear(4, 2)


@pytest.mark.parametrize("model", [3, None, LAYER.forward, torch.nn.Linear], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        lambda m: sc.prune(m, sc.Magnitude(), sc.Uniform(0.5)),
        lambda m: sc.trace(m, X),
        lambda m: sc.find_targets(m),
        lambda m: sc.sparsity(m),
        lambda m: sc.profile(m, X),
        lambda m: sc.sparsify(m, X),
        lambda m: sc.share_weights(m, values=4),
        lambda m: sc.reconstruct(m, LAYER, sc.trace(LAYER, X), [X]),
        lambda m: sc.Masks.from_torch_prune(m),
        lambda m: sc.compact(m, X),
        lambda m: sc.prune_to(m, X, macs=0.5),
        lambda m: sc.prune_greedily(m, X, [(X, torch.zeros(2).long())], macs=0.5),
        lambda m: sc.save(m, "x.safetensors"),
        lambda m: sc.load(m, "x.safetensors"),
        lambda m: sc.pack(m, "x.secateur"),
        lambda m: sc.unpack(m, "x.secateur"),
        lambda m: sc.write_folder(m, X, "x"),
    ],
)
def test_what_is_no_network(call, model):
    with pytest.raises(ModelError, match=r"^model is .* it is a network, an instance of torch\.nn\.Module"):
        call(model)


@pytest.mark.parametrize("path", [3, None, LAYER, b"x"], ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda p: sc.save(LAYER, p),
        lambda p: sc.load(LAYER, p),
        lambda p: sc.pack(LAYER, p),
        lambda p: sc.unpack(LAYER, p),
        lambda p: sc.write_folder(LAYER, X, p),
        lambda p: sc.export_onnx(LAYER, X, p),
        lambda p: sc.Masks(LAYER, {}).save(p),
        lambda p: sc.Masks.load(p, LAYER),
    ],
)
def test_what_is_no_path(call, path):
    with pytest.raises(
        StorageError, match=r"^path is .* it is the name of a file or folder"
    ):
        call(path)
