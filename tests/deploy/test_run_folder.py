"""A folder that runs without PyTorch: its files, its check, and what it costs beside PyTorch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from networks.drawn import Cancelling, numbers, stirred
from networks.packaged import network
from secateur.deploy import folder as folders
from secateur.deploy.folder import PACKAGE, write_folder
from secateur.errors import ModelError, StorageError
from secateur.models import build_model
from secateur.runtime.unpacking import read

COST = """
status = open("/proc/self/status").read()
import time
print(time.process_time(), int(status.split("VmHWM:")[1].split()[0]))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> str:
    """The Python of a virtual environment that holds numpy and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for name in ("numpy", "numpy.libs"):
        source = Path(np.__file__).parents[1] / name
        if source.exists():
            (packages / name).symlink_to(source)
    python = str(Path(sysconfig.get_path("scripts", "venv", {"base": str(folder)})) / "python")
    for package in ("torch", "scipy", "numba", "secateur", "safetensors"):
        assert run(f"import {package}", python=python).returncode, package
    return python


def run(code: str, *arguments, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-I", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_file(
    path, *arguments, after: str = "", python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with a line of Python after it."""
    code = (
        "import sys\nsys.argv = sys.argv[1:]\ncode = 0\n"
        "scope = dict(__name__='__main__', __file__=sys.argv[0])\n"
        "try:\n    exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'), scope)\n"
        f"except SystemExit as error:\n    code = error.code\n{after}\nsys.exit(code)"
    )
    return run(code, path, *arguments, python=python)


def small() -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20)).eval(), (40,)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model, shape = network("resnet-20", 0.9)
    return write_folder(model, numbers(2, *shape), tmp_path_factory.mktemp("out") / "resnet"), model, shape


def test_a_folder(written):
    folder, _, _ = written
    names = ["check_input.npy", "check_output.npy", "model.secateur", "run.py", PACKAGE]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in folder.parent.iterdir()] == ["resnet"]


def test_the_folder_runs_where_nothing_but_numpy_is(written, tmp_path, bare_python):
    folder, model, shape = written
    x = numbers(5, *shape, seed=3)
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    done = run_file(folder / "run.py", *arguments, python=bare_python)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = model(x).numpy()
    assert np.abs(np.load(tmp_path / "y.npy") - wanted).max() < 1e-5 * np.abs(wanted).max()
    checked = run_file(folder / "run.py", "--check", python=bare_python)
    assert checked.returncode == 0, checked.stderr
    assert re.fullmatch(r"max relative error \S+ on a batch of 2: OK\n", checked.stdout)
    refused = run_file(folder / "run.py", "--check", "--engine", "scipy", python=bare_python)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("the scipy engine needs scipy: pip install scipy")


def test_the_file_is_a_module_too(written, bare_python):
    folder, _, _ = written
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, run
print(run.Network(sys.argv[1] + "/model.secateur").run(np.zeros((3, 3, 32, 32), np.float32)).shape)
"""
    done = run(code, folder, python=bare_python)
    assert done.stdout == "(3, 10)\n", done.stderr


def test_only_numpy_and_the_standard_library_are_imported(written):
    folder, _, _ = written
    after = "print(*{name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    done = run_file(folder / "run.py", "--check", after=after)
    loaded = {re.sub(f"{PACKAGE}_.*", PACKAGE, name) for name in done.stdout.splitlines()[-1].split()}
    bare = [sys.executable, "-c", "import sys; print(*{name.split('.')[0] for name in sys.modules})"]
    before = subprocess.run(bare, check=True, capture_output=True, text=True).stdout.split()  # by site, say
    assert loaded - set(before) == {"numpy", PACKAGE}


def test_what_lies_beside_it_is_not_run(written, tmp_path, bare_python):
    """From any working folder, with modules of everybody's names there and beside the package's own."""
    folder = Path(shutil.copytree(written[0], tmp_path / "net"))
    place = tmp_path / "working"
    place.mkdir()
    for name in ("numpy", "runner", "unpacking", "json", PACKAGE):
        for where in (place, folder):
            (where / f"{name}.py").write_text(f"raise SystemExit('{name}.py was run')\n")
    command = [bare_python, "-I", str(folder / "run.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout


def test_folders_of_one_process_share_their_code_where_it_is_the_same(written, tmp_path, bare_python):
    other = Path(shutil.copytree(written[0], tmp_path / "other"))
    model, shape = small()
    mine = write_folder(model, numbers(2, *shape), tmp_path / "mine")
    runner = other / PACKAGE / "runner.py"
    runner.write_text(runner.read_text().replace("class Network:", "class Network:\n    changed = True\n"))
    text = (other / "run.py").read_text()
    (other / "run.py").write_text(re.sub(f"{PACKAGE}_[0-9a-f]+", f"{PACKAGE}_0", text))
    code = """
import runpy, sys
a, b, c = (runpy.run_path(path + "/run.py")["Network"] for path in sys.argv[1:])
print(a is b, a is c, hasattr(a, "changed"), c.changed)
"""
    done = run(code, written[0], mine, other, python=bare_python)
    assert done.stdout == "True False False True\n", done.stderr


def test_modules_are_kept_compiled(written, tmp_path):
    folder = Path(shutil.copytree(written[0], tmp_path / "net"))
    subprocess.run([sys.executable, "-I", str(folder / "run.py"), "--check"], check=True, capture_output=True)
    made = {path.name.partition(".")[0] for path in (folder / PACKAGE / "__pycache__").glob("*.pyc")}
    assert {"runner", "unpacking", "operators", "activations"} <= made
    assert "kernels" not in made, "who asked for numpy reads no kernels"


def test_a_folder_of_an_earlier_version_is_replaced(tmp_path):
    model, shape = small()
    folder = write_folder(model, numbers(1, *shape), tmp_path / "a")
    shutil.rmtree(folder / PACKAGE)
    (folder / "kernels.py").write_text("")
    write_folder(model, numbers(1, *shape), folder)
    assert not (folder / "kernels.py").exists()


def test_several_inputs_and_outputs(tmp_path, bare_python):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(6, 5)

        def forward(self, x, y):
            return self.f(x) * y, x

    with pytest.raises(ModelError):
        write_folder(Two(), (numbers(2, 6), numbers(1, 5)), tmp_path / "two")
    assert not list(tmp_path.iterdir())
    folder = write_folder(Two(), (numbers(2, 6), numbers(2, 5)), tmp_path / "two")
    assert (folder / "check_input_2.npy").exists()
    assert (folder / "check_output_2.npy").exists()
    assert run_file(folder / "run.py", "--check", python=bare_python).returncode == 0


def test_a_network_that_rounds_much(tmp_path, bare_python):
    """What it rounds itself is how far off its folder may be, there too; who knows better says so."""
    x = numbers(2, 512)
    folder = write_folder(Cancelling(512), x, tmp_path / "a")
    assert 1e-4 < read(folder / "model.secateur")[1]["tolerance"] <= 0.01
    assert run_file(folder / "run.py", "--check", python=bare_python).returncode == 0
    wrong = np.load(folder / "check_output.npy") * np.float32(1.02)
    np.save(folder / "check_output.npy", wrong)
    failed = run_file(folder / "run.py", "--check", python=bare_python)
    assert failed.stdout.strip().endswith("FAILED")
    with pytest.raises(ModelError, match=r"off by \S+ \(relative; up to 1.0e-09 is right\)"):
        write_folder(Cancelling(512), x, tmp_path / "b", tolerance=1e-9)
    model, shape = small()
    folder = write_folder(model, numbers(2, *shape), tmp_path / "c")
    assert "tolerance" not in read(folder / "model.secateur")[1]


def test_other_check_inputs(tmp_path):
    model, shape = small()
    folder = write_folder(model, numbers(2, *shape), tmp_path / "a", check_inputs=numbers(7, *shape))
    assert np.load(folder / "check_input.npy").shape == (7, *shape)
    assert np.load(folder / "check_output.npy").shape == (7, 20)


@pytest.mark.parametrize("values", ["float16", 16])
def test_values_that_lose_something(tmp_path, bare_python, values):
    model, shape = small()
    x = numbers(4, *shape)
    folder = write_folder(model, x, tmp_path / "a", values=values)
    done = run_file(folder / "run.py", "--check", python=bare_python)
    assert done.returncode == 0, done.stderr
    said = re.search(r"packing moved the network's outputs by (\S+)\): OK", done.stdout)
    assert said
    with torch.no_grad():
        wanted = model(x).numpy()
    moved = np.abs(np.load(folder / "check_output.npy") - wanted).max() / np.abs(wanted).max()
    assert 1e-6 < float(said[1]) < 0.3
    assert float(said[1]) == pytest.approx(moved, rel=0.1)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    model, shape = small()
    folder = write_folder(model, numbers(1, *shape), tmp_path / "a")
    first = (folder / "check_input.npy").read_bytes()
    write_folder(model, numbers(1, *shape, seed=1), folder)
    second = (folder / "check_input.npy").read_bytes()
    assert first != second
    monkeypatch.setattr(folders, "_RUN", "raise SystemExit('broken')")
    with pytest.raises(ModelError, match="process of its own: broken"):
        write_folder(model, numbers(1, *shape, seed=2), folder)
    assert (folder / "check_input.npy").read_bytes() == second
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    model, shape = small()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        write_folder(model, numbers(1, *shape), tmp_path)
    with pytest.raises(StorageError, match=r"notes\.txt"):
        write_folder(model, numbers(1, *shape), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_model_that_has_no_program_writes_nothing(tmp_path):
    with pytest.raises(ModelError, match="celu"):
        write_folder(nn.Sequential(nn.Linear(6, 5), nn.CELU()), numbers(2, 6), tmp_path / "new" / "a")
    assert not list(tmp_path.iterdir())


# -- what it costs -------------------------------------------------------------------------------------

TORCH = """
import sys, torch
from torch import nn
from safetensors.torch import load_file
widths = [784, 1000, 1000, 500, 200, 10]
with torch.device("meta"):
    layers = [nn.Linear(i, o) for i, o in zip(widths, widths[1:])]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
model.load_state_dict(load_file(sys.argv[1]), assign=True)
torch.set_num_threads(1)
with torch.no_grad():
    model.eval()(torch.zeros(1, 784))
"""


def test_one_inference_costs_a_fraction_of_what_pytorch_takes(tmp_path, bare_python, capsys):
    """Import, load and one inference of a 95 % sparse network, ours where PyTorch is not installed."""
    layers = stirred(build_model("fashion-mlp"), 0.95).layers
    parts = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
    model = nn.Sequential(*parts).eval()
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.bias = nn.Parameter(torch.zeros(layer.out_features))
    save_file(model.state_dict(), str(tmp_path / "model.safetensors"))
    folder = write_folder(model, numbers(1, 784), tmp_path / "mlp")
    arguments = ("--input", folder / "check_input.npy", "--output", tmp_path / "y.npy")

    def cost(call) -> tuple[float, float]:
        found = [tuple(map(float, call().stdout.split())) for _ in range(2)]
        return min(seconds for seconds, _ in found), min(size for _, size in found) / 1024

    ours = cost(lambda: run_file(folder / "run.py", *arguments, after=COST, python=bare_python))
    theirs = cost(lambda: run(TORCH + COST, tmp_path / "model.safetensors"))
    with capsys.disabled():
        print(f"\nrun.py {ours[0]:.3f} s, {ours[1]:.1f} MB; PyTorch {theirs[0]:.3f} s, {theirs[1]:.1f} MB")
    assert ours[0] < theirs[0] / 4
    assert ours[1] < theirs[1] / 5


@pytest.mark.slow  # the kernels are compiled anew
def test_the_compiled_engine_beside_run_py(tmp_path):
    model, x = build_model("lenet-5").eval(), torch.randn(3, 1, 28, 28)
    folder = write_folder(model, x, tmp_path / "net")
    command = [sys.executable, "-I", str(folder / "run.py"), "--check", "--engine", "compiled"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout


@pytest.mark.slow  # the kernels are compiled anew, twice
@pytest.mark.parametrize("home", [True, False])
def test_the_compiled_engine_where_nothing_can_be_kept_in_the_folder(tmp_path, home):
    """Then the machine code goes to the user's cache, or is not kept."""
    model, shape = small()
    folder = write_folder(model, numbers(3, *shape), tmp_path / "net")
    shutil.rmtree(folder / PACKAGE / "__pycache__")
    (folder / PACKAGE / "__pycache__").write_text("no folder: a root user writes to read-only ones too")
    (tmp_path / "home").mkdir()
    place = tmp_path / "home" if home else Path("/dev/null/nowhere")
    command = [sys.executable, "-I", str(folder / "run.py"), "--check", "--engine", "compiled"]
    named = {"HOME": str(place), "XDG_CACHE_HOME": str(place / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **named})
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout
    assert bool(list((tmp_path / "home").rglob("*.nbi"))) == home
