"""What the files of results hold, checked where they are read: names and figures, never code.

``results.json``, a trial's ``result.json`` and row in ``study.db``, ``deploy.json``: whatever reads one of
them takes what these functions return, which has no key but those below, each of its kind and in its range.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from secateur.errors import StorageError

SCHEMA = 1
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
_WHOLE = ("layers", "curves", "epochs", "config", "classes")  # what every finished trial has
EMPTY = {"requested": {}, "metrics": {}, "layers": [], "curves": {}, "stages": {}, "seconds": {}}
EMPTY |= {"epochs": {}, "notes": []}  # what a failed trial has of them


def _number(kinds: tuple[type, ...], low: float, high: float) -> Callable[[Any], Any]:
    words = "a whole number" if float not in kinds else "a number"

    def check(value: Any) -> Any:
        if type(value) not in kinds or not low <= value <= high:  # a bool is none, and a NaN fails too
            raise ValueError(f"{words} from {low:g} to {high:g} is right")
        return value

    return check


def _text(value: Any) -> str:
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


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object is right")
    return _plain(value)


def _options(value: Any) -> dict[str, Any]:
    """Return keyword arguments: their names are pasted into the Python that ``secateur choose`` prints."""
    for name in _object(value):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"the option {_short(name)} is no name that Python takes")
    return value


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(_options(value).get("name"), str):
        raise ValueError("an object with a name is right")
    return value


def _step(value: Any) -> dict[str, Any]:
    """Return a step of a recipe; what is read of it later is there."""
    cut, scratch = _object(value).get("prune"), value.get("scratch")
    if "prune" in value:
        _named(_object(cut).get("budget"))
        if not isinstance(criterion := value["prune"].get("criterion", ""), str):
            _named(criterion)
    if "scratch" in value:
        _options(_object(scratch).get("model", {}))
        if value["scratch"].get("width") is not None:
            _positive(value["scratch"]["width"])
    return value


def _reference(value: Any) -> dict[str, Any]:
    for name in ("method", "study", "note"):
        _text(_object(value).get(name, ""))
    return value


_finite = _number((int, float), -1e300, 1e300)
_positive = _number((int, float), 1e-18, 1e18)
Finite = Annotated[Any, AfterValidator(_finite)]
Real = Annotated[Any, AfterValidator(_number((int, float), -1e18, 1e18))]
Positive = Annotated[Any, AfterValidator(_positive)]
Share = Annotated[Any, AfterValidator(_number((int, float), 0, 1))]
# A wider control's sparsity is below 0.
Left = Annotated[Any, AfterValidator(_number((int, float), -1e18, 1))]
Count = Annotated[Any, AfterValidator(_number((int,), 0, 2**63))]
Seed = Annotated[Any, AfterValidator(_number((int,), -(2**64), 2**64))]
Text = Annotated[Any, AfterValidator(_text)]
Hash = Annotated[Any, AfterValidator(_hash)]
Plain = Annotated[Any, AfterValidator(_plain)]
Object = Annotated[Any, AfterValidator(_object)]
Named = Annotated[Any, AfterValidator(_named)]
Listed = Field(max_length=_LENGTH)
Texts = Annotated[list[Text], Listed]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())


class _Metrics(_Model):
    accuracy_dense: Share | None = None
    accuracy_dense_validation: Share | None = None
    accuracy_pruned: Share | None = None
    accuracy_pruned_validation: Share | None = None
    accuracy_retrained: Share | None = None
    accuracy_retrained_validation: Share | None = None
    sparsity: Left | None = None
    compression_rate: Positive | None = None
    parameters: Count | None = None
    nonzero: Count | None = None
    bytes_dense: Count | None = None
    bytes_sparse: Count | None = None
    bytes_packed: Count | None = None
    compression_packed: Positive | None = None
    macs: Count | None = None
    macs_effective: Count | None = None
    macs_dense: Count | None = None
    latency_ms: Positive | None = None
    latency_dense_ms: Positive | None = None
    peak_memory_mb: Positive | None = None
    peak_memory_dense_mb: Positive | None = None
    average_memory_mb: Positive | None = None
    average_memory_dense_mb: Positive | None = None


class _Requested(_Model):
    sparsity: Real | None = None


class _Layer(_Model):
    name: Text
    shape: Annotated[list[Count], Listed] = []
    weights: Count = 0
    kept: Count = 0
    sparsity: Left
    requested: Real | None = None


class _Epoch(_Model):
    epoch: Count = 0
    lr: Finite = 0.0
    train_loss: Finite = 0.0
    validation_accuracy: Share
    validation_loss: Finite = 0.0
    seconds: Finite = 0.0


class _Stage(_Model):
    alpha: Share
    rate: Finite = 1.0
    score: Real | None
    loss: Finite | None = None
    kept: bool = True


class _Epochs(_Model):
    dense: Count = 0
    retrain: Count = 0


class _Config(_Model):
    data: Named
    model: Named
    train: Object | None = None
    steps: Annotated[list[Annotated[Any, AfterValidator(_step)]], Listed]


class _Class(_Model):
    name: Text
    number: Count
    dense: Share
    pruned: Share


class _Row(_Model):
    id: Hash
    method: Text
    state: Literal["finished", "failed"]
    point: Object
    seed: Seed
    requested: _Requested = _Requested()
    metrics: _Metrics = _Metrics()
    layers: Annotated[list[_Layer], Listed] = []
    curves: dict[Text, Annotated[list[_Epoch], Listed]] = {}
    stages: dict[Text, Annotated[list[_Stage], Listed]] = {}
    seconds: dict[Text, Real] = {}
    epochs: _Epochs = _Epochs()
    notes: Texts = []
    config: _Config | None = None
    dense: Hash | None = None
    classes: Count = 0
    by_class: Annotated[list[_Class], Listed] = []


class _Results(_Model):
    recipe: Text
    description: Text = ""
    source: Text = ""
    text: Text = ""
    settings: Object = {}
    environment: Object = {}
    trials: Annotated[list[Any], Listed]
    reference: Annotated[list[Annotated[Any, AfterValidator(_reference)]], Listed] = []


class _Timing(_Model):
    median: Real
    low: Real
    high: Real
    runs: Count = 0
    threads: Count = 1


class _Timings(_Model):
    at_1: Annotated[_Timing, Field(alias="1")]
    at_64: Annotated[_Timing, Field(alias="64")]


class _Peak(_Model):
    at_1: Annotated[Count, Field(alias="1")]
    at_64: Annotated[Count, Field(alias="64")]


class _Memory(_Model):
    imports: Count
    peak: _Peak


class _Format(_Model):
    name: Text
    reason: None
    file: Text
    bytes: Count
    load_s: Real
    memory: _Memory | None
    latency: _Timings
    accuracy: Share
    same: Count | None
    note: Text | None = None


class _NotMade(_Model):
    name: Text
    reason: Text


class _Deployed(_Model):
    id: Hash
    method: Text
    point: Object
    seed: Seed


class _Deployment(_Model):
    trial: _Deployed
    environment: Object
    test: Count
    seconds: Real = 0.0
    formats: Annotated[list[Any], Listed]
    notes: Texts = []


def validated_results(value: Any, where: str) -> dict[str, Any]:
    """Return the results of a study as ``results.json`` holds them, checked; ``where`` names the file.

    Raises StorageError for the first thing that is not what a study writes.
    """
    _check_schema(value, where)
    results = _validated(_Results, value, where)
    rows = [validated_row(row, f"{where}: trials.{i}") for i, row in enumerate(results["trials"])]
    for name, number in Counter(row["id"] for row in rows).items():
        if number > 1:
            raise StorageError(f"{where}: the trial {name} stands there twice; once is right")
    usual = {"description": "", "source": "", "text": "", "settings": {}, "environment": {}, "reference": []}
    return {"schema": SCHEMA} | usual | results | {"trials": rows}


def validated_row(value: Any, where: str) -> dict[str, Any]:
    """Return the row of one trial, checked; ``where`` names the file or database that it comes from.

    Keys that this version does not know are left out, and lists that a failed trial does not have are empty.
    Raises StorageError for the first thing that is not what a study writes.
    """
    if isinstance(value, dict) and value.get("state") == "finished":
        needed = ("method", "point", "seed", "metrics", *_WHOLE)
        lacking = [key for key in needed if value.get(key) is None or (key == "metrics" and value[key] == {})]
        if lacking:
            raise StorageError(
                f"{where}: a trial lacks {lacking[0]!r}: written by an early version; run the study again"
            )
    row = _validated(_Row, value, where)
    if row.get("config", ...) is None:  # of a failed trial
        del row["config"]
    return row | {key: empty for key, empty in EMPTY.items() if key not in row}


def validated_deployment(value: Any, where: str) -> dict[str, Any]:
    """Return what ``secateur deploy`` measured, as ``deploy.json`` holds it, checked.

    Raises StorageError, naming the file by ``where``, for the first thing that it would not write.
    """
    _check_schema(value, where)
    found = _validated(_Deployment, value, where)
    formats: list[dict[str, Any]] = []
    for i, each in enumerate(found["formats"]):
        made = isinstance(each, dict) and each.get("reason") is None
        formats.append(_validated(_Format if made else _NotMade, each, f"{where}: formats.{i}"))
    return {"schema": SCHEMA} | found | {"formats": formats, "notes": found.get("notes", [])}


def _check_schema(value: Any, where: str) -> None:
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        raise StorageError(f"{where}: not results of schema {SCHEMA}, which this version reads")


def _validated(kind: type[_Model], value: Any, where: str) -> dict[str, Any]:
    try:
        checked = kind.model_validate(value)
    except ValidationError as error:
        raise StorageError(f"{where}: {_said(error)}") from error
    return checked.model_dump(exclude_unset=True, by_alias=True)


def _said(error: ValidationError) -> str:
    """Return the first thing wrong in one line: where it stands, what it is, and what would be right."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) if str(part).isprintable() else _short(part) for part in first["loc"]]
    place = ".".join(part[:_SHOWN] for part in parts)
    if first["type"] == "missing":
        return f"lacks {place!r}"
    if first["type"] == "value_error":
        wanted = first["msg"].removeprefix("Value error, ")
    else:
        wanted = f"{_WORDS[first['type']]} is right" if first["type"] in _WORDS else first["msg"]
    return f"{f'{place} is ' if place else 'is '}{_short(first['input'])}; {wanted}"


def _short(value: Any) -> str:
    """Return a value as an error shows it: never long, and never as what a terminal obeys."""
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)} keys"
    if isinstance(value, int) and value.bit_length() > 128:  # Python writes out no number of 4,301 digits
        return f"a whole number of {value.bit_length()} bits"
    text = ascii(value if not isinstance(value, str) else value[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
