"""Which numbers of a configuration must change so that it says the sizes of a network that was made smaller.

Candidates are the integers of the configuration (nested ones and lists too) that are a size which changed, or
keep their ratio to one; numbers it leaves to a default; and sizes that the network's modules keep under a
name that it lacks (``head_dim``, say). A set of them is a solution when a model that is built from it has the
network's tensors; it is taken when that model also gives the network's outputs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.structure.saved_checks import sizes_of

_MOST_BUILDS = 1000
_MOST_SOLUTIONS = 40
Path = tuple[Any, ...]
Shapes = dict[str, tuple[int, ...]]
Kept = list[tuple[str, int]]


@dataclass(frozen=True)
class Setting:
    """A new value at one place of a configuration, as a dict."""

    path: Path
    old: Any
    new: Any

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))


Settings = tuple[Setting, ...]


@dataclass
class Search:
    """Builds models from configurations, on no device and each once: it keeps what it found."""

    small: Any
    wanted: Shapes = field(init=False)
    plain: dict[str, Any] = field(init=False)
    found: dict[frozenset[Setting], tuple[Shapes, Kept] | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = shapes_of(self.small)
        self.plain = self.small.config.to_dict()
        self.plain.pop("auto_map", None)  # of a plan that it had

    def config(self, settings: Settings) -> Any:
        """Return a configuration as a file would give it, with some numbers changed."""
        plain = copy.deepcopy(self.plain)
        for setting in settings:
            holder: Any = plain
            for part in setting.path[:-1]:
                holder = holder[part]
            holder[setting.path[-1]] = setting.new
        config = type(self.small.config).from_dict(plain)
        config._attn_implementation = self.small.config._attn_implementation
        return config

    def built(self, settings: Settings) -> tuple[Shapes, Kept] | None:
        """Return the shapes of the model of a configuration and what its modules keep; None where it can be
        none."""
        key = frozenset(settings)
        if key not in self.found:
            try:
                with torch.device("meta"):
                    model = type(self.small)(self.config(settings))
                self.found[key] = shapes_of(model), list(_kept_in(model))
            except Exception:  # whatever a class says to numbers that do not go together
                self.found[key] = None
        return self.found[key]

    def wrong(self, settings: Settings) -> set[str] | None:
        """Return the names of the tensors that are others than the network's."""
        built = self.built(settings)
        if built is None:
            return None
        shapes, _ = built
        return {name for name in shapes.keys() | self.wanted if shapes.get(name) != self.wanted.get(name)}


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def find_config(small: Any, accepted: Callable[[Any], bool]) -> tuple[Any, Settings] | None:
    """Return the configuration whose model has the tensors of ``small`` and is ``accepted``, and what is
    changed in it; None where there is none. Few changes come before many."""
    with _silent():
        return _found(Search(small), accepted)


@contextmanager
def _silent() -> Iterator[None]:
    """Let transformers say nothing of numbers that do not go together: most that are tried do not."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _found(search: Search, accepted: Callable[[Any], bool]) -> tuple[Any, Settings] | None:
    wrong = search.wrong(())
    if wrong is None:
        return None
    options = _options(search, wrong)
    telling = [option for option in options if _tells(search, option, wrong)]
    silent = [(option,) for option in telling if search.wrong((option,)) == wrong]
    tried: set[frozenset[Setting]] = set()
    for chosen in itertools.islice(_solutions(search, telling, (), wrong), _MOST_SOLUTIONS):
        for more in ((), *silent):
            settings = (*chosen, *more)
            if frozenset(settings) in tried or len({s.path for s in settings}) < len(settings):
                continue
            tried.add(frozenset(settings))
            if not search.wrong(settings) and accepted(config := search.config(settings)):
                return config, settings
    return None


def _solutions(
    search: Search, options: list[Setting], chosen: Settings, wrong: set[str]
) -> Iterator[Settings]:
    """Yield the sets of settings that make every tensor right, each of which mends the first that is wrong
    then, alone or with another, and spoils none."""
    if not wrong:
        yield chosen
        return
    first = next(name for name in (*search.wanted, *sorted(wrong)) if name in wrong)
    taken = {setting.path for setting in chosen}
    left = [option for option in options if option.path not in taken]
    for extra in (*((option,) for option in left), *itertools.combinations(left, 2)):
        if len(search.found) > _MOST_BUILDS:
            return
        if len({setting.path for setting in extra}) < len(extra):
            continue
        after = search.wrong((*chosen, *extra))
        if after is not None and first not in after and after <= wrong:
            yield from _solutions(search, options, (*chosen, *extra), after)


def _options(search: Search, wrong: set[str]) -> list[Setting]:
    sizes = _changed(search, wrong)
    news = list(dict.fromkeys(new for _, new in sizes))
    found: dict[Setting, None] = {}
    kept = _kept_sizes(search.small)
    for path, value in leaves(search.plain):
        name = path[-1]
        if value is None:
            values = [*kept.get(name, []), *news]
        else:
            values = [new for old, new in sizes if value == old]
            values += [value * new // old for old, new in sizes if value * new % old == 0]
            values += kept.get(name, [])
        found |= dict.fromkeys(Setting(path, value, new) for new in values if new not in (value, 0))
    names = {path[-1] for path, _ in leaves(search.plain)}
    for name, values in kept.items():
        for holder in ((), *(path[:-1] for path, _ in leaves(search.plain) if len(path) > 1)):
            if name not in names and not any(isinstance(part, int) for part in holder):
                found |= dict.fromkeys(Setting((*holder, name), None, value) for value in values)
    return list(found)


def _changed(search: Search, wrong: set[str]) -> list[tuple[int, int]]:
    """Return the sizes (old, new) that differ, of tensors' dims and of lists of modules, the commonest
    first."""
    shapes, _ = search.built(()) or ({}, [])
    counts: dict[tuple[int, int], int] = {}
    for name in wrong:
        old, new = shapes.get(name), search.wanted.get(name)
        for pair in zip(old, new, strict=True) if old and new and len(old) == len(new) else ():
            if pair[0] != pair[1]:
                counts[pair] = counts.get(pair, 0) + 1
    for pair in zip(_lengths(shapes), _lengths(search.wanted), strict=False):
        if pair[0][0] == pair[1][0] and pair[0][1] != pair[1][1]:
            counts[pair[0][1], pair[1][1]] = 1
    return sorted(counts, key=lambda pair: -counts[pair])


def _lengths(shapes: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the lists of modules by name, and how many each holds."""
    found: dict[str, set[str]] = {}
    for name in shapes:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdigit():
                found.setdefault(".".join(parts[:place]), set()).add(part)
    return sorted((name, len(parts)) for name, parts in found.items())


def leaves(plain: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the places of a configuration that hold an integer or nothing."""
    parts = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for name, value in parts:
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 1):
            yield (*path, name), value
        elif isinstance(value, (dict, list, tuple)) and not (path == () and name == "id2label"):
            yield from leaves(value, (*path, name))


def _kept_in(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield what the modules of a network's own classes keep as integers, by name."""
    for module in model.modules():
        if not type(module).__module__.startswith("torch.nn."):
            for name, value in sizes_of(module).items():
                if "." not in name and not name.startswith("_") and isinstance(value, int) and value > 1:
                    yield name, value


def _kept_sizes(small: nn.Module) -> dict[str, list[int]]:
    """Return by name what all modules of a network that keep it agree on."""
    found: dict[str, set[int]] = {}
    for name, value in _kept_in(small):
        found.setdefault(name, set()).add(value)
    return {name: list(values) for name, values in found.items() if len(values) == 1}


def _tells(search: Search, option: Setting, wrong: set[str]) -> bool:
    """Whether a change may be of use, alone or with another: it makes a tensor that is wrong another, or no
    tensor but something in a module, or it is what modules keep."""
    before, after = search.built(()), search.built((option,))
    if before is None or after is None:
        return True
    if after == before:
        return option.old is None and [option.new] == _kept_sizes(search.small).get(option.path[-1])
    changed = {name for name in before[0] if before[0][name] != after[0].get(name)}
    return not changed or bool(changed & wrong) or bool(wrong - (search.wrong((option,)) or wrong))
