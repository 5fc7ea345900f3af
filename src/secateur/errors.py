"""One base exception and a few named ones. Every message says what is wrong and what would be right."""

from __future__ import annotations

from secateur.text import printable

_LONGEST = 3000  # characters of a message


class SecateurError(Exception):
    """Base of every error that secateur raises on purpose.

    As text it is fit for a terminal and a log, whatever a file named: characters that cannot be printed are
    escaped, and what is very long is cut.

    Example:
        >>> import torch, secateur as sc
        >>> try:
        ...     sc.prune(torch.nn.Linear(4, 2), sc.Magnitude(), sc.Uniform(0.5), include="fc1")
        ... except sc.SecateurError as error:
        ...     print(error)
        include pattern 'fc1' matches nothing; known: weight, bias
    """

    def __str__(self) -> str:
        text = super().__str__()
        shown = printable(text[: _LONGEST + 1], keep="\n")  # a character may be written out as several
        if len(shown) <= _LONGEST:
            return shown
        return f"{shown[:_LONGEST]}... (cut: a message of {len(text):,} characters)"


class TargetError(SecateurError, ValueError):
    """A rule names no prunable tensor, or names one that cannot be pruned.

    Example:
        >>> import torch, secateur as sc
        >>> sc.find_targets(torch.nn.LayerNorm(4))
        Traceback (most recent call last):
        ...
        secateur.errors.TargetError: LayerNorm has no tensor to prune: no weight of a Linear, Conv or ...
    """


class BudgetError(SecateurError, ValueError):
    """A budget, shrinkage or schedule that is impossible or contradicts another choice.

    Example:
        >>> import secateur as sc
        >>> sc.Uniform(90)
        Traceback (most recent call last):
        ...
        secateur.errors.BudgetError: sparsity is 90; it is a share between 0 and 1
    """


class CriterionError(SecateurError, ValueError):
    """A criterion lacks what it needs, or gave scores that cannot be ranked.

    Example:
        >>> import torch, secateur as sc
        >>> sc.prune(torch.nn.Linear(4, 2), sc.L2Norm(), sc.Uniform(0.5))
        Traceback (most recent call last):
        ...
        secateur.errors.CriterionError: L2Norm ranks whole units: pass structure=...
    """


class MaskError(SecateurError, ValueError):
    """Masks that do not fit a model, or were not respected.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 2)
        >>> masks = sc.prune(layer, sc.Magnitude(), sc.Uniform(0.5))
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> masks.check()
        Traceback (most recent call last):
        ...
        secateur.errors.MaskError: weight: 4 masked weights are not zero; ...
    """


class NonFiniteError(SecateurError, ValueError):
    """A NaN or an infinity where a finite number is needed.

    Example:
        >>> import torch, secateur as sc
        >>> layer = torch.nn.Linear(4, 2)
        >>> _ = torch.nn.init.constant_(layer.weight, float("nan"))
        >>> sc.prune(layer, sc.Magnitude(), sc.Uniform(0.5))
        Traceback (most recent call last):
        ...
        secateur.errors.NonFiniteError: weight: its weights or scores hold a NaN or an infinity
    """


class DataError(SecateurError, ValueError):
    """A data file is missing, damaged, or not what it should be.

    Example:
        >>> from secateur.data import load_data
        >>> load_data("mnits")
        Traceback (most recent call last):
        ...
        secateur.errors.DataError: unknown data set 'mnits'; did you mean 'mnist'? ...
    """


class ModelError(SecateurError, ValueError):
    """A network cannot be built, found or run on the given inputs.

    Example:
        >>> import torch, secateur as sc
        >>> sc.trace(torch.nn.Linear(4, 2), torch.ones(1, 5))
        Traceback (most recent call last):
        ...
        secateur.errors.ModelError: Linear does not run on example inputs ((1, 5) of float32): ...
    """


class TaskError(SecateurError, ValueError):
    """A task, or its score, is not known or cannot be what it was asked to be.

    Example:
        >>> import secateur as sc
        >>> sc.build_task("segmentation", loss="focal")
        Traceback (most recent call last):
        ...
        secateur.errors.TaskError: loss is 'focal'; it is one of cross_entropy, dice, both
    """


class RecipeError(SecateurError, ValueError):
    """A recipe, or a setting given on the command line, is not valid.

    Example:
        >>> from secateur.experiments.recipe import load_recipe
        >>> load_recipe("mnits")
        Traceback (most recent call last):
        ...
        secateur.errors.RecipeError: unknown recipe 'mnits'; did you mean 'mnist'? ...
    """


class StepError(SecateurError, RuntimeError):
    """A recipe's step of a user's own failed: the trial is one that failed, and the study goes on.

    Example:
        >>> import secateur as sc
        >>> print(sc.StepError("step 'own:Shrink' failed: KeyError: 'fc1'"))
        step 'own:Shrink' failed: KeyError: 'fc1'
    """


class StorageError(SecateurError, ValueError):
    """A file of secateur's is missing, damaged, or of another kind.

    Example:
        >>> import torch, secateur as sc
        >>> sc.load(torch.nn.Linear(4, 2), "nowhere.safetensors")
        Traceback (most recent call last):
        ...
        secateur.errors.StorageError: nowhere.safetensors: no such file
    """


class WriteError(StorageError):
    """A file cannot be written: the disk is full or read-only, say.

    Example:
        >>> import pathlib, torch, secateur as sc
        >>> pathlib.Path("taken").touch()
        >>> sc.save(torch.nn.Linear(4, 2), "taken/layer.safetensors")
        Traceback (most recent call last):
        ...
        secateur.errors.WriteError: taken/layer.safetensors: cannot be written: File exists
    """


class MissingExtraError(SecateurError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: what is missing.
        extra: the extra of secateur that brings it.

    Example:
        >>> import secateur as sc
        >>> print(sc.MissingExtraError("onnx", "onnx"))
        'onnx' is not installed; it comes with: pip install 'secateur[onnx]'
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed; it comes with: pip install 'secateur[{extra}]'")


class SecateurWarning(UserWarning):
    """Something the user should know that is not an error: a layer emptied, say.

    Example:
        >>> import warnings, torch, secateur as sc
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     masks = sc.prune(torch.nn.Linear(4, 2), sc.Magnitude(), sc.Uniform(1.0))
        >>> print(caught[0].category.__name__, caught[0].message)
        SecateurWarning weight is emptied: the layer puts out nothing but its bias
    """
