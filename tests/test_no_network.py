"""What is no network, no path, or of another type than an argument takes is one clear error everywhere."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur.errors import BudgetError, CriterionError, ModelError, StorageError, TargetError

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
    with pytest.raises(StorageError, match=r"^path is .* it is the name of a file or folder"):
        call(path)


@pytest.mark.parametrize(
    ("call", "error", "wrong"),
    [
        (lambda s: sc.find_targets(LAYER, include=3), TargetError, "include is 3; it is a pattern"),
        (lambda s: sc.find_targets(LAYER, exclude=["a", 3]), TargetError, "exclude is .*; it is a pattern"),
        (
            lambda s: sc.prune(LAYER, sc.L2Norm(), sc.Uniform(0.5), structure=s, include=3),
            TargetError,
            "include is 3; it is a pattern",
        ),
        (lambda s: sc.Block("a", 4), BudgetError, r"Block\('a', 4\)"),
        (lambda s: sc.Random("a"), CriterionError, "seed is 'a'"),
        (lambda s: sc.Cubic("a"), BudgetError, "steps count from 1"),
        (lambda s: sc.Cubic(3, initial="a"), BudgetError, "initial is the sparsity"),
        (
            lambda s: sc.prune(LAYER, sc.L2Norm(), sc.Uniform(0.5), structure=s, min_kept=2.5),
            BudgetError,
            "min_kept 2.5",
        ),
        (
            lambda s: sc.prune(LAYER, sc.L2Norm(), sc.Uniform(0.5), structure=s, round_to="a"),
            BudgetError,
            "round_to is 'a'",
        ),
        (lambda s: sc.trace(LAYER, X, heads=3), ModelError, "heads is 3"),
        (lambda s: sc.trace(LAYER, X, streams="a"), ModelError, "streams is 'a'"),
        (lambda s: sc.compact(LAYER, X, methods=3), ModelError, "methods is 3"),
        (
            lambda s: sc.prune_greedily(LAYER, X, [X], macs=0.5, method="fast"),
            BudgetError,
            "method is 'fast'",
        ),
        (lambda s: sc.prune_greedily(LAYER, X, [X], macs=0.5, fine_tune=3), BudgetError, "fine_tune is 3"),
    ],
)
def test_what_is_of_another_type(call, error, wrong):
    with pytest.raises(error, match=wrong):
        call(sc.trace(LAYER, X))
