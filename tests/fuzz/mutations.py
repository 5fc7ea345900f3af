"""Bytes, trees of plain values and JSON texts, each changed a little from a random state."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Chance = random.Random

NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 7, 8, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(
        10**30,
        -(10**400),
        0.0,
        -0.0,
        0.5,
        -1.5,
        1e-320,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
]
TEXTS = [
    *("", " ", "x", "0", "1e-3", "nan", "inf", "1e999", "true", "null", "é", "Größe — 98 %", "x" * 5000),
    *("\x00", "a\nb", "\x1b[31m", "\x7f", "\u202e", "\u2028", "\ud800", "\U0001f600", "[red]x[/red]", "[/]"),
    *(
        "../../x",
        "..",
        "/",
        "/etc/passwd",
        "/dev/zero",
        "~",
        "C:\\x",
        "a/b",
        "%s",
        "{x}",
        "$HOME",
        "__class__",
    ),
    *(
        "</script><script>alert(1)</script>",
        "<!--",
        "'\"`;",
        "__import__('os').system('touch evil')",
        "class",
    ),
    *(
        "torch.float8_e4m3fn",
        "F64",
        "BF16",
        "I64",
        "BOOL",
        "float16",
        "cpu",
        "cuda",
        "meta",
        "digits",
        "magnitude",
    ),
]
NAMES_OF_CODE = [
    "os:system",
    "evil:run",
    "numpy:load",
    "builtins:eval",
    "pickle:loads",
    "evil",
    "subprocess:run",
]
EMPTY: list[Any] = [None, True, False, [], {}, [[]], [None], {"": 0}, {"name": None}, [1, "a", 2.5]]
# What no value of Python's writes: put in as these words, and replaced in the text.
RAW = {
    "@digits@": "7" * 5000,
    "@exponent@": "1E400",
    "@deep@": "[" * 20_000 + "]" * 20_000,
    "@deep objects@": '{"a":' * 5_000 + "0" + "}" * 5_000,
    "@wide@": "[" + "0," * 20_000 + "0]",
    "@minus@": "-",
    "@hex@": "0x10",
    "@bare@": "nul",
    "@twice@": '{"a": 1, "a": 2}',
    "@half a pair@": '"\\ud800"',
}


def nasty(chance: Chance, code: bool = True) -> Any:
    """Return a value that a careless reader does not expect; ``code``: names of functions too."""
    lists = [NUMBERS, NUMBERS, TEXTS, EMPTY, EMPTY, list(RAW)] + ([NAMES_OF_CODE] if code else [])
    return _copied(chance.choice(chance.choice(lists)))


def edited(tree: Any, chance: Chance, code: bool = True) -> Any:
    """Change ``tree`` (dicts and lists) in one to four places, and return it."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        tree = _edited_once(tree, chance, code)
    return tree


def _edited_once(tree: Any, chance: Chance, code: bool) -> Any:
    place = _descend(tree, chance)
    if place is None:
        return nasty(chance, code)
    node, key = place
    value, kind = node[key], chance.randrange(10)
    if kind == 0:
        del node[key]
    elif kind == 1:
        other = f"{key}_" if chance.random() < 0.5 else str(nasty(chance, code))
        if isinstance(node, dict):
            node[other] = node.pop(key)
        else:
            node.insert(key, _copied(value))
    elif kind == 2:
        node[key] = _swapped(value)
    elif kind == 3 and _is_number(value):
        node[key] = value + chance.choice((-1, 1, 0.5, -value, value, 2**31))
    elif kind == 4:
        second = _descend(tree, chance)
        node[key] = _copied(second[0][second[1]]) if second else None
    elif kind == 5 and isinstance(value, (list, dict)) and value:
        node[key] = [_copied(value)] * chance.choice((1, 2, 70)) if chance.random() < 0.5 else type(value)()
    elif kind == 6 and isinstance(value, str) and value:
        at = chance.randrange(len(value))
        node[key] = value[:at] + str(nasty(chance, code))[:40] + value[at + chance.randrange(2) :]
    elif kind == 7 and isinstance(node, dict):
        node[str(nasty(chance, code))] = nasty(chance, code)
    else:
        node[key] = nasty(chance, code)
    return tree


def _descend(tree: Any, chance: Chance) -> tuple[Any, Any] | None:
    """Choose a place: (container, key); rather a shallow one than one of a thousand equal leaves."""
    place, node = None, tree
    while isinstance(node, (dict, list)) and node and (place is None or chance.random() < 0.8):
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        place = (node, key)
        node = node[key]
    return place


def _swapped(value: Any) -> Any:
    """Return the same as another type."""
    if isinstance(value, dict):
        return [[key, inner] for key, inner in value.items()]
    if isinstance(value, list):
        return {str(index): inner for index, inner in enumerate(value)}
    return [value] if isinstance(value, str) else str(value)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def json_text(tree: Any, chance: Chance) -> bytes:
    """Write a tree as JSON, with what the language lacks, and sometimes a key that stands twice."""
    text = _dumped(tree)
    for word, raw in RAW.items():
        if word in text:
            text = text.replace(f'"{word}"', raw).replace(word, raw[:9])
    if chance.random() < 0.05 and ('{"' in text):
        key = text.split('{"')[chance.randrange(1, text.count('{"') + 1)].split('"')[0]
        text = text.replace(f'"{key}":', f'"{key}": 0, "{key}":', 1)
    data = text.encode("utf-8", "surrogatepass")
    return (
        chance.choice((b"\xef\xbb\xbf" + data, text.encode("utf-16", "surrogatepass"), data + b"\0"))
        if (chance.random() < 0.02)
        else data
    )


def _dumped(tree: Any) -> str:
    try:
        return json.dumps(tree, ensure_ascii=False)
    except (ValueError, RecursionError):  # an int of more digits than Python prints
        return json.dumps(str(type(tree)))


def changed(data: bytes, chance: Chance, other: bytes = b"") -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes, also a length field with an extreme."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(_CHANGES)(bytearray(data), chance, other)
    return bytes(data)


def _flips(data: bytearray, chance: Chance, other: bytes) -> bytearray:
    for _ in range(chance.choice((1, 1, 2, 8, 64)) if data else 0):
        data[_position(data, chance)] ^= 1 << chance.randrange(8)
    return data


def _sets(data: bytearray, chance: Chance, other: bytes) -> bytearray:
    for _ in range(chance.choice((1, 1, 2, 4)) if data else 0):
        data[_position(data, chance)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return data


def _lengths(data: bytearray, chance: Chance, other: bytes) -> bytearray:
    form = chance.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    if len(data) >= size:
        most = 2 ** (8 * size) - 1
        value = chance.choice(
            (0, 1, len(data), len(data) - 1, most, most >> 1, (most >> 1) + 1, 1 << 20, 1 << 30)
        )
        at = min(_position(data, chance), len(data) - size)
        data[at : at + size] = struct.pack(form, value & most)
    return data


def _cut(data: bytearray, chance: Chance, other: bytes) -> bytearray:
    return data[: chance.randrange(len(data) + 1)]


def _dropped(data: bytearray, chance: Chance, other: bytes) -> bytearray:
    at = _position(data, chance)
    del data[at : at + chance.choice((1, 2, 8, 100))]
    return data


def _inserted(data: bytearray, chance: Chance, other: bytes) -> bytearray:
    at = _position(data, chance)
    a = chance.randrange(len(other) + 1)
    part = chance.choice(
        (bytes(8), b"\xff" * 4, other[a : a + 64], data[at : at + 64] * chance.choice((1, 50)))
    )
    data[at:at] = part
    return data


_CHANGES: tuple[Callable[[bytearray, Chance, bytes], bytearray], ...]
_CHANGES = (_flips, _flips, _sets, _lengths, _lengths, _cut, _dropped, _inserted)


def _position(data: bytearray, chance: Chance) -> int:
    """Choose a place; half of the time among the first bytes, where headers are."""
    if not data:
        return 0
    return chance.randrange(min(len(data), 64) if chance.random() < 0.5 else len(data))
