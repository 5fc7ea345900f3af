"""What a network is trained and judged by: its loss, and a score with its name and unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.errors import SecateurError, TaskError
from secateur.factories import check_options, function_of

if TYPE_CHECKING:
    from secateur.task.base import Task

TASKS: dict[str, str] = {
    name: f"secateur.task.built_in:{name}"
    for name in ("classification", "regression", "segmentation", "language", "detection", "reconstruction")
}


def build_task(name: str, **options: Any) -> Task:
    """Build a task by its name, or take one of your own. Recipes and the command line train and judge by it.

    Args:
        name: one of ``secateur list``, or ``package.module:Task``: a function or class that makes a
            ``secateur.Task``.
        **options: the task's keyword arguments, like ``top_k=5`` of "classification".

    Returns:
        The task.

    Raises:
        TaskError: for an unknown name or option, or what is no task.

    Example:
        >>> import secateur as sc
        >>> task = sc.build_task("segmentation", loss="dice", ignore=255)
        >>> task.score.name, task.score.unit, task.score.higher_is_better
        ('mean IoU', '%', True)
    """
    from secateur.task.base import Task

    make = function_of(name, TASKS, TaskError, "task")
    check_options(name, make, options, TaskError)
    try:
        task = make(**options)
    except SecateurError:
        raise
    except Exception as error:  # a user's own code: whatever it raises, this line names it
        raise TaskError(f"{name}: cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{name} gave a {type(task).__name__}; a secateur.Task is right")
    return task
