"""Where data files are: the user's data folder, then the cache, then the pinned download."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from secateur.data.checks import one_line
from secateur.errors import DataError
from secateur.factories import need
from secateur.storage import replacing

T = TypeVar("T")
DATA = "SECATEUR_DATA"
CACHE = "SECATEUR_CACHE"

logger = logging.getLogger(__name__)


def data_folder() -> Path | None:
    """Return the user's data folder ($SECATEUR_DATA), None where there is none.

    Raises DataError where the variable names what is no folder.
    """
    text = os.environ.get(DATA)
    if not text:
        return None
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise DataError(f"${DATA} is {text!r}, which is no folder; name the folder that holds the data")
    return folder


def cache_folder() -> Path:
    """Return the folder for downloads and decoded images: $SECATEUR_CACHE, or the user's cache."""
    text = os.environ.get(CACHE)
    return Path(text).expanduser() if text else Path(need("pooch").os_cache("secateur"))


def local(names: Sequence[str], folder: str) -> Iterator[Path]:
    """Yield the files there are under ``names``: in the data folder first, then in the cache; in
    ``folder`` of each first, then directly inside.
    """
    for root in (data_folder, cache_folder):  # the cache is asked for only where it is needed
        place = root()
        if place is None:
            continue
        for inside in (place / folder, place):
            yield from (path for path in (inside / name for name in names) if path.is_file())


def download(url: str, name: str, folder: str, read: Callable[[Path], T]) -> T:
    """Download ``url`` into ``folder`` of the cache as ``name``, and return what ``read`` makes of it.

    ``read`` checks the file against its pinned hash before it takes its name. Raises DataError where
    the address cannot be reached or gives another file.
    """
    pooch = need("pooch")
    target = cache_folder() / folder / name
    logger.info("downloading %s to %s", url, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
            with _quiet(pooch.get_logger()):
                got = Path(pooch.retrieve(url, known_hash=None, fname=name, path=scratch))
            try:
                value = read(got)
            except DataError as error:
                raise DataError(f"{url} gave another file: {str(error).replace(str(got), name)}") from error
            with replacing(target) as temporary:
                got.replace(temporary)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise missing(name, folder, f"{url} could not be downloaded ({one_line(error)})") from error
    return value


def missing(name: str, folder: str, why: str) -> DataError:
    """Return the error that says where ``name`` was looked for, and where to put it."""
    place = data_folder()
    where = f"${DATA} ({place})" if place else f"${DATA} (not set)"
    cache = cache_folder()
    return DataError(
        f"{name} is neither in {where} nor in the cache ({cache}), and {why}; "
        f"put {name} into {Path(f'${DATA}') / folder} or {cache / folder}"
    )


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch's own lines, printed by default, under what secateur logs."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
