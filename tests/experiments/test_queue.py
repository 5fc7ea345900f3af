"""Studies that are killed, shared and searched: whole processes, as a user runs them."""

import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from numbers_of import numbers
from recipes import TINY

from secateur.errors import RecipeError, StorageError
from secateur.experiments import queue
from secateur.experiments.queue import finished_rows, open_study, release_dead
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import run_study

TWELVE = TINY.replace("[0.5, 0.8]", "[0.3, 0.5, 0.7, 0.8, 0.9, 0.95]")


def command(recipe: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "secateur", "run", str(recipe), "--out", str(out), "--quiet", *options]


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """The recipe of twelve trials, and its results from one process without interruption."""
    folder = tmp_path_factory.mktemp("twelve")
    path = folder / "tiny.yaml"
    path.write_text(TWELVE)
    return path, run_study(load_recipe(str(path)), folder / "whole" / "tiny")


def completed(out: Path, storage: str | None = None) -> Counter:
    rows = finished_rows(open_study("tiny", storage, out))
    return Counter(row["id"] for row in rows)


def kill_and_rerun(path: Path, out: Path, kills: int, seed: int) -> dict:
    draw = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(command(path, out), start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(1.5, 6.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(path, out), check=True, timeout=300)
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_changes_nothing(twelve, tmp_path, kills):
    path, whole = twelve
    results = kill_and_rerun(path, tmp_path / "tiny", kills, seed=kills)
    assert numbers(results) == numbers(whole)
    assert set(completed(tmp_path / "tiny").values()) == {1}


def test_two_workers_give_the_numbers_of_one(twelve, tmp_path):
    path, whole = twelve
    subprocess.run(command(path, tmp_path / "tiny", "--workers", "2"), check=True, timeout=300)
    results = json.loads((tmp_path / "tiny" / "results.json").read_text())
    assert numbers(results) == numbers(whole)
    assert set(completed(tmp_path / "tiny").values()) == {1}
    assert len(list((tmp_path / "tiny" / "dense").glob("*.json"))) == 2, (
        "each seed's dense network was trained once"
    )


def test_an_error_in_a_worker_is_the_commands_error(twelve, tmp_path):
    path, _ = twelve
    done = subprocess.run(
        command(path, tmp_path / "tiny", "--workers", "2", "--set", "data.validation=5000"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    wrong = "digits: validation=5000 takes 5000 of 1437 training examples; 1 to 1436 are right"
    assert done.stderr == f"error: {wrong}\n"


@dataclass(frozen=True)
class Server:
    url: str
    command: list
    options: str
    log: Path

    def start(self):
        self.control("-o", self.options, "-l", self.log, "-w", "start")

    def control(self, *arguments):
        subprocess.run([*self.command, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def postgresql():
    """A PostgreSQL server of this test's own, on a free port of this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "-y", "-qq", "postgresql"], capture_output=True, check=False)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("needs a PostgreSQL server (initdb under /usr/lib/postgresql) and could not install one")
    folder = Path(tempfile.mkdtemp(prefix="secateur-postgresql-"))  # pytest's own are closed to other users
    binaries, data = found[-1].parent, folder / "data"
    as_user = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    trust = ["--auth=trust", "--username=secateur", "--no-sync"]
    subprocess.run([*as_user, binaries / "initdb", "-D", data, *trust], check=True, capture_output=True)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    url = f"postgresql+psycopg://secateur@127.0.0.1:{port}/postgres"
    server = Server(url, [*as_user, binaries / "pg_ctl", "-D", data], options, folder / "log")
    server.start()
    yield server
    server.control("-m", "immediate", "stop")
    shutil.rmtree(folder)


def test_two_machines_join_one_study(twelve, tmp_path, postgresql):
    """Two processes with folders of their own share nothing but the database, as two machines do."""
    path, whole = twelve
    outs = [tmp_path / name / "tiny" for name in ("one", "two")]
    processes = [subprocess.Popen(command(path, out, "--storage", postgresql.url)) for out in outs]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for out in outs:
        assert numbers(json.loads((out / "results.json").read_text())) == numbers(whole)
    assert set(completed(tmp_path, postgresql.url).values()) == {1}
    ran = [len(list((out / "trials").glob("*/result.json"))) for out in outs]
    assert sum(ran) == 12
    assert min(ran) > 0, "both took a share"


def test_a_database_that_cannot_be_opened(tmp_path):
    with pytest.raises(RecipeError, match=r"--storage nonsense://x: cannot be opened: "):
        open_study("tiny", "nonsense://x", tmp_path)


def test_a_dead_process_loses_its_lease_at_once_and_a_living_one_does_not(tmp_path):
    study = open_study("s", None, tmp_path)
    child = subprocess.Popen(["sleep", "60"])
    ticks = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    with warnings.catch_warnings(action="ignore"):
        trial = study.ask()
    trial.set_user_attr("owner", f"{socket.gethostname()}/{child.pid}/{ticks}")
    release_dead(study, {})
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING
    child.kill()
    child.wait()
    release_dead(study, {})
    assert study.trials[0].state == optuna.trial.TrialState.FAIL


def test_a_process_killed_before_it_signed_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "_SIGNED_WITHIN", 0.2)
    study = open_study("s", None, tmp_path)
    study.enqueue_trial({}, user_attrs={"id": "job"})
    with warnings.catch_warnings(action="ignore"):
        study.ask()  # taken, and then nothing: no owner, no heartbeat
    ran = []

    def run(job):
        ran.append(job)
        return {"id": job, "metrics": {}}

    queue.run_jobs(study, {"job": None}, run)
    assert ran == ["job"]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


SLEPT = """\
name: slept
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 16}
train: {epochs: 1, batch_size: 64}
measure: []
steps:
  - prune: {budget: {name: global, sparsity: 0.5}}
  - retrain: {epochs: 150}
seeds: [0]
"""


def wait_for(condition, seconds=120.0):
    """Return what ``condition`` returns once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_a_process_that_slept_leaves_its_trial_to_the_one_that_took_it(tmp_path):
    path, out = tmp_path / "slept.yaml", tmp_path / "out"
    path.write_text(SLEPT)
    subprocess.run(command(path, tmp_path / "whole"), check=True, timeout=300)
    quick = {**os.environ, "SECATEUR_HEARTBEAT": "1", "SECATEUR_GRACE": "2"}

    def begin():
        return subprocess.Popen(command(path, out), env=quick, stderr=subprocess.PIPE, text=True)

    def under_way():
        trained = list(out.glob("trials/*/training-*.json"))
        return trained and (trained[0].parent / "owner").read_text()

    sleeper = begin()
    owner = wait_for(under_way)
    sleeper.send_signal(signal.SIGSTOP)
    other = begin()
    new = wait_for(lambda: (found := under_way()) != owner and found)
    sleeper.send_signal(signal.SIGCONT)
    said, spoken = sleeper.communicate(timeout=300)[1], other.communicate(timeout=300)[1]
    assert new != owner
    assert (sleeper.returncode, other.returncode) == (0, 0)
    assert len(said.splitlines()) == 1
    assert re.search("another process has taken this trial|is another's now", said)
    assert spoken == ""
    files = [sorted(p.name for p in folder.glob("trials/*/*")) for folder in (out, tmp_path / "whole")]
    assert files[0] == files[1]
    results = [json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert numbers(results[0]) == numbers(results[1])
    states = [trial.state.name for trial in open_study("slept", None, out).trials]
    assert sorted(states) == ["COMPLETE", "FAIL"]


def test_a_lease_that_another_process_ended_is_noticed(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SECATEUR_HEARTBEAT", "1")
    study = open_study("s", None, tmp_path)
    lease, ran = queue.Lease(study), []

    def run(job):
        if not ran:
            ran.append("slept")
            queue._release(study._storage, study.trials[0]._trial_id)  # as another process does
            wait_for(lease._lost.is_set)
            lease.check()
        ran.append(job)
        return {"id": job, "metrics": {}}

    with caplog.at_level(logging.WARNING):
        queue.run_jobs(study, {"job": None}, run, lease)
    assert ran == ["slept", "job"]
    assert [record.getMessage() for record in caplog.records] == [queue._TAKEN]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


def test_a_trial_that_another_process_failed_is_not_told(tmp_path, caplog):
    study = open_study("s", None, tmp_path)
    times = []

    def run(job):
        times.append(job)
        if len(times) == 1:
            queue._release(study._storage, study.trials[0]._trial_id)
        return {"id": job, "metrics": {}}

    with caplog.at_level(logging.WARNING):
        queue.run_jobs(study, {"job": None}, run)
    assert times == ["job", "job"]
    assert [record.getMessage() for record in caplog.records] == [queue._TAKEN]
    assert finished_rows(study) == [{"id": "job", "metrics": {}}]


def test_a_folder_of_two_queues_is_one_line_and_no_endless_change(tmp_path):
    study = open_study("s", None, tmp_path)

    def run(job):
        raise queue.Lost("the folder: another process has taken this trial")

    with pytest.raises(StorageError, match="it is not of this queue: give both the same --storage"):
        queue.run_jobs(study, {"job": None}, run)


@pytest.mark.parametrize("rows", ["text", 1, {"id": "a"}, [1], [{"state": "finished"}], [None]])
def test_rows_of_another_shape_are_one_error(tmp_path, rows):
    study = open_study("s", None, tmp_path)
    study.enqueue_trial({}, user_attrs={"id": "job"})

    def objective(trial):
        trial.set_user_attr("rows", rows)
        return 0.0, 0.0

    queue._run_one(study, objective, queue.Lease(study))
    with pytest.raises(StorageError, match="trial 0 of the queue: its 'rows' are no rows of trials"):
        finished_rows(study)


@pytest.mark.parametrize("owner", [1, None, [], {}, "", "/", "host/²/1", "host/1/2/3", "x" * 9999])
def test_an_owner_of_another_shape_is_nobody(tmp_path, monkeypatch, owner):
    monkeypatch.setattr(queue, "_SIGNED_WITHIN", 0.0)
    study = open_study("s", None, tmp_path)
    with warnings.catch_warnings(action="ignore"):
        study.ask().set_user_attr("owner", owner)
    release_dead(study, {})


def test_a_database_that_is_killed_and_comes_back(tmp_path, postgresql):
    """The server is gone for some seconds while trials run, and all numbers are as they would have been."""
    path, out = tmp_path / "slept.yaml", tmp_path / "out"
    path.write_text(SLEPT.replace("slept", "server").replace("[0]", "[0, 1]").replace("150", "60"))
    quick = {**os.environ, "SECATEUR_HEARTBEAT": "1", "SECATEUR_GRACE": "20"}
    subprocess.run(command(path, tmp_path / "whole"), check=True, timeout=300)
    arguments = command(path, out, "--storage", postgresql.url)
    process = subprocess.Popen(arguments, env=quick, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("trials/*/training-*.json")))
    postgresql.control("-m", "immediate", "stop")
    time.sleep(3)
    postgresql.start()
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert all("; waiting for up to 300 seconds" in line for line in said.splitlines())
    results = [json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert numbers(results[0]) == numbers(results[1])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_database_that_does_not_come_back_is_one_line(tmp_path, postgresql, workers):
    path, out = tmp_path / "slept.yaml", tmp_path / "out"
    path.write_text(SLEPT.replace("slept", f"gone{workers}").replace("[0]", "[0, 1]"))
    quick = {**os.environ, "SECATEUR_HEARTBEAT": "1", "SECATEUR_PATIENCE": "2"}
    arguments = command(path, out, "--storage", postgresql.url, "--workers", workers)
    process = subprocess.Popen(arguments, env=quick, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("trials/*/training-*.json")))
    postgresql.control("-m", "immediate", "stop")
    try:
        said = process.communicate(timeout=300)[1].splitlines()
    finally:
        postgresql.start()
    assert process.returncode == 2
    assert all("waiting for up to 2 seconds" in line for line in said[:-1])
    assert re.search(r"^error: .*: no answer for 2 seconds \(.*\); the same command goes on$", said[-1])


def test_a_search_stays_in_the_sweeps_ranges_and_resumes(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("[0.5, 0.8]", "[0.5, 0.9], prune.criterion: [magnitude, random]"))
    settings = {"sampler": "tpe", "trials": 4, "seeds": [0]}
    whole = run_study(load_recipe(str(path), settings), tmp_path / "a" / "tiny")
    points = [row["point"] for row in whole["trials"]]
    assert len(points) == 4
    assert all(0.5 <= point["prune.budget.sparsity"] <= 0.9 for point in points)
    assert {point["prune.criterion"] for point in points} <= {"magnitude", "random"}
    assert len({point["prune.budget.sparsity"] for point in points}) == 4
    run_study(load_recipe(str(path), settings | {"trials": 2}), tmp_path / "b" / "tiny")
    resumed = run_study(load_recipe(str(path), settings), tmp_path / "b" / "tiny")
    assert numbers(resumed) == numbers(whole)


def test_a_diverging_trial_is_reported_and_the_study_goes_on(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("prune.budget.sparsity: [0.5, 0.8]", "retrain.lr: [1.0e-3, 1.0e+30]"))
    results = run_study(load_recipe(str(path), {"retrain.optimizer": "sgd"}, seeds=[0]), tmp_path / "tiny")
    assert [row["state"] for row in results["trials"]] == ["finished", "failed"]
    assert "failed: " in results["trials"][1]["notes"][0]
