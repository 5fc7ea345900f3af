"""A trial's folder: one owner at a time, and states that count whole or not at all."""

import json
import logging
import os
import shutil

import pytest

from secateur.errors import StorageError
from secateur.experiments.claim import Claim, Lost, newest_snapshots, write_snapshot
from secateur.storage import sha256_of


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "trials" / "0123"


def part(claim, name, text):
    path = claim.part(name)
    path.write_text(text)
    return path


def snapshot(claim, value):
    write_snapshot(claim, "state", {"value": value}, {"one": part(claim, "state-one", f"file {value}")})


def found(folder):
    return [(s.values["value"], s.files["one"].read_text()) for s in newest_snapshots(folder, "state")]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_newest_snapshot_takes_the_place_of_the_one_before(folder):
    claim = Claim(folder)
    for value in range(12):
        snapshot(claim, value)
        assert found(folder) == [(value, f"file {value}")]
    assert len(list(folder.iterdir())) == 3, "the owner, a manifest and its file"
    snapshot(Claim(folder), "another process's")
    assert found(folder) == [("another process's", "file another process's")]


DAMAGES = ["manifest cut", "manifest changed", "file cut", "file changed", "file gone", "file a link",
           "named outside", "other shape", "not JSON"]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_snapshot_nothing_counts_and_the_one_before_does(folder, tmp_path, damage):
    claim = Claim(folder)
    snapshot(claim, 1)
    kept = contents(folder)
    snapshot(claim, 2)
    for name, content in kept.items():  # as where a kill left the old one beside the new one
        if name != "owner":
            (folder / name).write_bytes(content)
    assert found(folder) == [(2, "file 2"), (1, "file 1")]
    manifest = max(folder.glob("state-*.json"))
    body = json.loads(manifest.read_text())
    file = folder / body["files"]["one"][0]
    if damage == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif damage == "manifest changed":
        manifest.write_text(manifest.read_text().replace('"value": 2', '"value": 3'))
    elif damage == "file cut":
        file.write_text("file")
    elif damage == "file changed":
        file.write_text("file 3")
    elif damage == "file gone":
        file.unlink()
    elif damage == "file a link":
        (tmp_path / "aim").write_text("file 2")
        file.unlink()
        file.symlink_to(tmp_path / "aim")
    else:
        from secateur.experiments.claim import _digest

        (tmp_path / "outside").write_text("file 2")
        body.pop("sha256")
        if damage == "named outside":
            body["files"]["one"][0] = "../../outside"
        elif damage == "other shape":
            body["files"] = [1, None]
        body["sha256"] = _digest(body)
        manifest.write_text(json.dumps(body) if damage != "not JSON" else "\x00")
    assert found(folder) == [(1, "file 1")]


def test_who_lost_the_folder_changes_nothing_in_it(folder):
    first = Claim(folder)
    snapshot(first, 1)
    second = Claim(folder)
    snapshot(second, 2)
    before = contents(folder)
    for work in (lambda: snapshot(first, 3), lambda: first.finish({"id": "0123"}, {})):
        with pytest.raises(Lost, match=r"0123: another process has taken this trial"):
            work()
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert found(folder) == [(2, "file 2")]
    second.finish(
        {"id": "0123", "state": "finished"}, {"model.safetensors": part(second, "final", "weights")}
    )
    assert set(contents(folder)) == {"result.json", "model.safetensors"}
    with pytest.raises(Lost):
        snapshot(first, 5)
    with pytest.raises(Lost):
        first.finish({"id": "0123"}, {})


@pytest.mark.parametrize(("taken", "error"), [(True, Lost), (False, FileNotFoundError)])
def test_a_file_that_the_new_owner_removed_is_no_error_of_its_own(folder, taken, error):
    def work():
        with Claim(folder):
            if taken:
                Claim(folder)
            raise FileNotFoundError("gone")

    with pytest.raises(error):
        work()


def finished(folder, text="weights"):
    with Claim(folder) as claim:
        row = {"id": folder.name, "state": "finished", "metrics": {}}
        claim.finish(row, {"model.safetensors": part(claim, "final", text)})
    return row


def test_a_finished_trial_is_read_back_and_what_a_kill_left_goes(folder):
    row = finished(folder)
    (folder / "final-model-abc-1.part").write_text("left")
    (folder / "state-000001-abc.json").write_text("left")
    (folder / "state.json").write_text("of an early version")
    assert Claim(folder).finished() == row
    assert set(contents(folder)) == {"result.json", "model.safetensors"}
    (folder / "model.safetensors").unlink()  # to save space
    assert Claim(folder).finished() == row


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "result.json").write_text('{"id": "0123", "sta'), "not valid JSON"),
        (lambda f: (f / "result.json").write_text("[1]"), "is not the result of the trial 0123"),
        (lambda f: (f / "result.json").write_text('{"id": "0124"}'), "is not the result of the trial 0123"),
        (lambda f: (f / "model.safetensors").write_text("other"), "does not hold what result.json says"),
        (
            lambda f: (f / "result.json").write_text(
                '{"id": "0123", "state": "failed", "files": {"../x": ""}}'
            ),
            "'files' names others than",
        ),
    ],
)  # fmt: skip
def test_a_damaged_result_is_no_result_and_is_not_taken_over(folder, tmp_path, damage, message):
    finished(folder)
    damage(folder)
    with pytest.raises(StorageError, match=message):
        Claim(folder).finished()
    with pytest.raises(StorageError, match=message):
        Claim(tmp_path / "other" / "0123").take_over(folder)
    assert not (tmp_path / "other" / "0123" / "result.json").exists()


def test_taking_over_copies_the_files_that_the_result_names(folder, tmp_path):
    row = finished(folder)
    (folder / "notes.txt").write_text("the user's")
    other = tmp_path / "other" / "0123"
    assert Claim(other).take_over(folder) == row
    assert contents(other) == {n: c for n, c in contents(folder).items() if n != "notes.txt"}
    assert (
        sha256_of(other / "model.safetensors")
        == json.loads((other / "result.json").read_text())["files"]["model.safetensors"]
    )
    shutil.rmtree(other)
    (folder / "model.safetensors").rename(tmp_path / "aim")
    (folder / "model.safetensors").symlink_to(tmp_path / "aim")
    with pytest.raises(StorageError, match=r"model\.safetensors: is a link, which is not followed"):
        Claim(other).take_over(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="No such file"):
        Claim(other).take_over(folder)


def test_a_planted_link_is_not_followed(folder, tmp_path):
    aim = tmp_path / "aim"
    aim.write_text("precious")
    folder.mkdir(parents=True)
    (folder / "owner").symlink_to(aim)
    with pytest.raises(StorageError, match="owner: is a link, which is not followed"):
        Claim(folder)
    (folder / "owner").unlink()
    os.link(aim, folder / "owner")
    with pytest.raises(StorageError, match="owner: is no plain file of its own"):
        Claim(folder)
    (folder.parent / "0124").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="0124: is a link"):
        Claim(folder.parent / "0124")
    assert aim.read_text() == "precious"


def test_a_trial_of_an_early_version_starts_anew_with_a_line(tmp_path, caplog):
    from one_trial import plan_of, run, without_times

    text = """
name: old
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 8}
train: {epochs: 1}
measure: []
seeds: [0]
steps:
  - prune: {budget: {name: global, sparsity: 0.5}}
"""
    plan = plan_of(tmp_path, text)
    whole = run(plan, tmp_path / "whole")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "state.json").write_text('{"done": 1, "files": {"model": "model-1-0.part"}}')
    (tmp_path / "old" / "model-1-0.part").write_text("half")
    (tmp_path / "old" / "training.safetensors").write_text("half")
    with caplog.at_level(logging.WARNING):
        assert without_times(run(plan, tmp_path / "old")) == without_times(whole)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / 'old'}: no state there is whole and of this version; the trial starts anew"
    ]
    assert set(contents(tmp_path / "old")) == set(contents(tmp_path / "whole"))
