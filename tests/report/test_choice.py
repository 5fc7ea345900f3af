import ast
import hashlib
import io

import pytest
import torch
from rich.console import Console

import secateur as sc
from secateur.errors import ModelError, RecipeError, StorageError
from secateur.models import build_model
from secateur.report.choice import QUANTITIES, Files, choose, how_to_load, write_choice
from secateur.report.terminal import print_choice
from secateur.storage import load_tensors, save_json, save_tensors
from secateur.training.checkpoint import save_weights


def id_of(method, seed=0):
    return hashlib.sha256(f"{method}-{seed}".encode()).hexdigest()[:16]


def trial(method, seed=0, validation=0.95, test=0.9, data="digits", **metrics):
    """A finished trial from a dense network of 98 % on validation, 104 kB and 26,000 parameters."""
    defaults = {
        "score_dense": 0.97,
        "score_dense_validation": 0.98,
        "score_pruned": 0.5,
        "score_pruned_validation": 0.5,
        "score_retrained": test,
        "score_retrained_validation": validation,
        "sparsity": 0.5,
        "compression_rate": 2.0,
        "parameters": 26_000,
        "nonzero": 13_000,
        "bytes_dense": 104_000,
        "bytes_sparse": 50_000,
        "macs": 25_000,
        "latency_ms": 1.0,
        "latency_dense_ms": 2.0,
    }
    return {
        "id": id_of(method, seed),
        "method": method,
        "state": "finished",
        "point": {},
        "seed": seed,
        "metrics": {**defaults, **metrics},
        "layers": [],
        "curves": {},
        "epochs": {},
        "classes": 10,
        "config": {"data": {"name": data}, "model": {"name": "digits-mlp", "hidden": 8}, "steps": []},
    }


def study_in(folder, *trials, name="r"):
    save_json(folder / "results.json", {"schema": 1, "recipe": name, "trials": list(trials)})
    return folder


def method(choice):
    return choice.chosen.group.method


def printed(choice, files):
    console = Console(file=io.StringIO(), width=200)
    print_choice(choice, files, console)
    return console.file.getvalue()


def test_the_smallest_within_the_limit_is_chosen(tmp_path):
    folder = study_in(
        tmp_path,
        trial("accurate", validation=0.98, bytes_sparse=60_000),
        trial("small", validation=0.975, bytes_sparse=20_000),
        trial("smaller", validation=0.96, bytes_sparse=9_000),
    )
    choice = choose([folder], 1.0)
    assert method(choice) == "small"
    assert [c.group.method for c in choice.within] == ["small", "accurate"]
    assert [c.group.method for c in choice.beyond] == ["smaller"]
    assert choice.chosen.drop == pytest.approx(0.5)
    assert method(choose([folder], 2.0)) == "smaller", "a drop of the limit itself is within it"
    assert method(choose([folder], 0)) == "accurate"


def test_limits_are_of_means_over_the_same_seeds(tmp_path):
    """One seed of the dense network is worse: each point is held against its own dense networks."""
    folder = study_in(
        tmp_path,
        trial("both", 0, validation=0.96, bytes_sparse=5),
        trial("both", 1, validation=0.94, bytes_sparse=5, score_dense_validation=0.94),
        trial("one", 1, validation=0.94, bytes_sparse=4, score_dense_validation=0.96),
    )
    choice = choose([folder], 1.0)
    assert choice.chosen.drop == pytest.approx(1.0)
    assert method(choice) == "both"
    assert choice.chosen.dense.mean == pytest.approx(0.96)


def test_ties_go_by_validation_then_sparsity_then_order(tmp_path):
    folder = study_in(
        tmp_path,
        trial("first", validation=0.97),
        trial("sparser", validation=0.97, sparsity=0.6),
        trial("as sparse", validation=0.97, sparsity=0.6),
    )
    choice = choose([folder], 1.0)
    assert method(choice) == "sparser"
    assert choice.ties == 2
    study_in(tmp_path, trial("a", validation=0.97, sparsity=0.9), trial("b", validation=0.975))
    assert method(choose([folder], 1.0)) == "b"


@pytest.mark.parametrize(
    ("minimise", "expected"), [("bytes", "b"), ("latency", "l"), ("macs", "m"), ("parameters", "p")]
)
def test_each_quantity_finds_its_own(tmp_path, minimise, expected):
    """Latency is a share: the machine of "l" is slow, its network half of its dense one."""
    folder = study_in(
        tmp_path,
        trial("b", bytes_sparse=1),
        trial("l", latency_ms=10.0, latency_dense_ms=40.0),
        trial("m", macs=1),
        trial("p", parameters=1),
    )
    choice = choose([folder], 3.0, minimise)
    assert method(choice) == expected
    assert set(QUANTITIES) == {"bytes", "latency", "macs", "parameters"}
    if minimise == "latency":
        assert choice.chosen.cost.mean == pytest.approx(0.25)


def test_test_figures_play_no_part(tmp_path):
    """Two studies that differ in test figures only choose the same network, of the same seed."""
    names = ("score_dense", "score_pruned", "score_retrained")
    trials = [
        trial(name, seed, validation=v + seed / 1000, bytes_sparse=size)
        for name, v, size in (("a", 0.98, 9), ("b", 0.974, 5), ("c", 0.972, 5), ("d", 0.9, 1))
        for seed in (0, 1)
    ]
    chosen = []
    for index, figures in enumerate([(0.9, 0.1, 0.2), (0.1, 0.9, 0.99)]):
        for number, each in enumerate(trials):
            for name, figure in zip(names, figures, strict=True):
                each["metrics"][name] = figure - (number if index else -number) / 100
        choice = choose([study_in(tmp_path / str(index), *trials)], 1.0)
        chosen.append((method(choice), choice.trial["id"], [c.group.method for c in choice.within]))
    assert chosen[0] == chosen[1] == ("b", id_of("b", 1), ["b", "c", "a"])
    for each in trials:
        for name in names:
            del each["metrics"][name]
    choice = choose([study_in(tmp_path / "none", *trials)], 1.0)
    assert choice.trial["id"] == id_of("b", 1), "none is even looked for"


def test_the_seed_is_the_best_on_validation(tmp_path):
    seeds = [
        trial("a", s, validation=v, test=t) for s, v, t in ((0, 0.96, 0.99), (1, 0.97, 0.9), (2, 0.97, 1.0))
    ]
    assert choose([study_in(tmp_path, *seeds)], 5.0).trial["seed"] == 1


def test_without_retraining_the_pruned_network_counts(tmp_path):
    each = trial("a", score_pruned_validation=0.975)
    each["metrics"] |= {"score_retrained": None, "score_retrained_validation": None}
    choice = choose([study_in(tmp_path, each)], 1.0)
    assert choice.chosen.metric == "score_pruned_validation"
    assert choice.chosen.drop == pytest.approx(0.5)


def test_several_studies_are_one_field(tmp_path):
    first = study_in(tmp_path / "a", trial("x", bytes_sparse=9))
    second = study_in(tmp_path / "b", trial("x", bytes_sparse=5))
    choice = choose([first, second], 5.0)
    assert choice.chosen.folder == second
    assert choice.chosen.group.study == "r 2"


def test_failed_trials_are_counted_and_left_out(tmp_path):
    lost = {"id": "f", "method": "a", "state": "failed", "point": {}, "seed": 1, "metrics": {}}
    folder = study_in(tmp_path, trial("a", 0), lost)
    choice = choose([folder], 5.0)
    assert choice.failed == 1
    assert choice.chosen.validation.number == 1
    with pytest.raises(RecipeError, match="no finished trial has a validation score to choose by"):
        choose([study_in(tmp_path, lost)], 5.0)


def test_nothing_within_the_limit_names_the_nearest(tmp_path):
    folder = study_in(tmp_path, trial("far", validation=0.5), trial("near", validation=0.95))
    with pytest.raises(RecipeError) as caught:
        choose([folder], 1.0)
    assert str(caught.value) == (
        "--drop 1: none of 2 points keeps its validation accuracy that near; "
        "the nearest is 'near', 3.00 percentage points worse than dense"
    )


@pytest.mark.parametrize("drop", [-0.5, float("nan"), float("inf")])
def test_impossible_drops(tmp_path, drop):
    with pytest.raises(RecipeError, match="it is in the score's unit"):
        choose([study_in(tmp_path, trial("a"))], drop)


def test_unknown_and_unmeasured_quantities(tmp_path):
    folder = study_in(tmp_path, trial("a"), trial("b"))
    with pytest.raises(RecipeError, match=r"^--minimise size: one of bytes, latency, macs, parameters$"):
        choose([folder], 1.0, "size")
    untimed = trial("b")
    del untimed["metrics"]["latency_ms"]
    folder = study_in(tmp_path, trial("a"), untimed)
    with pytest.raises(RecipeError, match=r"not measured in 1 of 2 trials \(first: 'b', seed 0\)"):
        choose([folder], 5.0, "latency")
    assert choose([folder], 5.0, "macs")


def test_several_data_sets_are_no_one_choice(tmp_path):
    folder = study_in(tmp_path, trial("a"), trial("b", data="mnist"))
    with pytest.raises(RecipeError, match=r"several data sets \(digits, mnist\)"):
        choose([folder], 1.0)


def test_a_folder_without_results(tmp_path):
    with pytest.raises(StorageError, match=r"results\.json: no such file"):
        choose([tmp_path], 1.0)


def test_files_are_copied_and_stale_masks_go(tmp_path):
    choice = choose([study_in(tmp_path, trial("a"))], 5.0)
    source, out = tmp_path / "trials" / id_of("a"), tmp_path / "elsewhere" / "best.safetensors"
    with pytest.raises(StorageError, match="no such file; the chosen trial's network is not beside"):
        write_choice(choice, out)
    assert not out.exists()
    source.mkdir(parents=True)
    save_weights(source / "model.safetensors", build_model("digits-mlp", hidden=8))
    save_tensors(source / "masks.safetensors", {"m": torch.zeros(1)})
    files = write_choice(choice, out)
    assert out.read_bytes() == (source / "model.safetensors").read_bytes()
    assert files.masks == out.with_name("best-masks.safetensors")
    assert files.masks.read_bytes() == (source / "masks.safetensors").read_bytes()
    assert not files.reshaped
    (source / "masks.safetensors").unlink()
    assert write_choice(choice, out).masks is None
    assert [path.name for path in out.parent.iterdir()] == ["best.safetensors"]
    before = out.read_bytes()
    (source / "model.safetensors").write_bytes(before[:100])
    with pytest.raises(StorageError, match="not a complete safetensors file"):
        write_choice(choice, out)
    assert out.read_bytes() == before


def assert_loaded(choice, files):
    """The lines printed name nothing but public names, and load what was written when they run."""
    lines, found = how_to_load(choice, files), {}
    assert not any("secateur." in line for line in lines)
    exec("\n".join(lines), found)
    written, _ = load_tensors(files.model)
    loaded = found["model"].state_dict()
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in written.items())


def test_how_a_network_is_loaded(tmp_path):
    each = trial("a")
    each["config"]["model"]["weights"] = "start.safetensors"
    choice = choose([study_in(tmp_path, each)], 5.0)
    source = tmp_path / "trials" / id_of("a")
    source.mkdir(parents=True)
    out = tmp_path / "o.safetensors"
    save_weights(source / "model.safetensors", build_model("digits-mlp", hidden=8))
    assert not write_choice(choice, out).reshaped
    assert_loaded(choice, write_choice(choice, out))
    sc.save(build_model("digits-mlp", hidden=8, seed=1), source / "model.safetensors")
    assert write_choice(choice, out).reshaped
    assert_loaded(choice, files := write_choice(choice, out))
    each["config"]["steps"] = [{"scratch": {"model": {"hidden": 4}}}]
    choice = choose([study_in(tmp_path, each)], 5.0)
    assert "model = sc.build_model('digits-mlp', hidden=4)" in how_to_load(choice, files)


def test_what_is_printed_ends_with_the_test_figures_and_the_file(tmp_path):
    trials = [
        trial("good", s, validation=0.97 + s / 1000, test=0.95 + s / 100, bytes_sparse=4321 + s)
        for s in (0, 1)
    ]
    trials += [trial(f"bad {index}", validation=0.9 - index / 100) for index in range(11)]
    trials.append({"id": "f", "method": "a", "state": "failed", "point": {}, "seed": 1, "metrics": {}})
    choice = choose([study_in(tmp_path, *trials)], 1.0)
    source = tmp_path / "trials" / id_of("good", 1)
    source.mkdir(parents=True)
    save_weights(source / "model.safetensors", build_model("digits-mlp", hidden=8))
    text = printed(choice, write_choice(choice, tmp_path / "o.safetensors"))
    lines = [[cell.strip() for cell in line.strip("│ ┃").split("│")] for line in text.splitlines()]
    assert "points at most 1 percentage points worse than the dense network on validation: 1 of 12\n" in text
    assert ["good", "97.05 ± 0.07", "98.00 ± 0.00", "0.95", "4,322", "2", "yes"] in lines
    assert ["bad 0", "90.00", "98.00", "8.00", "50,000", "1", "no"] in lines
    assert "not shown: 2 more\n" in text
    assert "note: trials that failed and are not counted: 1\n" in text
    assert "chosen: good, seed 1: the best of its 2 on validation" in text
    figures = [
        ["validation accuracy %", "98.00 ± 0.00", "97.05 ± 0.07", "97.10"],
        ["bytes in a sparse form, indices counted", "104,000", "4,322", "4,322"],
        ["test accuracy %, read after the choice", "97.00 ± 0.00", "95.50 ± 0.71", "96.00"],
    ]
    places = [lines.index(row) for row in figures]
    assert places == sorted(places)
    assert all("test" not in line for line in text.splitlines()[: places[-1]])
    assert f"model: {tmp_path / 'o.safetensors'}; load it with" in text


def test_what_is_not_recorded_and_what_ties_are_said(tmp_path):
    choice = choose([study_in(tmp_path, trial("a"), trial("b", validation=0.94))], 5.0, "macs")
    text = printed(choice, Files(tmp_path / "o", None, reshaped=True))
    row = next(line for line in text.splitlines() if "multiply-adds" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == ["not recorded", "25,000", "25,000"]
    assert "note: others with exactly as few macs: 1\n" in text
    timed = choose([tmp_path], 5.0, "latency")
    text = printed(timed, Files(tmp_path / "o", None, reshaped=True))
    assert "latency %" in text
    assert "50.0" in text
    row = next(line for line in text.splitlines() if "measured latency, batch of one, ms" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == ["2", "1", "1"]


def test_a_network_of_ones_own_is_not_pasted_into_code(tmp_path):
    """Whatever a file calls it: the lines printed build secateur's own, and leave others to the user."""
    each = trial("a")
    each["config"]["model"] = {"name": "os:system", "command": "touch ran"}
    choice = choose([study_in(tmp_path, each)], 5.0)
    for reshaped in (False, True):
        lines = how_to_load(choice, Files(tmp_path / "o", None, reshaped))
        assert not any("command" in line or "build_model" in line for line in lines)
        assert "model = ...  # your own, built as in the recipe, where it is 'os:system'" in lines
        ast.parse("\n".join(lines))
    assert " --model package.module:factory\n" in printed(choice, Files(tmp_path / "o", None, reshaped=True))


@pytest.mark.parametrize(
    "value",
    ["'); import os; ('", "a\nb", "\u2028", -1.5, 1e300, True, None, [1, "x'"], {"k": ["v"]}, 2**60],
)
def test_values_are_literals(tmp_path, value):
    each = trial("a")
    each["config"]["model"]["hidden"] = value
    choice = choose([study_in(tmp_path, each)], 5.0)
    line = how_to_load(choice, Files(tmp_path / "it's", None, reshaped=False))[2]
    call = ast.parse(line).body[0].value
    assert [keyword.arg for keyword in call.keywords] == ["hidden"]
    assert ast.literal_eval(call.keywords[0].value) == value


def test_a_width_that_is_no_number_is_one_error(tmp_path):
    each = trial("a")
    each["config"]["model"]["width"] = "wide"
    each["config"]["steps"] = [{"scratch": {"width": 0.5}}]
    choice = choose([study_in(tmp_path, each)], 5.0)
    with pytest.raises(
        ModelError, match=r"results\.json: scratch: width times 0\.5 is no number for a width"
    ):
        how_to_load(choice, Files(tmp_path / "o", None, reshaped=False))


@pytest.mark.parametrize("name", ["model", "masks"])
def test_no_link_is_followed_to_the_network(tmp_path, name):
    choice = choose([study_in(tmp_path / "study", trial("a"))], 5.0)
    folder = tmp_path / "study" / "trials" / id_of("a")
    folder.mkdir(parents=True)
    save_weights(folder / "model.safetensors", build_model("digits-mlp", hidden=8))
    secret = tmp_path / "secret.safetensors"
    save_weights(secret, build_model("digits-mlp", hidden=8))
    (folder / f"{name}.safetensors").unlink(missing_ok=True)
    (folder / f"{name}.safetensors").symlink_to(secret)
    with pytest.raises(StorageError, match="a link leads out of"):
        write_choice(choice, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_network_that_is_not_the_trials_is_refused(tmp_path):
    row = trial("a")
    folder = study_in(tmp_path, row) / "trials" / row["id"]
    folder.mkdir(parents=True)
    save_weights(folder / "model.safetensors", build_model("digits-mlp", hidden=8))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    save_json(folder / "result.json", row | {"files": {"model.safetensors": digest}})
    choice = choose([tmp_path], 10)
    assert write_choice(choice, tmp_path / "out.safetensors").masks is None
    save_weights(folder / "model.safetensors", build_model("digits-mlp", hidden=8, seed=1))
    with pytest.raises(StorageError, match=r"model\.safetensors: does not hold what result\.json says"):
        write_choice(choice, tmp_path / "out.safetensors")
