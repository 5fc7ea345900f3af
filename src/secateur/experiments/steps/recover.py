"""``recover``: the pruned network taught by the dense one, all of it or through low-rank adapters."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch.optim import AdamW

from secateur.experiments.fields import Count, Real
from secateur.experiments.steps.base import Step
from secateur.experiments.work import Work
from secateur.methods.distillation import distill
from secateur.running import seeded
from secateur.training.batches import seed_of


class Recover(Step):
    """The network is trained towards what the dense one gives, without labels; zeros are held."""

    timed_as: ClassVar[str] = "retrain"

    rank: Count | None = Field(
        8, description="Of low-rank adapters that keep the masks and are merged; null trains all weights."
    )
    target: Literal["divergence", "difference"] = Field(
        "divergence",
        description="What of the outputs comes nearer: by the task's divergence, or by squared difference.",
    )
    examples: Count = Field(1024, description="Training examples that are read.")
    epochs: Count = Field(1, description="How often they are read.")
    batch_size: Count = Field(32, description="Of so many at a time.")
    lr: Annotated[Real, Field(gt=0)] = Field(1e-3, description="The learning rate, of AdamW.")

    def run(self, work: Work, id: str) -> None:
        state, seed = work.state, seed_of(work.seed, id)
        taught: dict[str, Any] = (
            {"outputs": 1.0} if self.target == "divergence" else {"outputs": 0.0, "features": [""]}
        )
        with seeded(seed):
            found = distill(
                state.model,
                work.dense,
                list(work.data.train.drawn(self.examples, seed).batches(self.batch_size)),
                task=work.task,
                epochs=self.epochs,
                optimizer=partial(AdamW, lr=self.lr),
                masks=state.masks,
                rank=self.rank,
                **taught,
            )
        state.notes[id] = [repr(found)]
        state.retrained = True
