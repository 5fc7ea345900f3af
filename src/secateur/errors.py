"""One base exception and a few named ones. Every message says what is wrong and what would be right."""

from __future__ import annotations

from secateur.text import printable

_LONGEST = 3000  # characters of a message


class SecateurError(Exception):
    """Base of every error that secateur raises on purpose.

    As text it is fit for a terminal and a log, whatever a file named: characters that cannot be printed
    are escaped, and what is very long is cut.
    """

    def __str__(self) -> str:
        text = super().__str__()
        shown = printable(text[: _LONGEST + 1], keep="\n")  # a character may be written out as several
        if len(shown) <= _LONGEST:
            return shown
        return f"{shown[:_LONGEST]}... (cut: a message of {len(text):,} characters)"


class TargetError(SecateurError, ValueError):
    """A rule names no prunable tensor, or names one that cannot be pruned."""


class BudgetError(SecateurError, ValueError):
    """A budget, shrinkage or schedule that is impossible or contradicts another choice."""


class CriterionError(SecateurError, ValueError):
    """A criterion lacks what it needs, or gave scores that cannot be ranked."""


class MaskError(SecateurError, ValueError):
    """Masks that do not fit a model, or were not respected."""


class NonFiniteError(SecateurError, ValueError):
    """A NaN or an infinity where a finite number is needed."""


class DataError(SecateurError, ValueError):
    """A data file is missing, damaged, or not what it should be."""


class ModelError(SecateurError, ValueError):
    """A network cannot be built, found or run on the given inputs."""


class RecipeError(SecateurError, ValueError):
    """A recipe, or a setting given on the command line, is not valid."""


class StorageError(SecateurError, ValueError):
    """A file of secateur's is missing, damaged, or of another kind."""


class WriteError(StorageError):
    """A file cannot be written: the disk is full or read-only, say."""


class MissingExtraError(SecateurError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed; it comes with: pip install 'secateur[{extra}]'")


class SecateurWarning(UserWarning):
    """Something the user should know that is not an error: a layer emptied, say."""
