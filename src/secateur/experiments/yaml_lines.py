"""YAML with line numbers, so that an error can point at the line that is wrong."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from secateur.errors import RecipeError

Path_ = tuple[Hashable, ...]


class Located:
    """A parsed YAML document: its ``value``, and the line where each of its parts stands."""

    def __init__(self, value: Any, lines: dict[Path_, int], name: str) -> None:
        self.value = value
        self.lines = lines
        self.name = name

    def where(self, path: Sequence[Hashable]) -> str:
        """Return "file line 7" for the longest known prefix of ``path``."""
        path = tuple(path)
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path)
        return self.name if line is None else f"{self.name} line {line}"


def read_yaml(path: Path) -> Located:
    """Parse a YAML file safely; malformed text and duplicate keys are one clear error."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{path.name}{line}: not valid YAML: {problem}") from error
    lines: dict[Path_, int] = {}
    if node is not None:
        _note_lines(node, (), lines, path.name)
    return Located(value, lines, path.name)


def _note_lines(node: yaml.Node, path: Path_, lines: dict[Path_, int], name: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            if here in lines:
                raise RecipeError(f"{name} line {key.start_mark.line + 1}: key {key.value!r} stands twice")
            lines[here] = key.start_mark.line + 1
            _note_lines(value, here, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines, name)
