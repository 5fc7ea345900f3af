"""Lightning's Trainer prunes while it fits: checkpoints, averages, several optimizers, what is shipped."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

import secateur as sc
from integrations import killed
from integrations.tiny_lightning import QUIET, Batches, Manual, Module, pruning
from secateur.errors import BudgetError, MaskError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning.*", "ignore:.*is emptied")


def fit(module: nn.Module, *callbacks: Any, epochs: int = 4, validate: bool = False, **options: Any) -> Any:
    path = options.pop("ckpt_path", None)
    options = {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), **options}
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=list(callbacks), **QUIET, **options)
    trainer.fit(module, Batches(), Batches() if validate else None, ckpt_path=path)
    return trainer


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


# -- checkpoints -----------------------------------------------------------------------------------


def test_killed_and_resumed_as_uninterrupted(tmp_path):
    whole, ours = Module(), pruning()
    fit(whole, ours)
    killed.run("killed_lightning.py", tmp_path)
    last = max(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.partition("step=")[2]))
    assert last.name == "epoch=2-step=18.ckpt"
    resumed, again = Module(), pruning()
    fit(resumed, again, ckpt_path=last)
    assert again.masks == ours.masks
    assert same(resumed, whole)
    assert again.pruning is not None
    assert (again.pruning.level, again.pruning.steps) == (5, 32)
    assert sc.sparsity(resumed) == ours.masks.sparsity == 0.9
    # plain numbers and tensors, which torch opens without running anything
    state = torch.load(last, weights_only=True)["callbacks"]["Pruning"]
    masks = sc.Masks(resumed, {})
    masks.load_state_dict(state["masks"])
    assert {name: n for name, n in state.items() if name not in ("masks", "settings")} == {
        "level": 5, "levels": 5, "steps": 18, "every": 4,
    }  # fmt: skip
    assert masks.sparsity == 0.9


@pytest.mark.parametrize("step", [3, 8, 13, 24])
def test_any_checkpoint_goes_on_exactly(tmp_path, step):
    whole, ours = Module(), pruning()
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1)
    fit(whole, ours, saves)
    (path,) = tmp_path.glob(f"*step={step}.ckpt")
    resumed, again = Module(), pruning()
    fit(resumed, again, ckpt_path=path)
    assert again.masks == ours.masks
    assert same(resumed, whole)


def test_a_checkpoint_of_another_schedule(tmp_path):
    trainer = fit(Module(), pruning(), ModelCheckpoint(tmp_path))
    path = trainer.checkpoint_callback.best_model_path
    with pytest.raises(BudgetError, match="this schedule has 3, one every 4"):
        fit(Module(), pruning(schedule=sc.Cubic(3)), ckpt_path=path, epochs=6)
    with pytest.raises(BudgetError, match=r"saved with criterion Magnitude\(\), and here it is Random"):
        fit(Module(), pruning(criterion=sc.Random()), ckpt_path=path, epochs=6)
    with pytest.raises(MaskError, match="the Trainer has not begun to train"):
        print(pruning().masks)


def test_the_best_model_has_the_zeros_of_its_checkpoint(tmp_path):
    saves = ModelCheckpoint(tmp_path, monitor="loss", save_top_k=1)
    ours = pruning()
    trainer = fit(Module(), ours, saves, validate=True)
    path = saves.best_model_path
    best = Module.load_from_checkpoint(path)
    masks = sc.Masks(best, {})
    masks.load_state_dict(torch.load(path, weights_only=True)["callbacks"]["Pruning"]["masks"])
    masks.check()
    assert sc.sparsity(best) == masks.sparsity > 0.7
    assert trainer.callback_metrics["sparsity"] == pytest.approx(0.9)


# -- averages ------------------------------------------------------------------------------------------

AVERAGES = {
    "stochastic": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
    "all": WeightAveraging,
    "exponential": lambda: EMAWeightAveraging(decay=0.9),
}


@pytest.mark.parametrize("first", [True, False], ids=["pruning first", "pruning last"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights_have_the_zeros(tmp_path, kind, norm, first):
    net, ours, average = Module(norm), pruning(part="net"), AVERAGES[kind]()
    saves = ModelCheckpoint(tmp_path, monitor="loss", save_top_k=-1)
    order = [ours, average] if first else [average, ours]
    fit(net, *order, saves, epochs=5, validate=True)
    plain, alone = Module(norm), pruning(part="net")
    fit(plain, alone, epochs=5)
    assert not same(net, plain)  # it did average
    ours.masks.check()
    assert sc.sparsity(net.net) == ours.masks.sparsity == 0.9
    number = 0
    for path in tmp_path.glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        state = next(state for key, state in saved["callbacks"].items() if key == "Pruning")
        for weights in (saved["state_dict"], saved.get("current_model_state", saved["state_dict"])):
            shipped = Module(norm)
            shipped.load_state_dict(weights)
            masks = sc.Masks(shipped.net, {})
            masks.load_state_dict(state["masks"])
            masks.check()
            number += 1
    assert number >= 10


def test_averages_go_on_exactly(tmp_path):
    whole, ours = Module(), pruning()
    fit(whole, EMAWeightAveraging(decay=0.9), ours, ModelCheckpoint(tmp_path, save_top_k=-1))
    (path,) = tmp_path.glob("epoch=1-*.ckpt")
    resumed, again = Module(), pruning()
    fit(resumed, EMAWeightAveraging(decay=0.9), again, ckpt_path=path)
    assert again.masks == ours.masks
    assert same(resumed, whole)


# -- other ways to train -------------------------------------------------------------------------------


class Watch(lightning.Callback):
    def __init__(self, ours: Any) -> None:
        self.ours, self.norms = ours, []

    def on_train_batch_end(self, *args):
        self.ours.masks.check()

    def on_before_zero_grad(self, trainer, module, optimizer):
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        if gradients and self.ours.pruning is not None:
            self.norms.append(float(sum(g.square().sum() for g in gradients.values())) ** 0.5)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 32),
        ({"gradient_clip_val": 0.01}, 32),
        ({"accumulate_grad_batches": 3}, 12),  # the rest of an epoch is a step too
        ({"precision": "bf16-mixed"}, 32),
    ],
)
def test_options_of_the_trainer(options, steps):
    net, ours = Module(), pruning(every=2)
    fit(net, ours, Watch(ours), **options)
    assert ours.pruning is not None
    assert ours.pruning.steps == steps
    assert sc.sparsity(net) == 0.9


def test_clipping_reckons_without_dead_weights():
    """With half of the weights dead from the start, and clipping to a norm that every step exceeds."""
    seen = []

    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            ours.masks.check()

        def on_before_zero_grad(self, trainer, module, optimizer):
            squares = [p.grad.square().sum() for p in module.parameters() if p.grad is not None]
            if squares:
                assert float(sum(squares)) ** 0.5 == pytest.approx(0.01, rel=1e-3)
                dead = [module.get_parameter(n).grad[~mask] for n, mask in ours.masks.items()]
                assert not any(gradient.any() for gradient in dead)
                seen.append(trainer.global_step)

    ours = pruning(schedule=sc.OneShot())
    fit(Module(), ours, Look(), gradient_clip_val=0.01)
    assert len(seen) > 20


def test_several_optimizers_stepped_by_hand():
    net, ours = Manual(), pruning()
    fit(net, ours, Watch(ours))
    assert ours.pruning is not None
    assert ours.pruning.steps == 32
    assert sc.sparsity(net) == 0.9
    assert not same(net, Manual())


def test_whole_units_of_a_part():
    net = Module(norm=True)
    example = torch.randn(4, 8)
    structure = sc.trace(net.net, example)
    fit(net, pruning(criterion=sc.L2Norm(), budget=sc.Uniform(0.5), part="net", structure=structure))
    small, proof = sc.compact(net.net, example)
    assert small[0].out_features == 8
    assert proof.max_error < 1e-9


@pytest.mark.parametrize("criterion", [sc.Wanda(), sc.Taylor()])
def test_criteria_read_the_loaders_batches(criterion):
    net, ours = Module(), pruning(criterion=criterion, data=Batches())
    fit(net, ours)
    assert sc.sparsity(net) == 0.9


def test_fitted_again_after_an_error():
    class Stops(lightning.Callback):
        def on_train_batch_end(self, *args):
            raise KeyError("a user's own")

    net, ours = Module(), pruning(schedule=sc.OneShot())
    with pytest.raises(KeyError, match="a user's own"):
        fit(net, ours, Stops())
    fit(net, ours)
    ours.masks.check()
    assert sc.sparsity(net) == 0.9
