"""Data sets by name, in memory, split into training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from secateur.errors import DataError
from secateur.factories import check_options, function_of

if TYPE_CHECKING:
    from secateur.data.dataset import Dataset

DATASETS: dict[str, str] = {
    "digits": "secateur.data.scikit:digits",
    "make-classification": "secateur.data.scikit:make_classification",
    "diabetes": "secateur.data.scikit:diabetes",
    "mnist": "secateur.data.mnist:mnist",
    "fashion-mnist": "secateur.data.mnist:fashion_mnist",
    "cifar10": "secateur.data.cifar:cifar10",
    "cifar10-first5": "secateur.data.cifar:cifar10_first5",
    "digits-on-cifar10": "secateur.data.scenes:digits_on_cifar10",
    "tinyshakespeare": "secateur.data.texts:tinyshakespeare",
    "text": "secateur.data.texts:text",
    "image-folder": "secateur.data.folder:image_folder",
    "image-masks": "secateur.data.masks:image_masks",
    "hf-folder": "secateur.data.hugging_face:hf_folder",
    "npz": "secateur.data.npz:npz",
    "csv": "secateur.data.table:csv",
}

_SHARED = ("validation", "seed")  # every loader takes these; the rest are its own options


def load_data(name: str, *, validation: int | float = 0.1, seed: int = 0, **options: Any) -> Dataset:
    """Load the data set ``name`` of ``DATASETS``, or of one's own ``package.module:function``, with its own
    ``options``; that one gives a Dataset, or loaders (train, validation, test) or (train, test), and need not
    take ``validation`` and ``seed``.

    ``validation``: how many training examples (int), or which share of them (float), become the
    validation split. ``seed`` draws that split and nothing else.
    Raises DataError for an unknown name or option, and for data that are missing or damaged;
    MissingExtraError where a package of the extra ``lab`` is needed.
    """
    loader = loader_of(name, options)
    if ":" not in name:
        return loader(validation=validation, seed=seed, **options)
    from secateur.data.own import called, of_loaders

    drawn = {"validation": validation, "seed": seed}
    found = called(loader, drawn, options)
    if type(found).__name__ == "Dataset":
        return found
    return of_loaders(name, found, loader, drawn, options)


def loader_of(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that loads a data set, of which ``options`` are options; it is not called."""
    loader = function_of(name, DATASETS, DataError, "data set")
    check_options(name, loader, options, DataError, _SHARED)
    return loader
