"""A user's own function as ``package.module:function``."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from secateur.errors import MissingExtraError, SecateurError
from secateur.text import nearest

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def named_function(path: str, error: type[SecateurError]) -> Callable[..., Any]:
    """Import and return the function that ``package.module:function`` names.

    Raises ``error`` naming the part that does not exist.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise error(f"{path!r} is not of the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as failure:  # a user's module can raise anything, or exit as a script
        said = " ".join(f"{type(failure).__name__}: {failure}".split())
        raise error(f"{path}: cannot import {module_name!r}: {said}") from failure
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise error(f"{path}: {module_name} has no function {attribute!r}{nearest(attribute, functions)}")
    return function


def function_of(
    name: Any, known: Mapping[str, str], error: type[SecateurError], kind: str
) -> Callable[..., Any]:
    """Return the function that a name of ``known`` stands for, or else a user's own, by its path.

    Raises ``error`` for a name that is neither, saying of what ``kind`` it is not.
    """
    if name in known:
        return named_function(known[name], error)
    if ":" in str(name):
        return find_factory(name, error)
    raise error(f"unknown {kind} {name!r}{nearest(str(name), known)} (your own: package.module:function)")


def check_options(
    name: str,
    function: Callable[..., Any],
    options: Iterable[str],
    error: type[SecateurError],
    given: Iterable[str] = (),
) -> None:
    """Raise ``error`` for an option that is no argument of a function, and for an argument that has to be one
    and is not; those ``given`` besides are none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature: let the call itself complain
        return
    own = {p.name: p for p in parameters if p.name not in given and p.kind not in _VARIABLE}
    for option in options:
        if option not in own and all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            raise error(f"{name} has no option {option!r}{nearest(option, own)}")
    missing = [p.name for p in own.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise error(f"{name} needs the option {missing[0]!r}")


def made_by(
    name: str, make: Callable[..., Any], options: Mapping[str, Any], error: type[SecateurError]
) -> Any:
    """Return what a factory makes with its options; whatever a user's own code raises, ``error`` names it."""
    check_options(name, make, options, error)
    try:
        return make(**options)
    except SecateurError:
        raise
    except Exception as raised:
        raise error(f"{name}: its factory failed: {type(raised).__name__}: {raised}") from raised


def need(module: str, package: str | None = None, *, extra: str = "lab") -> Any:
    """Import ``module``; raise MissingExtraError naming ``package`` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package or module, extra) from error


def find_factory(path: str, error: type[SecateurError]) -> Callable[..., Any]:
    """Return a user's own function, as ``named_function`` does.

    A module in the current folder is found too, as ``python -m`` finds it, also one that the function
    imports when it is called. ``sys.path`` stays as it was. Raises ``error`` as ``named_function`` does.
    """
    with _importing([os.getcwd(), *sys.path]):
        function = named_function(path, error)
        return from_places(function, list(sys.path))  # with those that the module itself added


def from_places(function: Callable[..., Any], places: Sequence[str]) -> Callable[..., Any]:
    """Return a function that finds what it imports while it runs in ``places``."""

    @functools.wraps(function, updated=())
    def called(*args: Any, **kwargs: Any) -> Any:
        with _importing(places):
            return function(*args, **kwargs)

    return called


@contextmanager
def _importing(places: Sequence[str]) -> Iterator[None]:
    """Import from ``places`` in here, whatever the code that runs makes of ``sys.path``."""
    before, entries = sys.path, list(sys.path)
    sys.path = list(places)
    try:
        yield
    finally:
        sys.path = before
        sys.path[:] = entries
