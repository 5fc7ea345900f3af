"""``scratch``: instead of the pruned network a new one, trained from its initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from secateur.experiments.dense import scratch_model
from secateur.experiments.fields import Real, Strict
from secateur.experiments.steps.base import Step
from secateur.experiments.steps.settings import AS_TRAINED, Trained
from secateur.experiments.validation import wrong
from secateur.experiments.work import Work


class OtherOptions(Strict):
    """What differs in the options of a network from those of the study's."""

    model: dict[str, Any] = Field({}, description="The network's options that differ.")
    width: Annotated[Real, Field(gt=0)] | None = Field(
        None, description="What the network's own option `width` is multiplied by."
    )

    def beside(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that differ from those of the study's ``network``."""
        if self.width is None:
            return dict(self.model)
        return self.model | {"width": network.get("width", 1.0) * self.width}


class Scratch(OtherOptions, Step):
    """A new network with other options is trained from its initial weights: the control to beat."""

    timed_as: ClassVar[str] = "retrain"
    removes: ClassVar[bool] = True

    train: Trained = Field(AS_TRAINED, description="Its training, put over `train`.")

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a network that would be the study's own, or would not begin from scratch."""
        if not self.model and self.width is None:
            raise ValueError("lacks 'model', the options that differ, or a 'width'")
        if "weights" in self.model:
            raise wrong("weights: from scratch, a network has none", "model")
        return self

    def builds(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return self.beside(options)

    def run(self, work: Work, id: str) -> None:
        state, options = work.state, self.beside(work.plan.model.model_extra or {})
        state.model, state.options = scratch_model(work.plan, options, work.seed), options
        state.masks = state.pruned = state.requested = None
        work.train(state.model, id, self.train)
