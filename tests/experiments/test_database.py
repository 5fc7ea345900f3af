"""A queue's database that goes away is waited for; what does not pass is one line at once."""

import logging
import os
import sqlite3

import pytest
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError, ProgrammingError

from secateur.errors import RecipeError, StorageError
from secateur.experiments import database, queue
from secateur.experiments.database import Unreachable
from secateur.experiments.queue import open_study


@pytest.fixture
def naps(monkeypatch):
    """A clock of its own: waiting takes no time, and is noted."""
    waited = []
    monkeypatch.setattr(database.time, "sleep", waited.append)
    monkeypatch.setattr(database.time, "monotonic", lambda: sum(waited))
    return waited


def failing(times, error):
    left = [times]

    def call():
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "answer"

    return call


GONE = Exception("server closed the connection unexpectedly\n\tThis probably means ...")


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
def test_a_call_is_repeated_with_growing_waits_until_it_is_answered(naps, kind, caplog):
    patience = database._Patience("postgresql://host/db", 300)
    with caplog.at_level(logging.WARNING):
        assert patience.around(failing(9, kind("select", {}, GONE)))() == "answer"
    assert naps == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert [r.getMessage() for r in caplog.records] == [
        "postgresql://host/db: server closed the connection unexpectedly; waiting for up to 300 seconds"
    ]


def test_a_server_that_went_in_the_middle_of_a_transaction_is_waited_for(naps):
    pending = PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")
    assert database._Patience("postgresql://host/db", 300).around(failing(2, pending))() == "answer"
    assert naps == [0.5, 1]


def test_after_the_limit_it_is_one_line(naps):
    patience = database._Patience("postgresql://host/db", 60)
    with pytest.raises(Unreachable) as caught:
        patience.around(failing(99, OperationalError("select", {}, GONE)))()
    assert str(caught.value) == (
        "postgresql://host/db: no answer for 60 seconds (server closed the connection unexpectedly); "
        "the same command goes on"
    )
    assert 60 <= sum(naps) < 95


def test_a_call_within_a_call_is_not_repeated_by_itself(naps):
    patience = database._Patience("x", 300)
    inner = patience.around(failing(1, OperationalError("select", {}, GONE)))
    outer_calls = []

    def outer():
        outer_calls.append(1)
        return inner()

    assert patience.around(outer)() == "answer"
    assert len(outer_calls) == 2


def test_what_does_not_pass_is_an_error_at_once(naps):
    patience = database._Patience("x", 300)
    with pytest.raises(StorageError, match="x: no such table; once that is mended"):
        patience.around(failing(1, ProgrammingError("select", {}, Exception("no such table"))))()
    with pytest.raises(StorageError, match="x: is no queue of trials: Expecting value"):
        patience.around(failing(1, ValueError("Expecting value")))()
    assert naps == []


def test_sqlites_own_errors(naps):
    patience = database._Patience("study.db", 300)
    for name, passes in (("SQLITE_BUSY", True), ("SQLITE_FULL", False), ("SQLITE_READONLY", False)):
        origin = sqlite3.OperationalError(f"said {name}")
        origin.sqlite_errorname = name
        call = patience.around(failing(1, OperationalError("select", {}, origin)))
        if passes:
            assert call() == "answer"
        else:
            with pytest.raises(StorageError, match=f"study.db: said {name}; once that is mended"):
                call()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1.5", "", "²", "9" * 5000])
def test_a_time_that_is_none(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SECATEUR_GRACE", text)
    with pytest.raises(RecipeError, match=r"SECATEUR_GRACE=.*: it is a number of seconds, from 1"):
        open_study("s", None, tmp_path)


@pytest.mark.parametrize(
    "name", ["a?b", "a%b", "a%20b", "a#b", "a b", "a'b", 'a"b', "a{b}", "a:b@c", "číslo"]
)
def test_any_folder_holds_its_database(tmp_path, name):
    study = open_study("s", None, tmp_path / name)
    study.enqueue_trial({}, user_attrs={"id": "one"})
    assert len(open_study("s", None, tmp_path / name).trials) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "study.db").stat().st_size > 1000


def test_a_database_that_is_a_link_or_none_at_all(tmp_path):
    (tmp_path / "aim").write_bytes(b"")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "study.db").symlink_to(tmp_path / "aim")
    with pytest.raises(StorageError, match=r"study.db: is a link, which is not followed"):
        open_study("s", None, tmp_path / "one")
    assert os.stat(tmp_path / "aim").st_size == 0
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "study.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match=r"study.db: cannot be opened: file is not a database"):
        open_study("s", None, tmp_path / "two")


@pytest.mark.parametrize("change", [
    "update trial_user_attributes set value_json = '{'",
    "update trials set state = 'ASLEEP'",
    "update trials set datetime_start = 'today'",
])  # fmt: skip
def test_what_a_database_holds_is_data(tmp_path, change):
    study = open_study("s", None, tmp_path)
    study.enqueue_trial({}, user_attrs={"id": "one"})
    queue._run_one(study, lambda trial: (0.0, 0.0), queue.Lease(study))
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute(change)
    with pytest.raises(StorageError, match=r"study.db: is no queue of trials: |study.db: .*; once that"):
        open_study("s", None, tmp_path).get_trials()
