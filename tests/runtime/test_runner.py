"""Running packed programs: engines, memory, checks of inputs and of programs, the command line."""

from __future__ import annotations

import copy
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur.deploy.packing import pack
from secateur.deploy.program.export import Program, program_of
from secateur.runtime import runner
from secateur.runtime.operators import OPERATORS, Rows
from secateur.runtime.runner import Network, ProgramError, execute, main


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def packed(program: Program, path):
    pack(program.tensors, path, metadata={"program": program.graph})
    return path


def small() -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)).eval()
    return model, program_of(model, numbers(2, 2, 5, 4))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return packed(small()[1], tmp_path_factory.mktemp("packed") / "model.secateur")


X = numbers(3, 2, 5, 4).numpy()


@torch.no_grad()
def wanted() -> np.ndarray:
    return small()[0](torch.from_numpy(X)).numpy()


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(
        np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    )


# -- engines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "numpy", "scipy"])
def test_engines_from_a_path_and_from_bytes(file, engine):
    assert close(Network(file, engine).run(X), wanted())
    assert close(Network(str(file), engine).run(X), wanted())
    assert close(Network(file.read_bytes(), engine).run(X), wanted())


def test_an_unknown_engine(file):
    with pytest.raises(ProgramError, match="auto, numpy, scipy, compiled"):
        Network(file, "cuda")


def test_auto_compiles_after_some_calls(file, monkeypatch):
    made = []

    def compiled(graph, tensors):
        made.append(graph)
        return lambda inputs: [np.full((len(inputs[0]), 4), 7, np.float32)]

    monkeypatch.setattr(runner, "_compiled", compiled)
    network = Network(file, after=2)
    assert close(network.run(X), wanted())
    assert close(network.run(X), wanted())
    assert not made
    assert (network.run(X) == 7).all()
    assert (network.run(X) == 7).all()
    assert len(made) == 1


def test_auto_stays_with_numpy_where_nothing_compiles(file, monkeypatch):
    def broken(graph, tensors):
        raise ProgramError("no compiler")

    monkeypatch.setattr(runner, "_compiled", broken)
    network = Network(file, after=0)
    assert close(network.run(X), wanted())
    assert close(network.run(X), wanted())
    with pytest.raises(ProgramError, match="no compiler"):
        Network(file, "compiled")


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 20])
def test_a_sparse_linear_layer_in_numpy(batch, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50, bias=False), nn.ReLU(), nn.Linear(50, 40)).eval()
    with torch.no_grad():
        model[0].weight[torch.rand(50, 60) < 0.95] = 0
        model[0].weight[[0, 17, 49]] = 0
        model[2].weight.zero_()
    program = program_of(model, numbers(2, 60))
    weight = model[0].weight.detach().numpy()
    rows = Rows((50, 60), np.flatnonzero(weight), weight[weight != 0])
    x = numbers(batch, 60)
    with torch.no_grad():
        expected = model(x).numpy()
        assert np.allclose(rows.times(x.numpy()), model[0](x).numpy(), atol=1e-6)
    assert np.array_equal(rows.dense(), weight)
    for engine in ("numpy", "scipy"):
        assert close(Network(packed(program, tmp_path / "model"), engine).run(x.numpy()), expected)


# -- files of earlier versions --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "scipy", "compiled"])
def test_a_file_that_an_earlier_version_wrote_runs(engine):
    """Written by 0.1.0 before its runtime was a package of its own."""
    folder = Path(__file__).parent / "earlier"
    x, y = (np.load(folder / f"check_{kind}.npy") for kind in ("input", "output"))
    assert close(Network(folder / "model.secateur", engine).run(x), y)
    assert main(str(folder), ["--check", "--engine", engine]) == 0


# -- memory --------------------------------------------------------------------------------------------


def test_values_are_dropped_when_their_last_reader_has_run():
    """A chain of thirty layers never holds more than a few of its values."""
    nodes = [
        {
            "op": "add",
            "inputs": [f"v{i}"],
            "output": f"v{i + 1}",
            "shape": [1000],
            "scalar": 1.0,
            "reversed": False,
        }
        for i in range(30)
    ]
    spec = {"name": "v0", "shape": [None, 1000], "dtype": "float32"}
    graph = {"version": 1, "inputs": [spec], "outputs": ["v30"], "nodes": nodes}
    x = np.zeros((250, 1000), np.float32)
    execute(graph, {}, [x])
    tracemalloc.start()
    found = execute(graph, {}, [x])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found[0] == 30).all()
    assert peak < 2.2 * x.nbytes


def test_a_convolution_unfolds_a_block_at_a_time():
    conv = {"kernel": [5, 5], "stride": [1, 1], "padding": [2, 2], "dilation": [1, 1], "groups": 1}
    node = {"op": "conv", "inputs": ["x"], "output": "y", "shape": [8, 64, 64], "weight": "w", "bias": None}
    x, weight = np.ones((8, 16, 64, 64), np.float32), np.ones((8, 16, 5, 5), np.float32)
    tracemalloc.start()
    OPERATORS["conv"]({**node, **conv}, [x], {"w": weight})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * x.nbytes  # unfolded whole it would be 25 times x


def test_outputs_that_are_read_later_and_inputs_read_twice():
    class Twice(nn.Module):
        def forward(self, x):
            y = x + 1.0
            return y, (x * y).relu(), x - y

    program = program_of(Twice(), numbers(2, 3))
    x = numbers(4, 3).numpy()
    first, second, third = execute(program.graph, {}, [x])
    assert np.allclose(first, x + 1)
    assert np.allclose(second, np.maximum(x * (x + 1), 0), atol=1e-6)
    assert np.allclose(third, -1)


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            (X[0],),
            r"'input' is \(2, 5, 4\) of float32; the network reads input: \(batch, 2, 5, 4\) of float32",
        ),
        ((X[:, :, :, :3],), r"\(3, 2, 5, 3\)"),
        ((X.astype(np.float64),), "of float64; the network reads"),
        ((X.tolist(),), "is list; the network reads"),
        ((X, X), "2 inputs given; the network reads 1"),
        ((), "0 inputs given"),
    ],
)
def test_wrong_inputs(file, inputs, said):
    with pytest.raises(ProgramError, match=said):
        Network(file).run(*inputs)


def test_inputs_of_different_batch_sizes():
    class Sum(nn.Module):
        def forward(self, x, y):
            return x + y

    program = program_of(Sum(), (numbers(2, 3), numbers(2, 3)))
    with pytest.raises(ProgramError, match=r"batch sizes: \[2, 1\]"):
        execute(program.graph, {}, [numbers(2, 3).numpy(), numbers(1, 3).numpy()])


def broken(change) -> str:
    program = small()[1]
    graph, tensors = copy.deepcopy(program.graph), dict(program.arrays())
    change(graph, tensors)
    with pytest.raises(ProgramError) as caught:
        execute(graph, tensors, [X])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_broken_programs():
    assert "version 2" in broken(lambda g, t: g.update(version=2))
    assert "unknown operator 'eval'" in broken(lambda g, t: g["nodes"][0].update(op="eval"))
    assert "'0.weight'" in broken(lambda g, t: t.pop("0.weight"))
    assert "'nowhere'" in broken(lambda g, t: g["nodes"][1].update(inputs=["nowhere"]))
    assert "input or an output" in broken(lambda g, t: g.update(outputs=["nowhere"]))
    assert "two values" in broken(lambda g, t: g["nodes"][1].update(output="input"))
    assert "cannot be computed" in broken(lambda g, t: g["nodes"][0].update(padding=[1 << 40, 0]))
    assert "malformed" in broken(lambda g, t: g.pop("nodes"))
    assert "malformed" in broken(lambda g, t: g.update(nodes=[7]))
    assert "cannot be computed" in broken(lambda g, t: g["nodes"][0].pop("stride"))
    assert "cannot be computed" in broken(lambda g, t: g["nodes"][0].update(kernel=[99, 99]))
    assert "cannot be computed" in broken(lambda g, t: g["nodes"][1].update(shape=[61]))
    assert "not (3, 5, 9)" in broken(lambda g, t: g["nodes"][0].update(shape=[3, 5, 9]))


def test_a_file_without_a_program(tmp_path):
    pack({"w": torch.ones(3)}, tmp_path / "weights")
    with pytest.raises(ProgramError, match="no program"):
        Network(tmp_path / "weights")


# -- the command line ----------------------------------------------------------------------------------


@pytest.fixture
def shell(file, tmp_path):
    """A folder as ``run.py`` finds it, and a call of main in it."""
    (tmp_path / "model.secateur").write_bytes(file.read_bytes())
    np.save(tmp_path / "check_input.npy", X)
    np.save(tmp_path / "check_output.npy", wanted())
    return lambda *arguments: main(str(tmp_path), [str(argument) for argument in arguments])


def test_run_writes_an_output(shell, tmp_path):
    np.save(tmp_path / "x.npy", X)
    assert shell("--input", tmp_path / "x.npy", "--output", tmp_path / "y") == 0
    assert close(np.load(tmp_path / "y"), wanted())


class Two(nn.Module):
    def forward(self, x, scale):
        return x.relu() * 2 + scale


@pytest.mark.parametrize("names", [("arg0", "arg1"), ("arg0", "scale"), ("scale", "x"), ("x", "arg1")])
def test_one_archive_holds_all_inputs(tmp_path, names):
    x, scale = numbers(3, 4), numbers(3, 4) * 5
    packed(program_of(Two(), (x, scale)), tmp_path / "model.secateur")
    arrays = {"arg0": x, "x": x, "arg1": scale, "scale": scale}
    np.savez_compressed(tmp_path / "in.npz", **{name: arrays[name].numpy() for name in names})
    assert main(str(tmp_path), ["--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "y")]) == 0
    assert close(np.load(tmp_path / "y"), Two()(x, scale).numpy())


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"arg0": X}, "in.npz: holds arg0; the network reads x: (batch, 4) of float32; scale: "),
        (
            {"arg0": X, "scal": X},
            "holds arg0, scal; the network reads .*arrays of these names, or arg0, arg1",
        ),
        ({"arg0": X, "x": X}, "holds arg0, x; the network reads"),
        ({"arg0": X, "arg1": X, "scale": X}, "holds arg0, arg1, scale; the network reads"),
        ({}, "holds no array; the network reads"),
        ({"x": np.array([object()]), "scale": X}, "in.npz: cannot be read as a .npz file: Object arrays"),
        (b"PK\x03\x04no archive", "in.npz: cannot be read as a .npz file: "),
        (b"", "in.npz: cannot be read as a .npz file: "),
    ],
)
def test_archives_that_do_not_fit_are_one_line(tmp_path, capsys, arrays, says):
    packed(program_of(Two(), (numbers(3, 4), numbers(3, 4))), tmp_path / "model.secateur")
    if isinstance(arrays, bytes):
        (tmp_path / "in.npz").write_bytes(arrays)
    else:
        np.savez(tmp_path / "in.npz", **arrays)
    assert main(str(tmp_path), ["--input", str(tmp_path / "in.npz")]) == 1
    said = capsys.readouterr().err
    assert re.search(says.replace("(", r"\(").replace(")", r"\)"), said)
    assert said.strip().count("\n") == 0


def test_run_prints_an_output(shell, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    assert shell("--input", tmp_path / "x.npy", "--engine", "scipy") == 0
    assert capsys.readouterr().out.count("[") == 4


def test_check(shell, tmp_path, capsys):
    assert shell("--check") == 0
    assert "OK" in capsys.readouterr().out
    np.save(tmp_path / "check_output.npy", wanted() * 1.01)
    assert shell("--check") == 1
    assert "FAILED" in capsys.readouterr().out
    np.save(tmp_path / "check_output.npy", wanted()[:, :2])
    assert shell("--check") == 1
    np.save(tmp_path / "check_output.npy", np.full_like(wanted(), np.nan))
    assert shell("--check") == 1
    (tmp_path / "check_output.npy").unlink()
    assert shell("--check") == 1
    assert "check_output.npy" in capsys.readouterr().err


def test_time(shell, capsys):
    assert shell("--time", 3) == 0
    assert "ms median" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--time", 0), "--time is 0; it counts from 1"),
        (("--time", -2), "it counts from 1"),
        (("--check", "--time", 3), "--check reads the inputs beside this file"),
        (("--time", 3, "--output", "y.npy"), "--time prints times"),
        ((), "one of --input, --check and --time is needed"),
    ],
)
def test_options_that_do_not_go_together(shell, capsys, arguments, says):
    with pytest.raises(SystemExit):
        shell(*arguments)
    assert says in capsys.readouterr().err


def test_errors_are_one_line_and_an_exit_code(shell, tmp_path, capsys):
    (tmp_path / "x.npy").write_bytes(b"no array")
    assert shell("--input", tmp_path / "x.npy") == 1
    assert "cannot be read as a .npy file" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.array([object()]), allow_pickle=True)
    assert shell("--input", tmp_path / "x.npy") == 1
    np.save(tmp_path / "x.npy", X[:, :1])
    assert shell("--input", tmp_path / "x.npy") == 1
    assert capsys.readouterr().err.strip().count("\n") == 1
    np.save(tmp_path / "x.npy", X)
    assert shell("--input", tmp_path / "x.npy", "--output", tmp_path / "a", tmp_path / "b") == 1
    assert shell("--check", "--model", tmp_path / "nothing") == 1
    (tmp_path / "model.secateur").write_bytes(b"secateur?")
    assert shell("--check") == 1
    with pytest.raises(SystemExit):
        shell()
