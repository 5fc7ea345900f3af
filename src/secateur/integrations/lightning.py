"""Pruning inside the ``Trainer`` of Lightning: one callback, which its checkpoints carry along."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from secateur.errors import MaskError, MissingExtraError, ModelError
from secateur.pruning.averages import averages_among
from secateur.pruning.budgets import Budget
from secateur.pruning.criteria import Criterion
from secateur.pruning.gradual import GradualPruning, during
from secateur.pruning.masks import Masks
from secateur.pruning.schedules import Schedule
from secateur.pruning.structured import UnitBudget
from secateur.pruning.unit_criteria import UnitCriterion
from secateur.text import nearest

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtraError("lightning", "lightning") from error


class Pruning(Callback):
    """Prune a module while Lightning's ``Trainer`` fits it, as ``secateur.during`` does in a loop of one's
    own. The zeros hold through every step of every optimizer, and in the averages that other callbacks keep.

    Checkpoints hold the masks, where the schedule stands and the settings, as numbers, tensors and words, so
    that ``fit(ckpt_path=)`` goes on from there. The place among the callbacks makes no difference.

    Args:
        criterion: as for ``secateur.prune``.
        budget: where the way ends.
        schedule: the amounts on the way there.
        every: how many optimizer steps one of the schedule takes; of several optimizers the first's count.
        part: the name of the submodule that is pruned, "net" say; by default the whole module.
        **options: those of ``secateur.prune``: ``data`` for criteria that read it, ``structure`` for whole
            units of the part that it was traced of.

    Raises:
        BudgetError, CriterionError: when training begins, for choices that do not go together, and for a
            checkpoint of other settings.

    Example:
        >>> import lightning, secateur as sc, torch
        >>> from secateur.integrations.lightning import Pruning
        >>> class Module(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(8, 4)
        ...     def training_step(self, batch, number):
        ...         return self.net(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> pruning = Pruning(sc.Magnitude(), sc.Global(0.75), sc.Cubic(steps=4), every=2)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", callbacks=[pruning], **quiet)
        >>> trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 8), batch_size=2))
        >>> print(f"{pruning.masks.sparsity:.0%} after {pruning.pruning.steps} steps")
        75% after 8 steps
    """

    def __init__(
        self,
        criterion: Criterion | UnitCriterion,
        budget: Budget | UnitBudget,
        schedule: Schedule,
        *,
        every: int,
        part: str = "",
        **options: Any,
    ) -> None:
        self.arguments = criterion, budget, schedule
        self.options = {"every": every, **options}
        self.part = part
        self.pruning: GradualPruning | None = None
        self._block: AbstractContextManager[GradualPruning] | None = None
        self._saved: Mapping[str, Any] | None = None

    @property
    def masks(self) -> Masks:
        """The masks in force."""
        if self.pruning is None or self.pruning.masks is None:
            raise MaskError("no masks yet: the Trainer has not begun to train")
        return self.pruning.masks

    # -- what the Trainer calls ----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {} if self.pruning is None else self.pruning.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = dict(pl_module.named_modules())
        if self.part not in parts:
            raise ModelError(
                f"part: {type(pl_module).__name__} has no submodule {self.part!r}{nearest(self.part, parts)}"
            )
        network = parts[self.part]
        averaged = list(averages_among(trainer.callbacks))  # type: ignore[attr-defined]
        saved, self._saved = self._saved, None
        options = {**self.options, "averaged": averaged, "state": saved}
        self._block = during(trainer.optimizers, network, *self.arguments, **options)
        self.pruning = self._block.__enter__()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.masks.mask_grads()  # before clipping, so that dead weights do not count in the norm

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("sparsity", self.masks.sparsity)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave(exception)

    def _leave(self, exception: BaseException | None) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(None if exception is None else type(exception), exception, None)
