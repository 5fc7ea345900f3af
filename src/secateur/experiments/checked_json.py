"""Kinds of values that files of results hold: each of its kind and in its range, or one line that says what
is wrong and where."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from secateur.errors import StorageError

SCHEMA = 2
_READ = (1, SCHEMA)  # 1: of classification alone, whose score was called accuracy
_LENGTH = 1_000_000  # of a list, and of a text in characters
_DEPTH, _WORD = 32, 4096  # of what a recipe's settings hold, and of a text in them
_SHOWN = 60
_WORDS = {
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "bool_type": "true or false",
    "too_long": f"a list of at most {_LENGTH:,}",
}


def _number(kinds: tuple[type, ...], low: float, high: float) -> Callable[[Any], Any]:
    words = "a whole number" if float not in kinds else "a number"

    def check(value: Any) -> Any:
        if type(value) not in kinds or not low <= value <= high:  # a bool is none, and a NaN fails too
            raise ValueError(f"{words} from {low:g} to {high:g} is right")
        return value

    return check


def text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LENGTH:
        raise ValueError(f"a text of at most {_LENGTH:,} characters is right")
    return value


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{1,64}", value):
        raise ValueError("a hash in hexadecimal digits is right")
    return value


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """Return what a recipe can hold: texts, numbers, lists and objects of them."""
    match value:
        case None | bool():
            return value
        case int() | float():
            return _finite(value)
        case str() if len(value) <= _WORD:
            return value
        case list() | dict() if depth and len(value) <= _LENGTH:
            for part in (*value, *(value.values() if isinstance(value, dict) else ())):
                _plain(part, depth - 1)
            return value
    raise ValueError(f"plain data are right, of at most {_DEPTH} levels and {_WORD} characters a text")


def plain_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object is right")
    return _plain(value)


def options(value: Any) -> dict[str, Any]:
    """Return keyword arguments: their names are pasted into the Python that ``secateur choose`` prints."""
    for name in plain_object(value):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"the option {short(name)} is no name that Python takes")
    return value


def named(value: Any) -> dict[str, Any]:
    if not isinstance(options(value).get("name"), str):
        raise ValueError("an object with a name is right")
    return value


_finite = _number((int, float), -1e300, 1e300)
positive = _number((int, float), 1e-18, 1e18)
Finite = Annotated[Any, AfterValidator(_finite)]
Real = Annotated[Any, AfterValidator(_number((int, float), -1e18, 1e18))]
Positive = Annotated[Any, AfterValidator(positive)]
Share = Annotated[Any, AfterValidator(_number((int, float), 0, 1))]
# A wider control's sparsity is below 0.
Left = Annotated[Any, AfterValidator(_number((int, float), -1e18, 1))]
Count = Annotated[Any, AfterValidator(_number((int,), 0, 2**63))]
Seed = Annotated[Any, AfterValidator(_number((int,), -(2**64), 2**64))]
Text = Annotated[Any, AfterValidator(text)]
Hash = Annotated[Any, AfterValidator(_hash)]
Plain = Annotated[Any, AfterValidator(_plain)]
Object = Annotated[Any, AfterValidator(plain_object)]
Named = Annotated[Any, AfterValidator(named)]
Listed = Field(max_length=_LENGTH)
Texts = Annotated[list[Text], Listed]


class Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())


class ScoreNamed(Model):
    name: Text
    unit: Text = ""
    higher_is_better: bool = True
    example: Text = "example"


def check_schema(value: Any, where: str) -> None:
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is not int or schema not in _READ:
        raise StorageError(f"{where}: not results of schema {SCHEMA} or before, which this version reads")


def checked(kind: type[Model], value: Any, where: str) -> dict[str, Any]:
    try:
        checked = kind.model_validate(value)
    except ValidationError as error:
        raise StorageError(f"{where}: {_said(error)}") from error
    return checked.model_dump(exclude_unset=True, by_alias=True)


def _said(error: ValidationError) -> str:
    """Return the first thing wrong in one line: where it stands, what it is, and what would be right."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) if str(part).isprintable() else short(part) for part in first["loc"]]
    place = ".".join(part[:_SHOWN] for part in parts)
    if first["type"] == "missing":
        return f"lacks {place!r}"
    if first["type"] == "value_error":
        wanted = first["msg"].removeprefix("Value error, ")
    else:
        wanted = f"{_WORDS[first['type']]} is right" if first["type"] in _WORDS else first["msg"]
    return f"{f'{place} is ' if place else 'is '}{short(first['input'])}; {wanted}"


def short(value: Any) -> str:
    """Return a value as an error shows it: never long, and never as what a terminal obeys."""
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)} keys"
    if isinstance(value, int) and value.bit_length() > 128:  # Python writes out no number of 4,301 digits
        return f"a whole number of {value.bit_length()} bits"
    text = ascii(value if not isinstance(value, str) else value[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
