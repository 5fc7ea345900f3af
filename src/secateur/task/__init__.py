"""What a network is trained and judged by: its loss, and a score with its name and unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.errors import TaskError
from secateur.factories import function_of, made_by

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
    task = made_by(name, make, options, TaskError)
    if not isinstance(task, Task):
        raise TaskError(f"{name} gave a {type(task).__name__}; a secateur.Task is right")
    return task
