"""``fit``: one training run, resumable to the bit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from secateur.data.dataset import Split, Stream, rows_of
from secateur.errors import ModelError, NonFiniteError, RecipeError
from secateur.methods.network_slimming import slimming
from secateur.pruning.masks import Masks
from secateur.pruning.targets import find_targets
from secateur.running import denormals_flushed, evaluating, reseed, seeded, uncached
from secateur.task.base import Task
from secateur.task.built_in import classification, smoothed
from secateur.training.batches import Batches, count_batches, seed_of, training_batches
from secateur.training.checkpoint import State, load_run, save_run
from secateur.training.evaluate import called, device_of, evaluated, prefers_channels_last
from secateur.training.settings import Training


@dataclass(frozen=True)
class Epoch:
    """One row of a training curve."""

    epoch: int
    lr: float
    train_loss: float
    validation_score: float
    validation_loss: float
    seconds: float


@dataclass
class History:
    """The curve of a run and the epoch (from 1) whose weights were kept; 0: the initial ones."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def seconds(self) -> float:
        return sum(e.seconds for e in self.epochs)

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(e) for e in self.epochs]


def fit(
    model: nn.Module,
    train: Split | Stream | Batches,
    validation: Split | Stream,
    settings: Training,
    *,
    task: Task | None = None,
    seed: int = 0,
    masks: Masks | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    teacher: nn.Module | None = None,
    holding: Callable[[torch.optim.Optimizer], contextlib.AbstractContextManager[Any]] | None = None,
) -> History:
    """Train ``model`` in place, on the device it is on, and leave it with the epoch's weights that
    ``settings.keep`` names: by the loss of ``task`` (default: classification), the best by its score.

    ``masks`` are held throughout. With ``checkpoint`` (a file), the state is written after every
    epoch, and a run that finds one there goes on from it to the same numbers; the file is the
    caller's to remove. The global random state is left as it was. ``teacher``: the network that
    ``settings.distill`` learns from. ``holding``: what runs around the steps of the optimizer that it
    is given, such as ``secateur.StructureSelection.trained``.

    Raises RecipeError where there is nothing to distill from, NonFiniteError where the loss stops being
    a number.
    """
    if settings.epochs == 0:
        return History()
    if settings.distill and teacher is None:
        raise RecipeError("distill is set, and there is no teacher: the dense network has none")
    task = classification() if task is None else task
    trained = smoothed(task, settings.label_smoothing)
    device = device_of(model)
    if prefers_channels_last(model):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = settings.make_optimizer(model)
    history, best, best_score, first = History(), _copy(model), (-1e300, 0.0), 1
    average = AveragedModel(model) if settings.average else None
    mean = None if average is None else average.module
    if checkpoint is not None and checkpoint.exists():
        best, (history, best_score) = load_run(checkpoint, model, optimizer, _progress_of, mean)
        first = len(history.epochs) + 1
    if average is not None:
        average.n_averaged.fill_(max(0, first - settings.averaged_from))
    loop = _Loop(model, optimizer, settings, count_batches(train, settings), trained, masks, teacher)
    held = masks.held(optimizer) if masks is not None else contextlib.nullcontext()
    around = contextlib.nullcontext() if holding is None else holding(optimizer)
    slim = slimming(optimizer, model, settings.slimming) if settings.slimming else contextlib.nullcontext()
    with held, around, slim, denormals_flushed(), uncached(model), seeded(seed):
        for epoch in range(first, settings.epochs + 1):
            if _out_of_patience(history, epoch, settings.patience):
                break
            reseed(seed_of(seed, "dropout", epoch))
            start = time.perf_counter()
            train_loss = loop.epoch(epoch, training_batches(train, settings, seed, epoch, device))
            result = evaluated(model, validation, task)
            seconds = time.perf_counter() - start
            if average is not None and epoch >= settings.averaged_from:
                average.update_parameters(model)
            row = Epoch(epoch, loop.lr, train_loss, result.score, result.loss, seconds)
            history.epochs.append(row)
            if result.rank > best_score:
                best, best_score, history.best_epoch = _copy(model), result.rank, epoch
            if checkpoint is not None:
                progress = {"best_epoch": history.best_epoch, "best_score": best_score}
                save_run(checkpoint, model, optimizer, best, {"epochs": history.as_dicts(), **progress}, mean)
            if on_epoch is not None:
                on_epoch(row)
        last = len(history.epochs)
        if average is not None and average.n_averaged > 0:
            reseed(seed_of(seed, "dropout", last + 1))
            update_bn(training_batches(train, settings, seed, last + 1, device), _Unpacked(average.module))
            model.load_state_dict(average.module.state_dict())
            result = evaluated(model, validation, task)
            if result.rank > best_score:
                best, history.best_epoch = _copy(model), last
    if settings.keep == "best":
        model.load_state_dict(best)
    else:
        history.best_epoch = last
    return history


def _progress_of(saved: Any) -> tuple[History, tuple[float, float]]:
    """Return the history and the best score that were saved; raises ValueError or TypeError for others."""
    history = History([Epoch(**row) for row in saved["epochs"]], saved["best_epoch"])
    score, loss = saved["best_score"]
    numbers = [score, loss, history.best_epoch, *(n for row in history.epochs for n in vars(row).values())]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError("a figure of its epochs is no number")
    if [row.epoch for row in history.epochs] != list(range(1, len(history.epochs) + 1)):
        raise ValueError("its epochs do not count from 1")
    return history, (score, loss)


class _Unpacked(nn.Module):
    """A network that takes its inputs as one: torch averages the norms of such."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Any) -> Any:
        return called(self.network, inputs, False)


@dataclass
class _Loop:
    """What the epochs of one run share: the optimizer, the scaler, and how far it has come."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: Training
    batches: int
    task: Task
    masks: Masks | None
    teacher: nn.Module | None

    def __post_init__(self) -> None:
        model, settings, self.device = self.model, self.settings, device_of(self.model)
        self.lr = settings.lr
        self.channels_last = prefers_channels_last(model)
        self.shrunk = [t.weight for t in find_targets(model).values()] if settings.l1 else []
        low = torch.bfloat16
        if self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            low = torch.float16
        self.autocast = torch.autocast(self.device.type, low, enabled=settings.amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp and low == torch.float16)

    def epoch(self, epoch: int, batches: Any) -> float:
        """Train one epoch and return its mean loss over the examples."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        number = 0
        for index, (inputs, labels) in enumerate(batches):
            self._set_lr(((epoch - 1) * self.batches + index) / (self.settings.epochs * self.batches))
            rows = rows_of(labels)
            total += self._step(inputs, labels) * rows
            number += rows
        mean = float(total) / number
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise NonFiniteError(
                f"the loss became {mean} in epoch {epoch}; a smaller lr than {self.settings.lr} may help"
            )
        return mean

    def _set_lr(self, progress: float) -> None:
        self.lr = self.settings.lr_at(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def _step(self, inputs: Any, labels: Any) -> Tensor:
        with self.autocast:
            outputs = called(self.model, inputs, self.channels_last)
            loss = self.task.loss(outputs, labels)
            if self.teacher is not None and self.settings.distill:
                with evaluating(self.teacher), torch.no_grad():
                    wanted = called(self.teacher, inputs, self.channels_last)
                share = self.settings.distill
                divergence = self.task.divergence(outputs, wanted, self.settings.temperature, labels)
                loss = (1 - share) * loss + share * divergence
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.shrunk or self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
        if self.shrunk:
            self._add_l1()
        if self.settings.clip is not None:
            if self.masks is not None:
                self.masks.mask_grads()  # gradients of dead weights are no part of the norm
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    @torch.no_grad()
    def _add_l1(self) -> None:
        pairs = [(w, w.grad) for w in self.shrunk if w.grad is not None]
        if not pairs:
            raise ModelError("l1 is set, and no target weight has a gradient")
        signs = torch._foreach_sign([w for w, _ in pairs])
        torch._foreach_add_([g for _, g in pairs], signs, alpha=self.settings.l1)


def _copy(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _out_of_patience(history: History, epoch: int, patience: int | None) -> bool:
    return patience is not None and bool(history.epochs) and epoch - 1 - history.best_epoch >= patience
