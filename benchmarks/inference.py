"""How fast pruned networks run: every engine on the same networks and inputs, in turn, in one run.

Networks are trained here (or read from --folder, where they are kept), pruned over all layers, retrained with
the zeros held, and timed on test images. All engines run on one thread; what is compared is processor time,
each round timing every engine once; printed are the dense network's median over the engine's, and the
quartiles of that ratio over the rounds.

    torch          the dense network in eager mode, under torch.inference_mode
    torch.compile  the same, compiled (inductor)
    ort, ort int8  onnxruntime: float32, and static int8 calibrated on training images
    torch csr      every Linear layer as torch.sparse.mm; scipy: as scipy CSR, one feature a row
    sparsify       secateur.sparsify: each layer by the engine that was fastest for it
    compiled       the whole network as one compiled call (the runner's)
    halved ort     half of the channels removed by compact, in onnxruntime
    deepsparse     DeepSparse 1.8, in the Python that --deepsparse names; timed in its own process, beside
                   onnxruntime there

    python benchmarks/inference.py --networks fashion-mlp --batches 1 64 1024
    python benchmarks/inference.py --networks resnet-20 vgg-16-bn --sparsities 0.9 0.95 --batches 1 16
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import secateur as sc
from secateur.data import load_data
from secateur.data.dataset import Dataset
from secateur.deploy.onnx import export_onnx, session
from secateur.deploy.program.export import program_of
from secateur.deploy.sparse import sparsify
from secateur.deploy.sparse_layers import SparseLayer
from secateur.models import build_model
from secateur.runtime.planning import Compiled
from secateur.storage import save_json
from secateur.training.evaluate import evaluate
from secateur.training.fit import fit
from secateur.training.settings import Training

# S4's network reads pixels over 255, as its authors': zeros stay zeros.
RAW = {"fashion-mnist": {"normalise": False}}
NETWORKS: dict[str, tuple[str, dict[str, Any], Training]] = {
    "fashion-mlp": ("fashion-mnist", {}, Training(epochs=8, lr=1e-3, lr_schedule="cosine")),
    "resnet-20": (
        "cifar10",
        {"shortcut": "pad"},
        Training(epochs=6, optimizer="sgd", lr=0.1, lr_schedule="onecycle", weight_decay=5e-4, flip=True),
    ),
    "vgg-16-bn": (
        "cifar10",
        {"width": 0.25},
        Training(epochs=6, optimizer="sgd", lr=0.1, lr_schedule="onecycle", weight_decay=5e-4, flip=True),
    ),
}
Engine = Callable[[], Any]


def trained(
    name: str, data: Dataset, folder: Path, sparsity: float, epochs: int | None
) -> tuple[nn.Module, float]:
    """Return the network with this share of its weights gone, and its test accuracy; kept in ``folder``."""
    _, options, settings = NETWORKS[name]
    settings = settings if epochs is None else settings.with_epochs(epochs)
    path = folder / f"{name}-{sparsity:g}.safetensors"
    model = build_model(name, seed=0, **options)
    if path.exists():
        sc.load(model, path)
    elif not sparsity:
        fit(model, data.train, data.validation, settings, seed=0)
        sc.save(model, path)
    else:
        model, _ = trained(name, data, folder, 0.0, epochs)
        masks = sc.prune(model, sc.Magnitude(), sc.Global(sparsity))
        again = settings.with_epochs(max(1, settings.epochs // 2))
        fit(model, data.train, data.validation, again, seed=1, masks=masks)
        sc.save(model, path)
    model = model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return model, evaluate(model, data.test).score


def layers_by(model: nn.Module, engine: str) -> nn.Module:
    """Return the network with every Linear layer in one engine."""
    import copy

    made = copy.deepcopy(model)
    for path, module in list(made.named_modules()):
        if type(module) is nn.Linear:
            parent, _, leaf = path.rpartition(".")
            setattr(made.get_submodule(parent), leaf, SparseLayer(module, engine))
    return made


def engines_for(
    model: nn.Module, dense: nn.Module, x: torch.Tensor, data: Dataset, folder: Path
) -> dict[str, Engine]:
    """Return what to time: a call each, on the same inputs."""
    linear = any(type(m) is nn.Linear and m.weight.numel() > 10_000 for m in model.modules())
    convs = any(isinstance(m, nn.Conv2d) for m in model.modules())
    wanted = model(x)
    array = x.numpy()
    found: dict[str, Engine] = {"torch": lambda: model(x)}
    compiled = torch.compile(model)
    try:
        compiled(x)
        found["torch.compile"] = lambda: compiled(x)
    except Exception as error:
        print(f"torch.compile: {str(error).splitlines()[0]}")
    calibration = data.train.inputs[:256]
    for name, options in (("ort", {}), ("ort int8", {"int8": True, "data": [calibration]})):
        file = folder / f"{name.replace(' ', '-')}.onnx"
        export_onnx(model, x[:3] if len(x) >= 3 else x, file, **options)
        loaded = session(file)
        feed = {loaded.get_inputs()[0].name: array}
        found[name] = lambda loaded=loaded, feed=feed: loaded.run(None, feed)
    if linear and not convs:
        for name in ("torch csr", "scipy"):
            found[name] = partial(layers_by(model, name), x)
    sparse, table = sparsify(model, x)
    print(table)
    found["sparsify"] = lambda: sparse(x)
    program = program_of(model, x)
    runner = Compiled(program.graph, program.arrays())
    found["compiled"] = lambda: runner([array])[0]
    if convs:
        halved = halved_network(dense, x)
        export_onnx(halved, x[:3] if len(x) >= 3 else x, folder / "halved.onnx")
        small = session(folder / "halved.onnx")
        found["halved ort"] = lambda: small.run(None, {small.get_inputs()[0].name: array})
    off = float((torch.from_numpy(found["compiled"]()) - wanted).abs().max() / wanted.abs().max())
    assert off < 1e-4, f"the compiled network is off by {off}"
    return found


def halved_network(dense: nn.Module, x: torch.Tensor) -> nn.Module:
    """Half of each group's channels gone by L2 norm: what dense engines make of pruning."""
    import copy

    model = copy.deepcopy(dense)
    structure = sc.trace(model, x[:2])
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    return sc.compact(model, x[:2], structure=structure)[0]


def timed(engines: dict[str, Engine], seconds: float) -> dict[str, list[float]]:
    """Time every engine in turn, in processor time, for about ``seconds`` each."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        for _ in range(3):
            engine()
    end = time.perf_counter() + seconds * len(engines)
    while time.perf_counter() < end or len(times["torch"]) < 15:
        for name, engine in engines.items():
            start = time.process_time_ns()
            engine()
            times[name].append((time.process_time_ns() - start) / 1e9)
    return times


DEEPSPARSE = """
import sys, time, json, numpy as np
import deepsparse, onnxruntime
path, inputs, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
x = np.load(inputs)
engine = deepsparse.compile_model(path, batch_size=len(x), num_cores=1)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
ort = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
name = ort.get_inputs()[0].name
calls = {"deepsparse": lambda: engine.run([x]), "ort": lambda: ort.run(None, {name: x})}
wanted, found = calls["ort"]()[0], calls["deepsparse"]()[0]
times = {k: [] for k in calls}
end = time.perf_counter() + 2 * seconds
while time.perf_counter() < end:
    for k, call in calls.items():
        s = time.perf_counter(); call(); times[k].append(time.perf_counter() - s)
print(json.dumps({"off": float(abs(wanted - found).max() / abs(wanted).max()),
                  "ratio": float(np.median(times["ort"]) / np.median(times["deepsparse"]))}))
"""


def beside_deepsparse(python: str, model: nn.Module, x: torch.Tensor, file: Path, seconds: float) -> str:
    """Return DeepSparse's time over onnxruntime's, both in its own Python, as text."""
    torch.onnx.export(model, (x,), str(file), opset_version=17, dynamo=False)  # it reads no newer one
    inputs = file.with_suffix(".npy")
    np.save(inputs, x.numpy())
    command = [python, "-c", DEEPSPARSE, str(file), str(inputs), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["fashion-mlp"], choices=NETWORKS, metavar="NAME")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--epochs", type=int, help="of dense training; half as many retrain")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing an engine")
    parser.add_argument("--folder", type=Path, default=Path("runs/inference"), help="where networks are kept")
    parser.add_argument("--deepsparse", metavar="PYTHON", help="the Python of a venv with DeepSparse")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        source = NETWORKS[name][0]
        data = load_data(source, validation=5000, **RAW.get(source, {}))
        dense, accuracy = trained(name, data, options.folder, 0.0, options.epochs)
        print(f"\n{name}: dense {accuracy:.2%}", flush=True)
        for sparsity in options.sparsities:
            model, accuracy = trained(name, data, options.folder, sparsity, options.epochs)
            for batch in options.batches:
                x = data.test.inputs[:batch].clone()
                print(f"\n{name}, {sparsity:.0%} sparse ({accuracy:.2%}), batch {batch}", flush=True)
                with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
                    engines = engines_for(model, dense, x, data, Path(folder))
                    times = timed(engines, options.seconds)
                    row = {"network": name, "sparsity": sparsity, "batch": batch, "accuracy": accuracy}
                    for engine, values in times.items():
                        ratios = [a / b for a, b in zip(times["torch"], values, strict=True)]
                        low, _, high = statistics.quantiles(ratios, n=4)
                        median = statistics.median(times["torch"]) / statistics.median(values)
                        ort = statistics.median(times["ort"]) / statistics.median(values)
                        row[engine] = {
                            "us": 1e6 * statistics.median(values),
                            "over_torch": median,
                            "over_ort": ort,
                        }
                        print(
                            f"  {engine:14} {1e6 * statistics.median(values):10.1f} us  {median:6.2f}x torch "
                            f"({low:.2f} to {high:.2f})  {ort:6.2f}x onnxruntime",
                            flush=True,
                        )
                    if options.deepsparse:
                        file = Path(folder) / "deepsparse.onnx"
                        said = beside_deepsparse(options.deepsparse, model, x, file, options.seconds)
                        row["deepsparse"] = said
                        print(f"  deepsparse over onnxruntime: {said}", flush=True)
                    rows.append(row)
    for name in options.networks:
        for batch in options.batches:
            mine = sorted(
                (r for r in rows if r["network"] == name and r["batch"] == batch), key=lambda r: r["sparsity"]
            )
            for engine in ("torch csr", "scipy", "sparsify", "compiled"):
                even = next((r["sparsity"] for r in mine if engine in r and r[engine]["over_ort"] >= 1), None)
                said = "none of these" if even is None else f"{even:.0%}"
                print(f"{name}, batch {batch}: {engine} is as fast as dense onnxruntime from: {said}")
    if options.json:
        save_json(options.json, {"python": sys.version, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
