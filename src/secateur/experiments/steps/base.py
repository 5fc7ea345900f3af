"""What a step of a recipe is: its settings, what it says of itself, and what it does to a trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from secateur.experiments.fields import Strict
from secateur.training.settings import Training


@dataclass(frozen=True)
class Action:
    """One thing that a trial does: it is done as a whole, and then the trial's state is saved.

    Args:
        run: What is done, given the ``secateur.experiments.work.Work`` of the trial.
        timed_as: What its seconds count as, but for those of training, which count as "retrain".
    """

    run: Callable[[Any], None]
    timed_as: str


class Step(Strict):
    """One step of a recipe. Its fields are its settings as the recipe writes them, validated by pydantic.

    A step of your own derives from this class and defines ``run``. The attributes below say what else
    there is to know of a kind, and have defaults. What cannot be is refused by pydantic's validators,
    before anything of a study runs.

    Args:
        timed_as: What its seconds count as, but for those of training.
        removes: Whether the network that it leaves has other shapes than the dense one.
        needs_shapes: Whether it reads the dense network's shapes, so that no step before it ``removes``.
        shares: Whether the weights that it leaves share values, which most steps would undo.
        keeps_shared: Whether shared values are shared still after it.
        ends: Whether nothing may come after it.

    Example:
        >>> import secateur as sc
        >>> class Scale(sc.Step):
        ...     factor: float = 0.5
        ...     def run(self, work, id):
        ...         for weight in work.state.model.parameters():
        ...             weight.data *= self.factor
        >>> Scale(factor=0.1)
        Scale(factor=0.1)
    """

    timed_as: ClassVar[str] = "prune"
    removes: ClassVar[bool] = False
    needs_shapes: ClassVar[bool] = False
    shares: ClassVar[bool] = False
    keeps_shared: ClassVar[bool] = False
    ends: ClassVar[bool] = False

    @property
    def trainings(self) -> Sequence[Training]:
        """Every training that the step runs; of a search that ends when it is there, those of one stage."""
        return [value for value in vars(self).values() if isinstance(value, Training)]

    @property
    def patterns(self) -> Sequence[str]:
        """The patterns of names that have to match something of the network."""
        chosen = (getattr(self, name, None) for name in ("include", "exclude"))
        return [pattern for patterns in chosen for pattern in patterns or ()]

    @property
    def reads_norms(self) -> bool:
        """Whether it can do nothing with a network that has no norm."""
        return False

    def builds(self, options: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what differs from the dense network's ``options`` in the one that takes its place."""
        return None

    def actions(self, id: str) -> Sequence[Action]:
        """Return what the step does, in the parts that a killed trial does not do again."""
        return [Action(partial(self.run, id=id), self.timed_as)]

    def run(self, work: Any, id: str) -> None:
        """Do the step to ``work.state``; ``id`` is its name in the recipe, and so of its notes and curves."""
        raise NotImplementedError
