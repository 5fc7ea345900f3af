"""Data sets by name, in memory, split into training, validation and test."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from secateur.errors import DataError
from secateur.factories import find_factory, named_function
from secateur.text import nearest

if TYPE_CHECKING:
    from secateur.data.dataset import Dataset

DATASETS: dict[str, str] = {
    "digits": "secateur.data.scikit:digits",
    "make-classification": "secateur.data.scikit:make_classification",
    "mnist": "secateur.data.mnist:mnist",
    "fashion-mnist": "secateur.data.mnist:fashion_mnist",
    "cifar10": "secateur.data.cifar:cifar10",
    "cifar10-first5": "secateur.data.cifar:cifar10_first5",
    "image-folder": "secateur.data.folder:image_folder",
    "npz": "secateur.data.npz:npz",
}

_SHARED = ("validation", "seed")  # every loader takes these; the rest are its own options


def load_data(name: str, *, validation: int | float = 0.1, seed: int = 0, **options: Any) -> Dataset:
    """Load the data set ``name`` of ``DATASETS``, or of one's own ``package.module:function``
    that takes ``validation`` and ``seed``, with its own ``options``.

    ``validation``: how many training examples (int), or which share of them (float), become the
    validation split. ``seed`` draws that split and nothing else.
    Raises DataError for an unknown name or option, and for data that are missing or damaged;
    MissingExtraError where a package of the extra ``lab`` is needed.
    """
    loader = loader_of(name, options)
    dataset = loader(validation=validation, seed=seed, **options)
    if type(dataset).__name__ != "Dataset":
        raise DataError(f"{name} gave a {type(dataset).__name__}; it must be a secateur.data.dataset.Dataset")
    return dataset


def loader_of(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that loads a data set, of which ``options`` are options; it is not called."""
    if name in DATASETS:
        loader = named_function(DATASETS[name], DataError)
    elif ":" in str(name):
        loader = find_factory(name, DataError)
    else:
        known = nearest(str(name), DATASETS)
        raise DataError(f"no data set {name!r}{known} (your own: package.module:function)")
    parameters = inspect.signature(loader).parameters
    known = [option for option in parameters if option not in _SHARED]
    for option in options:
        if option not in known:
            raise DataError(f"{name}: no option {option!r}; its options: {', '.join(known) or 'none'}")
    for option in known:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            raise DataError(f"{name}: option {option!r} is missing; it needs one")
    return loader
