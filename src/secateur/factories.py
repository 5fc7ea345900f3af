"""A user's own function as ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from secateur.errors import SecateurError, nearest


def find_factory(path: str, error: type[SecateurError]) -> Callable[..., Any]:
    """Import and return the function that ``package.module:function`` names.

    A module in the current folder is found too, as ``python -m`` finds it. Raises ``error`` naming
    the part that does not exist.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise error(f"{path!r} is not of the form package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as failure:  # a user's module can raise anything, or exit as a script
        said = " ".join(f"{type(failure).__name__}: {failure}".split())
        raise error(f"{path}: cannot import {module_name!r}: {said}") from failure
    if not callable(getattr(module, attribute, None)):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise error(f"{path}: {module_name} has no function {attribute!r}{nearest(attribute, functions)}")
    return getattr(module, attribute)
