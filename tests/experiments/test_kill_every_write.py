"""A process that is killed at any write of a trial goes on to the same files, whatever its steps do.

A forked child counts what becomes visible in the folder (files opened for writing, renamed, removed,
folders made) and ends with os._exit before the n-th of these, so that nothing is cleaned up; another goes on.
As a store without atomic rename may, a "torn" child leaves half of the file that it was renaming.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import pytest
import torch
from one_trial import plan_of, without_times

import secateur as sc
from secateur.data import load_data
from secateur.experiments.commands import deployment
from secateur.experiments.study import finished_or_run
from secateur.experiments.trial import trial_id
from secateur.models import build_model

HEAD = """
name: killed
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 8}
train: {epochs: 1, lr: 2.0e-3, batch_size: 256}
measure: []
seeds: [0]
steps:
"""
UNITS = "  - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}\n"
ZEROS = "  - prune: {budget: {name: global, sparsity: 0.8}}\n"
STEPS = {
    "prune": ZEROS,
    "gradual": "  - prune: {budget: {name: global, sparsity: 0.8},"
    " schedule: {name: cubic, steps: 2, retrain: {epochs: 1}}}\n",
    "greedy": "  - greedy: {parameters: 0.85, every: 1, examples: 50}\n",
    "greedy after prune": ZEROS + "  - greedy: {parameters: 0.85, every: 1, examples: 50}\n",
    "greedy, trained": "  - greedy: {parameters: 0.85, every: 1, examples: 50, retrain: {epochs: 1}}\n",
    "structure_selection": "  - structure_selection: {penalty: 0.1, train: {epochs: 1}}\n",
    "anneal": "  - anneal: {ratio: 0.5, schedule: {step: 0.5}, calibration: 50, train: {epochs: 1}}\n",
    "refit": UNITS + "  - refit: {calibration: 100}\n",
    "prune_to": "  - prune_to: {macs: 0.6}\n",
    "compact": UNITS + "  - compact:\n",
    "retrain": ZEROS + "  - retrain: {epochs: 2}\n",
    "scratch": "  - scratch: {model: {hidden: 4}, train: {epochs: 1}}\n",
    "share": ZEROS + "  - share: {values: 4, train: {epochs: 1}}\n",
    "l0": "  - l0: {penalty: 0.1, train: {epochs: 1}}\n",
    "variational_dropout": "  - variational_dropout: {start: -4, train: {epochs: 1}}\n",
    "low_rank": "  - low_rank: {share: 0.5}\n",
    "sparsegpt": "  - sparsegpt: {budget: {name: uniform, sparsity: 0.5}, calibration: 50}\n",
    "recover": ZEROS + "  - recover: {examples: 64, rank: 2}\n",
    "group_lasso": "  - group_lasso: {penalty: 0.5, train: {epochs: 1, optimizer: sgd, lr: 0.05}}\n",
    "grow_penalty": UNITS.replace("prune", "grow_penalty").replace("}}", "}, stages: 2, train: {epochs: 1}}"),
    "regrow": "  - regrow: {budget: {name: erk, sparsity: 0.5}, stages: 2, calibration: 100,"
    " train: {epochs: 1}}\n",
    "rewind": ZEROS + "  - rewind: {epochs: 1}\n",
    "anneal, refitted": "  - anneal: {ratio: 0.5, schedule: {step: 0.5}, order: backwards, refit: true,"
    " statistics: true, calibration: 50, train: {epochs: 1}}\n",
    "averaged": ZEROS + "  - retrain: {epochs: 2, average: 1.0, keep: last}\n",
    "pack": ZEROS + "  - pack: {values: float16}\n",
}
EVENTS = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "shutil.copyfile",
)


def count_writes(folder: Path, kill_before: int = 0, torn: bool = False) -> list[int]:
    """Count this process's writes in ``folder`` from now on; end it before one of them (from 1)."""
    inside, seen = str(folder), [0]

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            writes = event in EVENTS
        if not writes or not str(arguments[0]).startswith(inside):
            return
        seen[0] += 1
        if seen[0] == kill_before:
            if torn and event == "os.rename" and Path(arguments[0]).is_file():
                content = Path(arguments[0]).read_bytes()
                Path(arguments[1]).write_bytes(content[: len(content) // 2])
            os._exit(9)

    sys.addaudithook(hook)
    return seen


def in_a_child(work) -> int:
    """Run ``work`` in a forked process and return its exit status."""
    if torch.cuda.is_available():
        pytest.skip("torch trains in no fork of a process that has looked for a GPU")
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files_of(folder: Path) -> dict[str, object]:
    """Every file below a folder: its content, of JSON what is not timed; locks are only named."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.is_file():
            found[name] = None if path.suffix == ".lock" else path.read_bytes()
        else:
            found[name] = "a folder"
    return found


def killed_everywhere(work, folder: Path, begin, points: int | None) -> tuple[int, int]:
    """Kill ``work`` before each of its writes in ``folder``, or before so many ``points`` spread over them,
    whole and torn by turns, let it go on, and compare; ``begin`` makes the folder as it is before. Return how
    many writes there are, and at how many it was killed."""
    begin()
    count = folder.with_suffix(".count")

    def counted() -> None:
        seen = count_writes(folder)
        work()
        count.write_text(str(seen[0]))

    assert in_a_child(counted) == 0
    whole, writes = files_of(folder), int(count.read_text())
    step = 1 if points is None else max(1, writes // points)
    numbers = range(writes, 0, -step)
    for turn, number in enumerate(numbers):
        for torn in (False, True) if points is None else (turn % 2 == 0,):
            begin()

            def killed(number=number, torn=torn) -> None:
                count_writes(folder, number, torn)
                work()

            assert in_a_child(killed) == 9
            assert in_a_child(work) == 0, f"killed before write {number} of {writes}, it does not go on"
            again = files_of(folder)
            assert again.keys() == whole.keys(), f"killed before write {number} of {writes}"
            assert again == whole, f"killed before write {number} of {writes}"
    return writes, len(numbers) * (2 if points is None else 1)


@pytest.fixture(scope="module")
def warm():
    """What every child has from its parent: imports and the data."""
    load_data("digits", validation=200)
    sc.compact(build_model("digits-mlp"), torch.randn(2, 64))


def fresh(folder: Path):
    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    return begin


ALL = pytest.param(None, marks=pytest.mark.slow, id="every")
SOME = pytest.param(3, id="some")


def reported(found: tuple[int, int], what: str, record_property) -> None:
    print(f"{what}: {found[0]} writes, killed at {found[1]}")
    record_property("writes", found[0])
    record_property("kills", found[1])
    assert found[1] >= 3


@pytest.mark.parametrize("points", [SOME, ALL])
@pytest.mark.parametrize("kind", list(STEPS))
def test_a_trial(kind, points, warm, tmp_path, record_property):
    plan, out = plan_of(tmp_path, HEAD + STEPS[kind]), tmp_path / "out"
    found = killed_everywhere(lambda: finished_or_run(plan, 0, out, None), out, fresh(out), points)
    reported(found, kind, record_property)


@pytest.mark.parametrize("points", [SOME, ALL])
def test_taking_over_a_finished_trial(points, warm, tmp_path, record_property):
    plan, shared = plan_of(tmp_path, HEAD + STEPS["pack"]), tmp_path / "shared"
    finished_or_run(plan, 0, shared / "beside", shared)
    before = files_of(shared / "beside")

    def work() -> None:
        finished_or_run(plan, 0, shared / "out", shared)

    found = killed_everywhere(work, shared / "out", fresh(shared / "out"), points)
    reported(found, "taking over", record_property)
    assert files_of(shared / "out") == before == files_of(shared / "beside")
    assert not (shared / "out" / "dense").exists(), "nothing was trained again"


@pytest.mark.parametrize("points", [SOME, ALL])
def test_deploying_a_trial(points, warm, tmp_path, monkeypatch, record_property):
    """The files that deploy writes; what it measures of them is not run, it writes nothing there."""
    plan, out = plan_of(tmp_path, HEAD + STEPS["prune"]), tmp_path / "out"
    finished_or_run(plan, 0, out, None)
    folder = out / "trials" / trial_id(plan, 0)

    def unmeasured(making, seconds):
        return [{"name": name, "reason": None} for name in making.formats]

    monkeypatch.setattr(deployment, "measure_formats", unmeasured)
    found = killed_everywhere(
        lambda: deployment.deploy(folder),
        folder / "deploy",
        lambda: shutil.rmtree(folder / "deploy", ignore_errors=True),
        points,
    )
    reported(found, "deploy", record_property)
