"""YAML with line numbers and limits: plain values alone, and an error points at the line that is wrong."""

from __future__ import annotations

import copy
import math
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from yaml.constructor import SafeConstructor

from secateur.errors import RecipeError
from secateur.text import shown

CHARACTERS = 200_000
VALUES = 20_000
DEPTH = 30
TEXT = 4_000  # characters of one value
LARGEST = 2**63 - 1
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, marks that turn or hide text, ends of lines


class Line(NamedTuple):
    """The ``number`` of the line where a part of a document stands, and its own ``parts``."""

    number: int
    parts: Mapping[Hashable, Line]


@dataclass(frozen=True)
class Located:
    """A parsed YAML document: its ``value``, the lines where its parts stand, and its ``text``."""

    value: Any
    lines: Mapping[Hashable, Line]
    name: str
    text: str = ""

    def where(self, path: Sequence[Hashable]) -> str:
        """Return "file line 7" for the longest known prefix of ``path``."""
        number, parts = 0, self.lines
        for key in path:
            if key not in parts:
                break
            number, parts = parts[key]
        return f"{self.name} line {number}" if number else self.name


def read_yaml(path: Path) -> Located:
    """Read a file as ``parse_yaml`` reads its text."""
    name = shown(path)
    try:
        if path.exists() and not path.is_file():
            raise RecipeError(f"{name}: is not a file")
        with path.open("rb") as file:
            data = file.read(CHARACTERS + 1)
        _check_length(data, name)
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{name}: no such file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path.name} line {line}: is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{name}: cannot be read: {error}") from error
    return parse_yaml(text, path.name)


def parse_yaml(text: str, name: str) -> Located:
    """Parse one document of plain values: text, finite numbers, true and false, null, lists, and mappings
    by text. An alias is a copy of what it names.

    Raises RecipeError naming the line of anything else: a tag, a date, a merge key, an unprintable character,
    a key that stands twice, an anchor within itself, and what is too long, too large or too deep.
    """
    _check_length(text, name)
    builder = _Builder(name)
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        builder.line = number
        if wrong := _unprintable(line.replace("\t", " ")):
            builder.refuse(wrong)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        builder.line = mark.line + 1 if mark else builder.line
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        builder.refuse(f"not valid YAML: {problem}")
    document = builder.open[0]
    if not document.value:
        return Located(None, {}, name, text)
    return Located(document.value[0], document.parts[0].parts, name, text)


def plain_copy(value: Any, where: str) -> Any:
    """Return a copy of a setting from Python, which may hold what a file could. Raises RecipeError."""
    left = [VALUES]

    def checked(value: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > DEPTH or left[0] < 0:
            raise RecipeError(f"{where}: holds more than {VALUES} values, or nests deeper than {DEPTH}")
        if isinstance(value, (list, tuple)):
            return [checked(part, depth + 1) for part in value]
        if isinstance(value, Mapping):
            return {checked_key(key): checked(part, depth + 1) for key, part in value.items()}
        wrong = _complaint(value)
        if wrong:
            raise RecipeError(f"{where}: {wrong}")
        return value

    def checked_key(key: Any) -> str:
        wrong = _complaint(key) if isinstance(key, str) else "is no text"
        if wrong:
            raise RecipeError(f"{where}: the key {shown(key)}: {wrong}")
        return key

    return checked(value, 0)


def _check_length(text: str | bytes, name: str) -> None:
    if len(text) > CHARACTERS:
        raise RecipeError(f"{name}: is longer than {CHARACTERS:,} characters")


def _unprintable(text: str) -> str:
    if text.isprintable():
        return ""
    bad = next((c for c in text if unicodedata.category(c) in _UNPRINTABLE), "")
    return bad and f"{shown(text)} has an unprintable character, U+{ord(bad):04X}"


def _complaint(value: Any) -> str:
    """Return what is wrong with one plain value; nothing where it is right."""
    if isinstance(value, str):
        if len(value) > TEXT:
            return f"a text of {len(value):,} characters; {TEXT:,} at most"
        return _unprintable(value)
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        return "a whole number with more than 63 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if value is None or isinstance(value, (bool, int, float)):
        return ""
    return f"{shown(value)} is not a plain value, like a number, a text, a list or a mapping"


@dataclass
class _Node:
    """A value and the lines of its parts, how many values it is in all, and how deep it nests. ``key``: in a
    mapping that is being read, the key whose value comes next, and its line."""

    value: Any
    parts: dict[Hashable, Line] = field(default_factory=dict)
    size: int = 1
    height: int = 0
    anchor: str | None = None
    key: tuple[str, int] | None = None


class _Builder:
    """Makes a document of the parser's events. Its state: the ``line`` it is at, the lists and mappings that
    are ``open`` (the first holds the document), how many values there are, and what is anchored (None until
    it is complete)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.line = 1
        self.count = 0
        self.open = [_Node([])]
        self.anchored: dict[str, _Node | None] = {}

    def refuse(self, problem: str) -> NoReturn:
        raise RecipeError(f"{self.name} line {self.line}: {problem}".lstrip())

    def check(self, value: Any) -> Any:
        if wrong := _complaint(value):
            self.refuse(wrong)
        return value

    def take(self, event: Any) -> None:
        self.line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent() if self.open[0].value:
                self.refuse("a second document begins; one is read")
            case yaml.AliasEvent():
                self._repeat(event.anchor)
            case yaml.ScalarEvent():
                self._begin(event, _Node(self._scalar(event)))
            case yaml.SequenceStartEvent():
                self._begin(event, _Node([]))
            case yaml.MappingStartEvent():
                self._begin(event, _Node({}))
            case yaml.CollectionEndEvent():
                self._end(self.open.pop())

    def _begin(self, event: Any, node: _Node) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.refuse(
                f"not valid YAML: no tag like {shown(tag)} is read; write the value plainly, text in quotes"
            )
        if event.anchor in self.anchored:
            self.refuse(f"the anchor &{shown(event.anchor)} stands twice")
        self._make_room(node)
        self._put(node)
        node.anchor = event.anchor
        if isinstance(node.value, (list, dict)):
            node.size -= self.count  # what is counted until its end makes up for it
            self.open.append(node)
            self.anchored |= {node.anchor: None} if node.anchor else {}
        elif node.anchor:
            self.anchored[node.anchor] = node

    def _end(self, node: _Node) -> None:
        node.size += self.count
        self.open[-1].height = max(self.open[-1].height, node.height + 1)
        if node.anchor:
            self.anchored[node.anchor] = node

    def _repeat(self, anchor: str) -> None:
        if anchor not in self.anchored:
            self.refuse(f"the alias *{shown(anchor)} has no anchor before it")
        node = self.anchored[anchor]
        if node is None:
            self.refuse(f"the alias *{shown(anchor)} stands within its own anchor")
        self._make_room(node)
        self._put(replace(node, value=copy.deepcopy(node.value)))

    def _make_room(self, node: _Node) -> None:
        self.count += node.size
        if self.count > VALUES:
            self.refuse(f"more than {VALUES:,} values, aliases counted as what they repeat")
        if len(self.open) + node.height > DEPTH:
            self.refuse(f"lists and mappings nest more than {DEPTH} deep")
        self.open[-1].height = max(self.open[-1].height, node.height + 1)

    def _put(self, node: _Node) -> None:
        """Put a value, or the key of one, where the innermost open list or mapping goes on."""
        holder = self.open[-1]
        if isinstance(holder.value, list):
            holder.parts[len(holder.value)] = Line(self.line, node.parts)
            holder.value.append(node.value)
        elif holder.key is None:
            if not isinstance(node.value, str):
                self.refuse(f"the key {shown(node.value)} is not text; put it in quotes")
            if node.value in holder.value:
                self.refuse(f"key {shown(node.value)!r} stands twice")
            holder.key = node.value, self.line
        else:
            (key, line), holder.key = holder.key, None
            holder.parts[key] = Line(line, node.parts)
            holder.value[key] = node.value

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        self.check(text)
        if not event.implicit[0]:  # in quotes
            return text
        known = yaml.SafeLoader.yaml_implicit_resolvers
        tag = next((tag for tag, pattern in known.get(text[:1], ()) if pattern.match(text)), None)
        if tag in _REFUSED:
            self.refuse(f"{shown(text)} is {_REFUSED[tag]}")
        if tag not in _MADE:
            return text
        try:
            value = SafeConstructor().construct_object(yaml.ScalarNode(tag, text))
        except ValueError:  # 0x_ looks like a number
            self.refuse(f"{shown(text)} is no number; put it in quotes if it is text")
        return self.check(value)


_REFUSED = {
    "tag:yaml.org,2002:timestamp": "a date; put it in quotes",
    "tag:yaml.org,2002:merge": "a merge key, which is not read; write the keys out",
}
_MADE = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")}
