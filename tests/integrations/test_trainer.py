"""The Trainer of transformers prunes while it trains: its checkpoints, its best model, its options."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

import secateur as sc
from integrations import killed
from integrations.tiny_bert import bert, pruning, sentences, settings
from secateur.errors import BudgetError, MaskError, SecateurWarning, StorageError

pytestmark = pytest.mark.filterwarnings("ignore:.*is emptied")


def trainer(net: nn.Module, folder: Any, *callbacks: Any, **options: Any) -> Trainer:
    compute = options.pop("compute_metrics", None)
    arguments = settings(folder, **options)
    return Trainer(
        net, arguments, train_dataset=sentences(64), eval_dataset=sentences(16, 1), callbacks=list(callbacks),
        compute_metrics=compute,
    )  # fmt: skip


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


def dead(net: nn.Module, masks: sc.Masks) -> bool:
    weights = dict(net.named_parameters())
    return not any(weights[name][~mask].any() for name, mask in masks.items())


# -- checkpoints -----------------------------------------------------------------------------------


def test_killed_and_resumed_as_uninterrupted(tmp_path):
    every_six = {"save_strategy": "steps", "save_steps": 6}
    whole, ours = bert(), pruning()
    trainer(whole, tmp_path / "whole", ours, **every_six).train()
    killed.run("killed_trainer.py", tmp_path / "killed")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"checkpoint-6", "checkpoint-12"}
    resumed, again = bert(), pruning()
    trainer(resumed, tmp_path / "killed", again, **every_six).train(resume_from_checkpoint=True)
    assert again.masks == ours.masks
    assert same(resumed, whole)
    assert ours.masks.sparsity == pytest.approx(0.9, abs=2e-4)
    assert again.pruning is not None
    assert (again.pruning.level, again.pruning.steps) == (5, 24)
    assert sc.sparsity(resumed) == ours.masks.sparsity
    names = ("criterion", "budget", "schedule")
    # what a checkpoint holds is plain: the masks open on their own, and fit the weights beside them
    folder = tmp_path / "killed" / "checkpoint-12"
    assert json.loads((folder / "pruning.json").read_text()) == {
        "level": 4, "levels": 5, "steps": 12, "every": 4,
        "settings": {name: repr(pruning().arguments[at]) for at, name in enumerate(names)},
    }  # fmt: skip
    shipped = type(whole).from_pretrained(folder)
    masks = sc.Masks.load(folder / "masks.safetensors", shipped)
    masks.check()
    assert 0.85 < masks.sparsity < 0.9


def test_a_checkpoint_elsewhere(tmp_path):
    whole, ours = bert(), pruning()
    trainer(whole, tmp_path / "first", ours, save_strategy="steps", save_steps=12).train()
    folder = (tmp_path / "first" / "checkpoint-12").rename(tmp_path / "moved")
    resumed, again = bert(), pruning(resume_from=folder)
    trainer(resumed, tmp_path / "second", again).train(resume_from_checkpoint=str(folder))
    assert same(resumed, whole)


@pytest.mark.parametrize(
    ("change", "callback", "error", "message"),
    [
        (
            lambda f: (f / "pruning.json").unlink(),
            {},
            StorageError,
            "checkpoint-12: holds no pruning.json",
        ),
        (lambda f: (f / "masks.safetensors").unlink(), {}, StorageError, "masks.safetensors: no such file"),
        (lambda f: (f / "pruning.json").write_text("[1]"), {}, StorageError, "not one of during"),
        (lambda f: None, {"schedule": sc.Cubic(7)}, BudgetError, "this schedule has 7, one every 4"),
        (lambda f: None, {"criterion": sc.Random()}, BudgetError, r"saved with criterion Magnitude\(\), and"),
        (
            lambda f: None,
            {"budget": sc.Global(0.8)},
            BudgetError,
            "saved with budget .*0.9.* here it is .*0.8",
        ),
        (
            lambda f: None,
            {"schedule": sc.Iterative(5)},
            BudgetError,
            "saved with schedule Cubic.* is Iterative",
        ),
        (lambda f: None, {"every": 2}, BudgetError, "one every 4 optimizer steps; this .* one every 2"),
        (lambda f: None, {"exclude": "classifier"}, BudgetError, "exclude the default, .* is .'classifier'."),
        (lambda f: None, {"resume_from": "checkpoint-24"}, MaskError, "masked weights are not zero"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, monkeypatch, change, callback, error, message):
    monkeypatch.chdir(tmp_path)
    trainer(bert(), ".", pruning(), save_strategy="steps", save_steps=12).train()
    change(Path("checkpoint-12"))
    with pytest.raises(error, match=message):
        trainer(bert(), ".", pruning(**callback)).train(resume_from_checkpoint="checkpoint-12")


def scores(*values: float) -> Any:
    """Say these scores, one an evaluation, whatever the model does."""
    left = iter(values)
    return lambda predictions: {"score": next(left)}


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_model_has_the_zeros_of_its_checkpoint(tmp_path, best):
    net, ours = bert(), pruning()
    said = scores(*(1.0 if number == best else 0.5 for number in range(3)))
    options = {
        "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 8, "eval_steps": 8,
        "compute_metrics": said, "load_best_model_at_end": True,
        "metric_for_best_model": "score", "save_total_limit": 2,
    }  # fmt: skip
    ending = trainer(net, tmp_path, ours, **options)
    early = pytest.warns(SecateurWarning, match=r"of step 3 of 5") if best == 0 else nullcontext()
    with early:
        ending.train()
    folder = tmp_path / f"checkpoint-{8 * (best + 1)}"
    assert ending.state.best_model_checkpoint == str(folder)
    shipped = type(net).from_pretrained(folder)
    assert same(net, shipped)
    assert dead(net, ours.masks)
    assert ours.masks == sc.Masks.load(folder / "masks.safetensors", net)
    assert sc.sparsity(net) == ours.masks.sparsity
    assert (ours.masks.sparsity > 0.8999) == (best > 0)


# -- options -------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """Looks on at each step: are dead weights zero, and is nothing of their gradients left to clip?"""

    def __init__(self, ours: Any) -> None:
        self.ours, self.steps, self.norms = ours, 0, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        masks = self.ours.masks
        self.norms.append(sum(g.square().sum() for g in gradients.values()).sqrt().item())
        assert not any(gradients[name][~mask].any() for name, mask in masks.items())

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.ours.masks.check()
        assert self.ours.pruning.steps == state.global_step
        assert self.ours.pruning.level == min(5, 1 + state.global_step // 4)
        self.steps += 1


OPTIONS = {
    "clipping": {"max_grad_norm": 0.05},
    "accumulation": {"gradient_accumulation_steps": 3},
    "smoothing": {"label_smoothing_factor": 0.1},
    "fused": {"optim": "adamw_torch_fused"},
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd", "learning_rate": 0.1},
    "rmsprop": {"optim": "rmsprop"},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "plateau": {"lr_scheduler_type": "cosine", "weight_decay": 0.1, "warmup_steps": 4},
    "neftune": {"neftune_noise_alpha": 5.0},
}


QUICK = ("clipping", "accumulation", "adafactor", "checkpointing")


@pytest.mark.parametrize(
    "options",
    [pytest.param(o, id=n, marks=[] if n in QUICK else pytest.mark.slow) for n, o in OPTIONS.items()],
)
def test_zeros_hold_under_options_of_the_trainer(tmp_path, options):
    net, ours = bert(), pruning()
    watch = Watch(ours)
    trainer(net, tmp_path, ours, watch, **options).train()
    assert watch.steps == 24
    assert sc.sparsity(net) == ours.masks.sparsity == pytest.approx(0.9, abs=2e-4)
    assert not same(net, bert())
    if "max_grad_norm" in options:
        assert max(watch.norms) == pytest.approx(0.05, rel=1e-3)  # after clipping, of living weights alone
    assert not any(p._backward_hooks for p in net.parameters())


def test_the_logs_say_the_sparsity(tmp_path):
    ours = pruning()
    training = trainer(bert(), tmp_path, ours)
    training.train()
    said = [entry["sparsity"] for entry in training.state.log_history]
    assert said == sorted(said)
    assert said[0] == pytest.approx(0.7056, abs=1e-4)  # the second of five: 0.9 (1 - 0.6^3)
    assert said[-1] == ours.masks.sparsity


def test_whole_units(tmp_path):
    net = bert()
    example = dict.fromkeys(("input_ids", "attention_mask"), net.dummy_inputs["input_ids"][:1, :6] * 0 + 1)
    structure = sc.trace(net, example)
    ours = pruning(criterion=sc.L2Norm(), budget=sc.Uniform(0.5), structure=structure)
    trainer(net, tmp_path, ours).train()
    small, proof = sc.compact(net, example)
    assert proof.max_error < 1e-9
    assert small.config.intermediate_size in (12, 24)
    assert small.bert.encoder.layer[0].intermediate.dense.out_features == 12
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("criterion", [sc.Wanda(), sc.Taylor()])
def test_criteria_read_batches_of_the_trainer(tmp_path, criterion):
    net = bert()
    training = trainer(net, tmp_path)
    ours = pruning(criterion=criterion, data=list(training.get_eval_dataloader()))
    training.add_callback(ours)
    training.train()
    assert sc.sparsity(net) == pytest.approx(0.9, abs=2e-4)
    by_size = pruning()
    trainer(bert(), tmp_path, by_size).train()
    assert ours.masks != by_size.masks


def test_trained_again(tmp_path):
    """Also after a training that an error ended: nothing of the first holds on."""

    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyError("a user's own")

    net, ours = bert(), pruning(schedule=sc.OneShot())
    first = trainer(net, tmp_path, ours, Stops())
    with pytest.raises(KeyError, match="a user's own"):
        first.train()
    first.remove_callback(Stops)
    first.train()
    with torch.no_grad():
        net.classifier.weight.fill_(1.0)
    first.optimizer.step()
    assert net.classifier.weight.all()  # no hook of either is left
    with pytest.raises(MaskError, match="the Trainer has not begun to train"):
        print(pruning().masks)


# -- adapters ------------------------------------------------------------------------------------------


def adapted(seed: int = 1) -> nn.Module:
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=2, target_modules=["query", "value", "intermediate.dense"], task_type="SEQ_CLS"
    )
    return peft.get_peft_model(bert(), config)


def test_the_base_under_adapters(tmp_path):
    net, ours = adapted(), pruning()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    options = {"save_strategy": "steps", "save_steps": 12}
    trainer(net, tmp_path, ours, **options).train()
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert any("lora_A" in n for n in moved)
    assert ours.masks.sparsity == pytest.approx(0.9, abs=2e-4)
    ours.masks.check()
    again, theirs = adapted(), pruning()
    trainer(again, tmp_path, theirs, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert theirs.masks == ours.masks
    assert same(again, net)
    merged = net.merge_and_unload()  # fills the zeros of what has an adapter, and of nothing else
    masks = ours.masks.bind(merged)
    with pytest.raises(MaskError, match="merged adapter"):
        masks.check()
    alive = {n for n, mask in masks.items() if merged.get_parameter(n)[~mask].any()}
    assert alive
    assert all(n.endswith(("query.weight", "value.weight", "intermediate.dense.weight")) for n in alive)
    assert sc.sparsity(masks.apply().model) == pytest.approx(0.9, abs=2e-4)
