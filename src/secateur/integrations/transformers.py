"""Pruning inside the ``Trainer`` of transformers: one callback, which its checkpoints carry along."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import MaskError, MissingExtraError, StorageError
from secateur.graph.names import canonical_parameters
from secateur.pruning.budgets import Budget
from secateur.pruning.criteria import Criterion
from secateur.pruning.gradual import GradualPruning, during
from secateur.pruning.masks import Masks
from secateur.pruning.schedules import Schedule
from secateur.pruning.structured import UnitBudget
from secateur.pruning.unit_criteria import UnitCriterion
from secateur.storage import load_json, save_json

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers", "transformers") from error

_MASKS, _SCHEDULE = "masks.safetensors", "pruning.json"


class PruningCallback(TrainerCallback):
    """Prune the model of a ``Trainer`` while it trains, as ``secateur.during`` does in a loop of one's own.
    The zeros hold through every step, and each checkpoint keeps the masks and where the schedule stands.

    A Trainer that resumes goes on from its checkpoint. One that loads its best model at the end gets that
    checkpoint's masks too, and a warning where it is one from before the schedule's end.

    Args:
        criterion: as for ``secateur.prune``.
        budget: where the way ends.
        schedule: the amounts on the way there.
        every: how many optimizer steps one of the schedule takes; ``global_step`` of Trainer counts them too.
        resume_from: the checkpoint's folder, where it is not ``checkpoint-N`` in the output folder.
        averaged: see ``secateur.Masks.held``.
        **options: those of ``secateur.prune``: ``data`` for criteria that read it (a list of the Trainer's
            own batches), ``structure`` for whole units.

    Raises:
        BudgetError, CriterionError: when training begins, for choices that do not go together, and for a
            checkpoint of other settings.
        StorageError: for a checkpoint without masks.
        MaskError: for one whose weights are not those of its masks.

    Example:
        >>> import secateur as sc, torch
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> from secateur.integrations.transformers import PruningCallback
        >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, intermediate_size=8, **small))
        >>> texts = [{"input_ids": torch.tensor([i, 1, 2]), "labels": i % 2} for i in range(8)]
        >>> pruning = PruningCallback(sc.Magnitude(), sc.Global(0.9), sc.Cubic(steps=4), every=2)
        >>> quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
        >>> args = TrainingArguments("out", max_steps=8, dataloader_pin_memory=False, **quiet)
        >>> result = Trainer(model, args, train_dataset=texts, callbacks=[pruning]).train()
        {'train_runtime': ...}
        >>> print(f"{pruning.masks.sparsity:.0%} after {pruning.pruning.steps} steps")
        90% after 8 steps
    """

    def __init__(
        self,
        criterion: Criterion | UnitCriterion,
        budget: Budget | UnitBudget,
        schedule: Schedule,
        *,
        every: int,
        resume_from: str | Path | None = None,
        averaged: Any = None,
        **options: Any,
    ) -> None:
        self.arguments = criterion, budget, schedule
        self.options = {"every": every, "averaged": averaged, **options}
        self.resume_from = resume_from
        self.pruning: GradualPruning | None = None
        self._block: AbstractContextManager[GradualPruning] | None = None
        self._hooks: list[Any] = []

    @property
    def masks(self) -> Masks:
        """The masks in force; after training those of the model that the Trainer hands back."""
        if self.pruning is None or self.pruning.masks is None:
            raise MaskError("no masks yet: the Trainer has not begun to train")
        return self.pruning.masks

    # -- what the Trainer calls ----------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self._leave(finished=False)  # training that an exception ended
        saved = self._saved(args, state, model) if state.global_step else None
        self._block = during(optimizer, model, *self.arguments, **self.options, state=saved)
        self.pruning = self._block.__enter__()
        if args.max_grad_norm:  # gradients of dead weights would count in the norm that is clipped
            self._hooks = [
                parameter.register_hook(self._masking(name))
                for name, parameter in canonical_parameters(model).items()
                if parameter.requires_grad
            ]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._block is None or logs is None:
            return
        logs["sparsity"] = self.masks.sparsity
        if state.log_history:
            state.log_history[-1]["sparsity"] = self.masks.sparsity

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save and self.pruning is not None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.masks.save(folder / _MASKS)
            numbers = {name: n for name, n in self.pruning.state_dict().items() if name != "masks"}
            save_json(folder / _SCHEDULE, numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        trained = any(parameter.requires_grad for parameter in self.masks.parameters().values())
        if args.load_best_model_at_end and state.best_model_checkpoint is not None and trained:
            assert self.pruning is not None  # whose weights the model has now
            self.pruning.load_state_dict(_read(Path(state.best_model_checkpoint), model))
        self._leave(finished=True)

    # -- the rest ------------------------------------------------------------------------------

    def _leave(self, finished: bool) -> None:
        for hook in self._hooks:
            hook.remove()
        block, self._block, self._hooks = self._block, None, []
        if block is not None:
            ended = None if finished else KeyboardInterrupt()
            block.__exit__(None if ended is None else type(ended), ended, None)

    def _masking(self, name: str) -> Any:
        def masked(gradient: Tensor) -> Tensor | None:
            mask = self.masks.kept.get(name)
            return None if mask is None or gradient.is_sparse else gradient * mask

        return masked

    def _saved(self, args: Any, state: Any, model: nn.Module) -> Mapping[str, Any]:
        """Return where the pruning stood in the checkpoint that the Trainer resumed from."""
        folder = Path(self.resume_from or Path(args.output_dir) / f"checkpoint-{state.global_step}")
        saved = _read(folder, model)
        masks = Masks(model, {})
        masks.load_state_dict(saved["masks"])
        trained = {name for name, p in masks.parameters().items() if p.requires_grad}
        Masks(model, {name: mask for name, mask in masks.items() if name in trained}).check()
        return saved


def _read(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Return the ``state_dict`` of a pruning that a checkpoint's folder keeps."""
    if not (folder / _SCHEDULE).is_file():
        raise StorageError(
            f"{folder}: holds no {_SCHEDULE}: not a checkpoint that this callback was part of, or one whose "
            "writing was cut short; resume from another, or give resume_from= its folder"
        )
    numbers = load_json(folder / _SCHEDULE)
    masks = Masks.load(folder / _MASKS, model)
    return {**(numbers if isinstance(numbers, dict) else {}), "masks": masks.state_dict()}
