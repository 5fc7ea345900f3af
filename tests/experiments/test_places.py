"""Where a study writes, and what it does where it cannot."""

import errno
import json
import os
import subprocess
import sys
import traceback

import pytest
import torch
from numbers_of import numbers

from secateur.cli import main
from secateur.errors import RecipeError, StorageError, WriteError
from secateur.experiments import study
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import run_study

TEXT = """\
name: placed
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 8}
train: {epochs: 1}
measure: []
steps:
  - prune: {budget: {name: global, sparsity: 0.5}}
  - retrain: {epochs: 1}
seeds: [0]
"""


@pytest.fixture
def recipe(tmp_path):
    def load(name="placed", settings=None):
        (tmp_path / f"{name}.yaml").write_text(TEXT.replace("placed", name))
        return load_recipe(str(tmp_path / f"{name}.yaml"), settings)

    return load


def command(*arguments, cwd, **environment):
    """Run `secateur run` as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "secateur", "run", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        timeout=300,
        check=False,
    )


def forked(*arguments, cwd):
    """Run `secateur run` in a fork of this process, which has imported everything; return its status and
    what it printed and said."""
    if torch.cuda.is_available():
        pytest.skip("torch trains in no fork of a process that has looked for a GPU")
    streams = [(cwd / name).open("w+") for name in (".stdout", ".stderr")]
    child = os.fork()
    if child == 0:
        os.chdir(cwd)
        sys.argv = ["secateur", "run", *map(str, arguments)]
        sys.stdout, sys.stderr = streams
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
            status = 1
        for stream in streams:
            stream.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = []
    for stream in streams:
        stream.seek(0)
        said.append(stream.read())
        stream.close()
        os.unlink(stream.name)
    return status, *said


# -- dense networks and finished trials ----------------------------------------------------------------


def test_under_runs_dense_networks_are_shared_elsewhere_nothing_leaves_the_folder(recipe, tmp_path):
    recipe()
    for arguments in (["--out", "runs/a"], ["--out", "some/where"], ["--out", "runs/deep/er"], []):
        status, _, said = forked("placed.yaml", "--quiet", *arguments, cwd=tmp_path)
        assert status == 0, said
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("dense"))
    assert found == ["runs/deep/er/dense", "runs/dense", "some/where/dense"]
    assert {p.name for p in (tmp_path / "some").iterdir()} == {"where"}
    inodes = [next(tmp_path.glob(f"{out}/trials/*/result.json")) for out in ("runs/a", "runs/placed")]
    assert inodes[0].read_bytes() == inodes[1].read_bytes(), "taken over, seconds and all"
    other = next((tmp_path / "some" / "where").glob("trials/*/result.json"))
    assert other.read_bytes() != inodes[0].read_bytes(), "run anew"


def test_a_trial_of_a_study_beside_that_is_half_or_a_link_is_run_anew(recipe, tmp_path):
    loaded, shared = recipe(), tmp_path / "shared"
    whole = run_study(loaded, shared / "whole", shared=shared)
    trial = next((shared / "whole" / "trials").iterdir())
    content = (trial / "result.json").read_bytes()
    (trial / "result.json").write_bytes(content[: len(content) // 2])
    assert numbers(run_study(loaded, shared / "a", shared=shared)) == numbers(whole)
    (shared / "a").rename(tmp_path / "away")
    (shared / "whole").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "trials" / trial.name / "result.json").write_bytes(content)
    (shared / "linked").symlink_to(tmp_path / "elsewhere")
    rows = run_study(loaded, shared / "b", shared=shared)["trials"]
    assert rows[0]["seconds"] != whole["trials"][0]["seconds"], "a link is not followed"


@pytest.mark.parametrize("place", ["dense", "trials", "dense lock"])
def test_a_planted_link_is_refused_in_one_line(recipe, tmp_path, place):
    loaded, out, aim = recipe(), tmp_path / "out", tmp_path / "aim"
    run_study(loaded, tmp_path / "first")
    out.mkdir()
    if place == "dense lock":
        lock = next((tmp_path / "first" / "dense").glob("*.lock"))
        aim.write_text("precious")
        (out / "dense").mkdir()
        (out / "dense" / lock.name).symlink_to(aim)
    else:
        aim.mkdir()
        (out / place).symlink_to(aim)
    with pytest.raises(StorageError, match="is a link, which is not followed"):
        run_study(loaded, out)
    assert aim.read_text() == "precious" if aim.is_file() else not list(aim.iterdir())


def test_a_damaged_dense_network_is_trained_anew_with_a_line(recipe, tmp_path, caplog):
    loaded, out = recipe(), tmp_path / "out"
    whole = run_study(loaded, out)
    weights = next((out / "dense").glob("*.safetensors"))
    info, content = weights.with_suffix(".json"), weights.read_bytes()
    for path in (weights, info):
        path.write_bytes(path.read_bytes()[:-30])
        again = run_study(recipe(settings={"retrain.lr": 0.1 if path == info else 0.2}), out)
        said = [record.getMessage() for record in caplog.records]
        assert said[0] == f"{weights}: damaged; this dense network is trained anew"
        assert "of these settings" in said[1]
        assert len(said) == 2
        caplog.clear()
        assert weights.read_bytes() == content
        assert (
            again["trials"][0]["curves"]["dense"][0]["train_loss"]
            == (whole["trials"][0]["curves"]["dense"][0]["train_loss"])
        )


def test_a_damaged_result_runs_again_with_a_line(recipe, tmp_path, caplog):
    loaded, out = recipe(), tmp_path / "out"
    whole = run_study(loaded, out)
    (out / "study.db").unlink()
    path = next(out.glob("trials/*/result.json"))
    path.write_bytes(path.read_bytes()[:-30])
    assert numbers(run_study(loaded, out)) == numbers(whole)
    assert [record.getMessage().endswith("; the trial runs again") for record in caplog.records] == [True]


# -- whose folder it is --------------------------------------------------------------------------------


def test_a_folder_is_one_recipes(recipe, tmp_path):
    out = tmp_path / "out"
    first = run_study(recipe(), out)
    with pytest.raises(RecipeError, match="holds the study 'placed', not 'other'"):
        run_study(recipe("other"), out)
    assert json.loads((out / "results.json").read_text()) == first
    (out / "study.json").unlink()  # as an early version left it
    with pytest.raises(RecipeError, match="holds the study 'placed', not 'other'"):
        run_study(recipe("other"), out)
    run_study(recipe(settings={"retrain.epochs": 2}), out)
    assert len(list((out / "trials").iterdir())) == 2, "other settings add their trials"
    (out / "study.json").write_text('{"sch')
    assert numbers(run_study(recipe(), out)) == numbers(first)


@pytest.mark.parametrize("name", ["a?b", "50 % of #1", 'it\'s "so"', "čao {x}"])
def test_any_name_of_a_folder_and_of_the_working_folder(recipe, tmp_path, name):
    recipe()
    (tmp_path / name).mkdir()
    (tmp_path / "placed.yaml").rename(tmp_path / name / "placed.yaml")
    status, _, said = forked("placed.yaml", "--out", name, cwd=tmp_path / name)
    assert status == 0, said
    assert {p.name for p in (tmp_path / name / name).iterdir()} >= {"study.db", "results.json", "report.html"}
    assert {p.name for p in (tmp_path / name).iterdir()} == {"placed.yaml", name}


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_loses_a_character_that_it_cannot_print_not_the_study(tmp_path, environment):
    text = TEXT.replace("name: placed", 'name: placed\nsource: "Čao — 98 %"\ndescription: "Čao — 98 %"')
    text = text.replace("steps:", "methods:\n  čistý → ½:\n    steps:").replace("  - ", "      - ")
    (tmp_path / "placed.yaml").write_text(text, encoding="utf-8")
    done = command("placed.yaml", "--out", "out", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert b"results: out/results.json" in done.stdout
    rows = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert rows["source"] == "Čao — 98 %"


# -- a disk that is full or read-only ------------------------------------------------------------------


GOES_ON = "once it can be written, the same command goes on where this one stopped"


@pytest.mark.parametrize(("call", "number", "points"), [
    ("fsync", errno.ENOSPC, (1, 6, 11, 16, 21)),
    ("fsync", errno.EROFS, (4,)),
    ("ftruncate", errno.EACCES, (1, 2)),
])  # fmt: skip
def test_a_disk_that_is_full_is_one_line_and_the_same_command_goes_on(
    recipe, tmp_path, monkeypatch, call, number, points
):
    """Wherever it fails, the error names a file and says what to do, and nothing is lost."""
    loaded = recipe()
    whole = run_study(loaded, tmp_path / "whole")
    real, left = getattr(os, call), [0]

    def full(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, full)
    for point in points:
        out, left[0] = tmp_path / f"out{point}", point
        with pytest.raises(WriteError) as caught:
            run_study(loaded, out)
        said = str(caught.value)
        assert os.strerror(number) in said
        assert said.endswith(GOES_ON)
        assert "\n" not in said
        assert numbers(run_study(loaded, out)) == numbers(whole)
        assert not list(out.rglob("*.part"))


def test_a_full_disk_in_a_worker_is_one_line_too(recipe, tmp_path):
    recipe()
    if os.geteuid() != 0 or not mounted(tmp_path / "small", "size=4m"):
        pytest.skip("needs the right to mount a small file system")
    try:
        (tmp_path / "small" / "filler").write_bytes(bytes(4_050_000))
        done = command("placed.yaml", "--out", "small/out", "--workers", "2", cwd=tmp_path)
        assert done.returncode == 2
        said = done.stderr.decode().strip().splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("error: ")
        assert "No space left" in said[0] or "full" in said[0]
        assert "the same command goes on" in said[0]
        (tmp_path / "small" / "filler").unlink()
        done = command("placed.yaml", "--out", "small/out", "--workers", "2", cwd=tmp_path)
        assert done.returncode in (0, 2)  # the report's page alone may be larger than what is left
        assert (tmp_path / "small" / "out" / "results.json").exists()
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def mounted(folder, options):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False
    )
    return done.returncode == 0


def test_a_finished_study_on_a_read_only_disk_is_reported(recipe, tmp_path, monkeypatch):
    loaded, out = recipe(), tmp_path / "out"
    whole = run_study(loaded, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(study.os, "access", lambda path, mode: False)
    assert run_study(loaded, out) == whole
    with pytest.raises(WriteError, match="out: cannot be written to, and not all trials are finished"):
        run_study(recipe(settings={"retrain.epochs": 3}), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_finished_study_on_a_read_only_disk_prints_its_table(recipe, tmp_path):
    recipe()
    if os.geteuid() != 0 or not mounted(tmp_path / "disk", "size=64m"):
        pytest.skip("needs the right to mount a file system")
    try:
        assert forked("placed.yaml", "--out", "disk/out", cwd=tmp_path)[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        _, printed, said = forked("placed.yaml", "--out", "disk/out", cwd=tmp_path)
        assert "retrained %" in printed
        assert said.startswith("error: no report: ")
        assert said.endswith("report.html: cannot be written: Read-only file system\n")
        assert said.count("\n") == 1
        status, _, said = forked("placed.yaml", "--out", "disk/new", cwd=tmp_path)
        assert status == 2
        assert said.startswith("error: disk/new: Read-only file system; once it can be written")
        assert said.count("\n") == 1
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)
