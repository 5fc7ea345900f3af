import contextlib
import errno
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import secateur
from secateur.cli import main
from secateur.data import load_data
from secateur.experiments.commands import deployment
from secateur.measure.size import count_parameters
from secateur.models import build_model
from secateur.training.checkpoint import save_weights
from secateur.training.evaluate import evaluate


def secateur_command(*arguments, cwd="."):
    """Run the command line in this process, which has imported everything that it does."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    words = mock.patch.object(sys, "argv", ["secateur", *map(str, arguments)])
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), words:
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def test_the_main_job(tmp_path):
    """What a stranger does first: run a recipe, read the table, open the report."""
    command = [sys.executable, "-m", "secateur", "run", "quickstart", "--seeds", "0"]
    command += ["--set", "train.epochs=4", "--out", str(tmp_path / "qs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "retrained %" in done.stdout
    assert "97.99" in done.stdout or "98.00" in done.stdout  # the sparsity column of the last zeros
    assert "648,202 → 176,650 (3.67x smaller)" in done.stdout  # half of the units, beside the dense network
    assert "equal to the masked network to" in done.stdout
    results = json.loads((tmp_path / "qs" / "results.json").read_text())
    assert len(results["trials"]) == 6
    for row in results["trials"]:
        assert row["metrics"]["latency_ms"] > 0
        assert row["metrics"]["score_retrained"] >= row["metrics"]["score_pruned"] - 0.05
    assert (tmp_path / "qs" / "report.html").stat().st_size > 1_000_000
    assert (tmp_path / "qs" / "results.csv").exists()


def test_quick_answers_import_no_torch():
    code = (
        "import sys; sys.argv = ['secateur', 'list']\n"
        "from secateur.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "False False"
    words = ("quickstart", "mnist", "prune_to", "lenet-300-100", "magnitude", "per_layer", "trimmed", "cubic")
    for word in words:
        assert word in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines), "every entry has its line"


def test_version_and_help():
    assert secateur_command("--version").stdout.strip() == f"secateur {secateur.__version__}"
    for command in ("run", "report", "choose", "deploy", "list", "inspect", "prune"):
        assert command in secateur_command("--help").stdout


def test_prune_and_inspect_ones_own_checkpoint(tmp_path):
    model = build_model("digits-mlp", seed=3)
    save_weights(tmp_path / "in.safetensors", model)
    done = secateur_command(
        "prune", "--model", "digits-mlp", "--weights", "in.safetensors", "--sparsity", "0.9",
        "--out", "out.safetensors", "--masks", "masks.safetensors", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "90.00%" in done.stdout
    shown = secateur_command("inspect", "--model", "digits-mlp", "--weights", "out.safetensors", cwd=tmp_path)
    assert "non-zero 2,852" in shown.stdout  # 25,856 weights, a tenth of them left, and 266 biases
    pruned = build_model("digits-mlp")
    secateur.Masks.load(tmp_path / "masks.safetensors", pruned)
    from secateur.training.checkpoint import load_network

    load_network(tmp_path / "out.safetensors", pruned)
    kept = pruned.layers[0].weight != 0
    assert torch.equal(pruned.layers[0].weight[kept], model.layers[0].weight[kept])


def test_whole_units_go_and_the_smaller_network_is_read_back(tmp_path):
    """Trained weights in, a really smaller network out, by way of the options alone."""
    model = build_model("lenet-5", seed=3)
    save_weights(tmp_path / "in.safetensors", model)
    done = secateur_command(
        "prune", "--model", "lenet-5", "--weights", "in.safetensors", "--out", "small.safetensors",
        "--units", "--sparsity", "0.5", "--input-shape", "1,1,28,28", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "285 of 570 units removed" in done.stdout
    assert "equal to the masked network to" in done.stdout
    words = [line.split() for line in done.stdout.splitlines()]
    assert ["parameters", "431,080", "109,295"] in words
    assert ["multiply-adds", "2,293,000", "646,500"] in words
    assert "secateur.load(network, 'small.safetensors')" in done.stdout
    small = secateur.load(build_model("lenet-5"), tmp_path / "small.safetensors")
    assert count_parameters(small) == 109_295
    shown = secateur_command("inspect", "--model", "lenet-5", "--weights", "small.safetensors", cwd=tmp_path)
    assert "conv2.weight  Conv2d  25x10x5x5" in shown.stdout, shown.stderr


def test_inspect_measures_on_an_input_shape():
    done = secateur_command("inspect", "--model", "lenet-5", "--input-shape", "1,1,28,28")
    assert "multiply-adds 2,293,000" in done.stdout
    assert "peak memory" in done.stdout


def test_other_budgets_and_shrinkages(tmp_path):
    save_weights(tmp_path / "in.safetensors", build_model("digits-mlp"))
    done = secateur_command(
        "prune", "--model", "digits-mlp", "--weights", "in.safetensors", "--out", "o.safetensors",
        "--budget", "{name: threshold, threshold: 0.05}", "--shrinkage", "{name: trimmed, upper: 0.99}",
        "--exclude", "layers.2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "layers.2.weight" in done.stdout.split("note:")[-1]
    done = secateur_command(
        "prune", "--model", "digits-mlp", "--weights", "in.safetensors", "--out", "o.safetensors",
        "--criterion", "wanda", "--data", "digits", "--sparsity", "0.5", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


CHOICE = """
name: sizes
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 64}
train: {epochs: 6, optimizer: adam, lr: 3.0e-3, batch_size: 64}
methods:
  zeros: {steps: [prune: {budget: {name: global, sparsity: 0.95}}]}
  smaller:
    steps: [prune_to: {macs: 0.5}, retrain: {epochs: 2, lr: 2.0e-3}]
    sweep: {prune_to.macs: [0.6, 0.4]}
seeds: [0, 1]
"""


def test_choosing_a_network_and_loading_it(tmp_path):
    """A study run, a network chosen on validation, its file loaded by the lines that are printed."""
    (tmp_path / "sizes.yaml").write_text(CHOICE)
    done = secateur_command("run", "sizes.yaml", "--quiet", "--out", "sizes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cases = (
        (("--minimise", "macs", "--out", "one.safetensors"), "one.safetensors", "sc.load("),
        ((), "sizes/chosen.safetensors", "load_file("),
    )
    for options, file, loader in cases:
        done = secateur_command("choose", "sizes", "--accuracy-drop", "90", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert loader in done.stdout
        assert "secateur deploy sizes/trials/" in done.stdout
        network = "{name: digits-mlp, hidden: 64}"
        shown = secateur_command("inspect", "--model", network, "--weights", file, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        lines = done.stdout.partition("load it with\n")[2].splitlines()
        code = "\n".join(line.strip() for line in lines if line.startswith("  "))
        found: dict = {}
        with contextlib.chdir(tmp_path):
            exec(code, found)
        chosen = (tmp_path / file).read_bytes()
        rows = json.loads((tmp_path / "sizes" / "results.json").read_text())["trials"]
        folder = tmp_path / "sizes" / "trials"
        row = next(r for r in rows if (folder / r["id"] / "model.safetensors").read_bytes() == chosen)
        assert count_parameters(found["model"]) == row["metrics"]["parameters"]
        assert f"parameters {row['metrics']['parameters']:,}, non-zero" in shown.stdout
        assert f"seed {row['seed']}: the best of its 2 on validation" in done.stdout
        data = load_data("digits", validation=200)
        accuracy = evaluate(found["model"], data.validation).score
        final = "pruned" if row["method"] == "zeros" else "retrained"
        assert accuracy == row["metrics"][f"score_{final}_validation"]


PRUNE = ("prune", "--model", "lenet-5", "--weights", "w", "--out", "o", "--sparsity", "0.5")
ERRORS = [
    (("run", "quikstart"), "error: unknown recipe 'quikstart'; did you mean 'quickstart'"),
    (("run", "quickstart", "--set", "retrain"), "error: --set retrain: write it as key=value"),
    (("run", "quickstart", "--set", "retrain.epoch=1"), "unknown key 'epoch'; did you mean 'epochs'"),
    (("run", "quickstart", "--set", "train=[1"), "error: --set train: '[1' is not valid YAML"),
    (("run", "quickstart", "--seeds", "a"), "error: --seeds a: write whole numbers with commas"),
    (("run", "quickstart", "--set", "data.name=mnits"), "unknown data set 'mnits'; did you mean 'mnist'"),
    (("run", "quickstart", "--set", "model.name=lenet"), "unknown network 'lenet'"),
    (("run", "quickstart", "--set", "model.weights=no.safetensors"), "no.safetensors: no such file"),
    (("inspect", "--model", "lenet-5", "--input-shape", "1,2,3"), "does not run on example inputs (1, 2, 3)"),
    (("deploy", "no"), "/no: no such folder"),
    (("choose", "no", "--accuracy-drop", "1"), "error: no/results.json: no such file"),
    (
        ("choose", "no", "--accuracy-drop", "-1"),
        "error: --drop -1: it is in the score's unit",
    ),
    (
        ("choose", "no", "--accuracy-drop", "1", "--minimise", "size"),
        "error: --minimise size: one of bytes, latency, macs, parameters",
    ),
    (("prune", "--model", "lenet-5", "--weights", "w", "--out", "o"), "how much should go? give --sparsity"),
    (PRUNE, "w: no such file"),
    ((*PRUNE[:-1], "5"), "sparsity is 5.0; it is a share"),
    (("inspect", "--model", ""), "error: --model '': is empty; give a name"),
    (("inspect", "--model", "{hidden: 3}"), "error: --model: lacks 'name'"),
    (("inspect", "--model", "lenet-5", "--input-dtype", "int64"), "give --input-shape too"),
    (
        ("inspect", "--model", "lenet-5", "--input-shape", "1,1,28,28", "--input-dtype", "in64"),
        "error: --input-dtype in64: no such dtype; did you mean 'int64'?",
    ),
    (("run", "quickstart", "--set", "a..b=1"), "error: --set a..b: a part of the key is empty"),
    (("run", "quickstart", "--set", "train=!!python/name:os.system"), "no tag like !!python/name:os.system"),
    (("run", "quickstart", "--set", "train.lr=a\x1bb"), "unprintable character, U+001B"),
    (("run", "quickstart", "--set", "a\nb"), "error: --set 'a\\nb': write it as key=value"),
    (("run", "quickstart", "--set", "name=../x"), "name is '../x'; the folder of the results has it too"),
    (("run", "quickstart", "--set", "threads=100000000"), "threads is 100000000"),
    (("run", "quickstart", "--seeds", "9223372036854775808"), "a whole number with more than 63 bits"),
    (("run", "quickstart", "--seeds", "-1"), "seeds.0 is -1"),
    (("run", "quickstart", "--seeds", "\u0663"), "write whole numbers with commas"),
    (("run", "quickstart", "--seeds", "9" * 5000), "write whole numbers with commas"),
    (("run", "quickstart", "--trials", "5"), "trials go with sampler tpe"),
    (("inspect", "--model", "[" * 9000), "error: --model: '["),
    (("inspect", "--model", "{name: lenet-5, classes: true}"), "classes is True; it is a whole number"),
    (
        ("inspect", "--model", "lenet-5", "--input-shape", "99999999999,9"),
        "over 134,217,728 numbers",
    ),
    (("inspect", "--model", "lenet-5", "--input-shape", "-1,9"), "--input-shape -1,9: sizes count from 1"),
    (("inspect", "--model", "lenet-5", "--input-shape", "1,,9"), "write whole numbers with commas"),
    (("inspect", "--model", "lenet-5", "--weights", "."), "error: .: is a folder, not a file"),
    (("inspect", "--model", "lenet-5", "--weights", "a\nb"), "error: 'a\\nb': no such file"),
    ((*PRUNE, "--budget", "{name: global, sparsity: true}", "--sparsity", "nan"), "sparsity is nan"),
    ((*PRUNE[:-2], "--budget", "{name: global, sparsity: true}"), "sparsity is True"),
    ((*PRUNE, "--round-to", "99999999999999999999"), "round_to is 99999999999999999999"),
    ((*PRUNE, "--out", "w"), "error: --out w: is the file of --weights; give it one of its own"),
    ((*PRUNE, "--masks", "./w"), "error: --masks w: is the file of --weights"),
    ((*PRUNE, "--masks", "./o"), "error: --masks o: is the file of --out"),
    ((*PRUNE, "--out", "."), "error: --out .: is a folder; give a file in it"),
    (
        (*PRUNE, "--units"),
        "error: --units runs the network: give --input-shape, like 1,3,32,32, --inputs or --data",
    ),
    ((*PRUNE, "--refit"), "error: --refit: single weights are pruned, and nothing is refitted"),
    ((*PRUNE, "--no-refit"), "error: --no-refit: single weights are pruned"),
    (
        (*PRUNE, "--units", "--refit", "--input-shape", "1,1,28,28"),
        "error: --refit reads examples: give --data",
    ),
    ((*PRUNE, "--alike"), "round_to, min_kept and alike count whole units: add --units"),
    ((*PRUNE, "--criterion", "l2_norm"), "L2Norm ranks whole units: add --units"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_and_status_two(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in printed
    assert printed.startswith("error: ")
    assert len(printed.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("result*.json"))


@pytest.fixture
def received(tmp_path, monkeypatch):
    """A study in a folder that takes no file, with one trial that names somebody's code."""
    study = tmp_path / "received"
    trial = study / "trials" / "abc"
    trial.mkdir(parents=True)
    row = {
        "id": "abc",
        "method": "[red]m[/red]\x1b[2J",
        "state": "finished",
        "point": {},
        "seed": 0,
        "metrics": {"score_dense_validation": 0.9, "score_pruned_validation": 0.9, "bytes_sparse": 5},
        "layers": [],
        "curves": {},
        "epochs": {},
        "classes": 10,
        "config": {
            "data": {"name": "digits"},
            "model": {"name": "os:system", "command": f"touch {tmp_path / 'ran'}"},
            "steps": [],
        },
    }
    (study / "results.json").write_text(json.dumps({"schema": 2, "recipe": "r", "trials": [row]}))
    (trial / "result.json").write_text(json.dumps(row))
    save_weights(trial / "model.safetensors", build_model("digits-mlp"))
    whole = tempfile.TemporaryFile

    def read_only(*args, dir=None, **kwargs):
        if study in (dir, *Path(dir or "/").parents):
            raise OSError(errno.EROFS, "Read-only file system")
        return whole(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    yield study
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", ["report", "choose"])
def test_a_read_only_folder_names_the_option(received, tmp_path, capsys, monkeypatch, command):
    more = ["--accuracy-drop", "1"] if command == "choose" else []
    monkeypatch.setattr(sys, "argv", ["secateur", command, str(received), *more])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.endswith("cannot be written (Read-only file system); name another place with --out\n")
    assert error.count("\n") == 1
    out = tmp_path / "elsewhere" / "file"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--out", str(out)])
    with contextlib.suppress(SystemExit):
        main()
    said = capsys.readouterr()
    assert said.err == ""
    assert out.is_file()
    assert "\x1b" not in said.out
    assert b"\x1b[2J" not in out.read_bytes()


def test_a_trial_that_names_code_is_refused_in_one_line(received, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["secateur", "deploy", str(received / "trials" / "abc")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "result.json: names the network 'os:system', none of secateur's own" in error
    assert "give --model package.module:function" in error
    assert error.count("\n") == 1
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--model", "digits-mlp", "--out", str(tmp_path / "out")])
    asked = {}
    monkeypatch.setattr(deployment, "make_formats", lambda making: asked.update(name=making.source.model))
    monkeypatch.setattr(deployment, "measure_formats", lambda making, seconds: [])
    monkeypatch.setattr(deployment, "_differences", lambda trial, rows: [])
    with contextlib.suppress(SystemExit):
        main()
    said = capsys.readouterr()
    assert asked == {"name": "digits-mlp"}
    assert "no report: " in said.err
    assert (tmp_path / "out" / "deploy.json").exists()
