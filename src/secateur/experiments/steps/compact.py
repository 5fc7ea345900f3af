"""``compact``: dead units removed for real."""

from __future__ import annotations

from typing import ClassVar

from secateur.experiments.steps.base import Step
from secateur.experiments.work import Work
from secateur.structure.compact import compact


class Compact(Step):
    """Dead units are removed for real, and the result is proved equal."""

    timed_as: ClassVar[str] = "compact"
    removes: ClassVar[bool] = True
    keeps_shared: ClassVar[bool] = True

    def run(self, work: Work, id: str) -> None:
        state = work.state
        state.model, proof = compact(state.model, work.example(), masks=state.masks)
        state.masks = proof.masks
        state.structured = state.compacted = True
        state.notes[id] = ["; ".join(repr(proof).splitlines())]
