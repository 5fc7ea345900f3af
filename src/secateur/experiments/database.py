"""The database of a queue: opened, shared, and waited for where it goes away."""

from __future__ import annotations

import functools
import logging
import os
import re
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import Engine, event
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from secateur.errors import RecipeError, StorageError
from secateur.text import first_line

_LONGEST_WAIT = 30.0  # seconds between two tries
_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED")  # what SQLite says of another's turn; the rest lasts
_log = logging.getLogger(__name__)


class Unreachable(StorageError):
    """The database did not answer for as long as it is waited for."""


def _seconds(name: str, default: int) -> int:
    """Return a number of seconds that the environment may set: ``SECATEUR_HEARTBEAT``, between two signs of
    life of a trial; ``SECATEUR_GRACE``, without one until it is another's; ``SECATEUR_PATIENCE``, for which a
    database that went away is waited for."""
    text = os.environ.get(name, str(default))
    if re.fullmatch("[1-9][0-9]{0,8}", text) is None:
        raise RecipeError(f"{name}={text[:40]}: it is a number of seconds, from 1")
    return int(text)


def heartbeat_seconds() -> int:
    return _seconds("SECATEUR_HEARTBEAT", 10)


def connect(url: str) -> RDBStorage:
    """Return Optuna's storage at an SQLAlchemy URL; every call of it waits for a database that went away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        backend = RDBStorage(
            url,
            _engine_settings(url),
            heartbeat_interval=heartbeat_seconds(),
            grace_period=_seconds("SECATEUR_GRACE", 30),
        )
    if url.startswith("sqlite"):
        _take_turns(backend.engine)
    _be_patient(backend)
    return backend


def _engine_settings(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {"pool_pre_ping": True}


def _take_turns(engine: Engine) -> None:
    """Let every SQLite transaction lock the file when it begins: SQLite knows no row locks, and two
    processes that both read a trial as waiting would both take it."""

    @event.listens_for(engine, "connect")
    def no_implicit_begin(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections opened before these rules


def _be_patient(backend: RDBStorage) -> None:
    """Let every call of a storage wait for a database that went away."""
    url = backend.engine.url
    where = str(url.database) if url.drivername.startswith("sqlite") else url.render_as_string()
    patience = _Patience(where, _seconds("SECATEUR_PATIENCE", 300))
    for name, method in vars(RDBStorage).items():
        if isinstance(method, FunctionType) and not name.startswith("__"):
            setattr(backend, name, patience.around(getattr(backend, name)))


class _Patience:
    """Calls a database again until it answers, at most for ``limit`` seconds; keeps which calls are made
    within another, which is the one to repeat."""

    def __init__(self, where: str, limit: float) -> None:
        self._where, self._limit, self._inside = where, limit, threading.local()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def patient(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "yes", False):
                return call(*args, **kwargs)
            self._inside.yes = True
            try:
                return self._answer(lambda: call(*args, **kwargs))
            finally:
                self._inside.yes = False

        return patient

    def _answer(self, call: Callable[[], Any]) -> Any:
        start, wait = time.monotonic(), 0.5
        while True:
            try:
                return call()
            except (SQLAlchemyError, StorageInternalError) as error:
                self._check(cause(error), time.monotonic() - start, first=wait == 0.5)
            except (ValueError, LookupError) as error:  # what is read is data of anybody's
                raise StorageError(f"{self._where}: is no queue of trials: {first_line(error)}") from error
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _check(self, error: Exception, waited: float, first: bool) -> None:
        """Raise an error unless waiting may help."""
        why = said(error)
        if not _passes(error):
            raise StorageError(
                f"{self._where}: {why}; once that is mended, the same command goes on"
            ) from error
        if waited >= self._limit:
            raise Unreachable(
                f"{self._where}: no answer for {self._limit:.0f} seconds ({why}); the same command goes on"
            ) from error
        if first:
            _log.warning("%s: %s; waiting for up to %.0f seconds", self._where, why, self._limit)


def cause(error: Exception) -> Exception:
    """Return the error of the database that Optuna's stands for."""
    inner = error.__cause__ if isinstance(error, StorageInternalError) else None
    return inner if isinstance(inner, Exception) else error


def said(error: Exception) -> str:
    """Return what the database itself said, in a line."""
    origin = getattr(error, "orig", None)
    return first_line(origin if isinstance(origin, Exception) else error)


def _passes(error: Exception) -> bool:
    """Whether waiting may help: a server may come back, also in the middle of a transaction, a locked file is
    unlocked, a full disk stays full."""
    origin = getattr(error, "orig", None)
    if isinstance(origin, sqlite3.Error):
        return getattr(origin, "sqlite_errorname", "").startswith(_PASSING)
    return isinstance(error, (OperationalError, InterfaceError, PendingRollbackError)) or getattr(
        error, "connection_invalidated", False
    )
