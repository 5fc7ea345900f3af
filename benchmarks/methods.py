"""Every method at the same sparsities on S5's network, beside torch.nn.utils.prune and Torch-Pruning.

All start from one trained dense network and are retrained for the same number of epochs with the same
settings (AdamW, cosine, flips); the epochs that greedy, structure selection and sparse training take on
the way count. Sparsity is the share of the dense network's Linear and Conv weights that is gone; the
epoch kept is chosen on validation, and test accuracy is read once, at the end. MACs are those that run
("needed": zeros skipped). Latency is one forward on one thread, timed in turn with the dense network's.

    magnitude, random    single weights, global, the zeros held; distilled: magnitude, taught by the dense
    filters              whole units by L2 norm, prune_to
    refit                whole units by activation norm, the layers behind them refitted
    greedy               units one by one, half of the epochs on the way
    selection            structure selection, half of the epochs on the way; its penalty by bisection
    hybrid               greedy half the way, then magnitude on what is left
    torch                torch.nn.utils.prune.global_unstructured
    tp-magnitude         Torch-Pruning's MagnitudePruner as its README sets it up, at greedy's MACs
    tp-bn-scale          its BNScalePruner at greedy's MACs, on the network with batch norms: half of the
                         epochs sparse training, as its README says
    tp-*-global          the same with global_pruning=True; the seconds are of all tries of the ratio

    python benchmarks/methods.py --weights dense.safetensors --json methods.json
    python benchmarks/methods.py --dense-epochs 20 --methods magnitude greedy torch --sparsities 0.9
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
from greedy_search import SETTINGS, clock, dense_network, load_s5
from secateur.data.dataset import Dataset
from secateur.measure.latency import time_inference
from secateur.measure.macs import count_macs
from secateur.measure.size import count_nonzero, count_parameters
from secateur.storage import save_json
from secateur.text import first_line
from secateur.training.batches import seed_of
from secateur.training.evaluate import evaluate
from secateur.training.fit import fit

BATCHES = (1, 64)  # of the latencies
EVERY, AT_ONCE = 128, 4  # units of greedy, as in the recipe "pareto"
PENALTIES, TOLERANCE = (5e-4, 5e-2), 0.01  # structure selection's search: between these, and how near
REGULARISATION = 5e-4  # of BNScalePruner in Torch-Pruning's own experiments on CIFAR-10
PROBES = 14  # of Torch-Pruning's ratio
HEAD = "method                asked sparsity    params  non-zero    MACs  needed    test  prune s retrain s "
HEAD += " ".join(f"{f'batch {batch}':>8s}" for batch in BATCHES)


@dataclass(frozen=True)
class Row:
    """A method at a sparsity. ``macs``, ``needed`` and ``latency`` are shares of the dense network's."""

    method: str
    asked: float
    sparsity: float
    parameters: int
    nonzero: int
    macs: float
    needed: float
    accuracy: float
    prune_seconds: float
    retrain_seconds: float
    latency: dict[int, float]
    note: str = ""

    def __str__(self) -> str:
        counts = f"{self.asked:6.1%} {self.sparsity:8.2%} {self.parameters:9,} {self.nonzero:9,}"
        costs = f"{self.macs:7.1%} {self.needed:7.1%} {self.accuracy:7.2%} {self.prune_seconds:8.1f}"
        times = " ".join(f"{share:8.1%}" for share in self.latency.values())
        return f"{self.method:20s} {counts} {costs} {self.retrain_seconds:9.1f} {times}  {self.note}".rstrip()


@dataclass
class Trial:
    """One method at one sparsity under way. Of ``seconds``, no block counts those of blocks inside it."""

    lab: Lab
    sparsity: float
    model: nn.Module
    left: int
    masks: sc.Masks | None = None
    note: str = ""
    seconds: dict[str, float] = field(default_factory=lambda: {"prune": 0.0, "retrain": 0.0})
    counted: float = 0.0

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        start, before = clock(), self.counted
        try:
            yield
        finally:
            spent = clock() - start
            self.seconds[kind] += spent - (self.counted - before)
            self.counted = before + spent

    def train(self, epochs: int, model: nn.Module | None = None, holding: Any = None, **changes: Any) -> None:
        """Train the network, or ``model``, with the masks held, and take the epochs off those left."""
        lab, settings = self.lab, replace(SETTINGS.with_epochs(epochs), **changes)
        self.left -= epochs
        with self.timed("retrain"):
            fit(
                model or self.model, lab.data.train, lab.data.validation, settings, holding=holding,
                seed=seed_of(lab.options.seed, "retrain", self.left), masks=self.masks, teacher=lab.dense,
            )  # fmt: skip


@dataclass
class Lab:
    """What the trials share, and the rows that there are."""

    data: Dataset
    dense: nn.Module
    options: argparse.Namespace
    rows: dict[tuple[str, float], Row] = field(default_factory=dict)
    selections: dict[float, tuple[float, nn.Module, dict[str, float]]] = field(default_factory=dict)
    sparse: tuple[nn.Module, float] | None = None

    def example(self, number: int = 2) -> Tensor:
        return self.data.validation.inputs[:number].contiguous(memory_format=torch.channels_last)

    def calibration(self, number: int) -> list[Tensor]:
        return list(self.data.train.drawn(number, self.options.seed).inputs.split(256))

    def row(self, method: str, sparsity: float) -> Row:
        """Run a method once, and print what came of it."""
        if (method, sparsity) not in self.rows:
            trial = Trial(self, sparsity, copy.deepcopy(self.dense), self.options.epochs)
            METHODS[method](trial)
            if trial.left > 0:
                trial.train(trial.left)
            if method == "torch":
                for layer in layers_of(trial.model):
                    torch_prune.remove(*layer)
            self.measure(method, trial)
        return self.rows[method, sparsity]

    def measure(self, name: str, trial: Trial) -> None:
        model, example, shares = trial.model.eval(), self.example(1), {}
        all_macs, macs = (count_macs(m, example) for m in (self.dense, model))
        for batch in BATCHES:
            both, seconds = {"dense": self.dense, "this": model}, self.options.seconds
            times = time_inference(both, self.example(batch), seconds=seconds, threads=1)
            shares[batch] = times["this"].median / times["dense"].median
        row = self.rows[name, trial.sparsity] = Row(
            name, trial.sparsity, sc.sparsity(model, self.dense), count_parameters(model),
            count_nonzero(model), macs.dense / all_macs.dense, macs.effective / all_macs.dense,
            evaluate(model, self.data.test).score, *trial.seconds.values(), shares, trial.note,
        )  # fmt: skip
        print(row, flush=True)


# -- secateur's methods ------------------------------------------------------------------------------


def weights(trial: Trial, criterion: Any, distill: float = 0.0) -> None:
    with trial.timed("prune"):
        trial.masks = sc.prune(trial.model, criterion, sc.Global(trial.sparsity))
    trial.train(trial.left, distill=distill)


def filters(trial: Trial) -> None:
    with trial.timed("prune"):
        trial.model, _ = sc.prune_to(trial.model, trial.lab.example(), parameters=1 - trial.sparsity)


def refit(trial: Trial) -> None:
    lab, example = trial.lab, trial.lab.example()
    with trial.timed("prune"):
        structure = sc.trace(trial.model, example)
        sc.prune(
            trial.model, sc.ActivationNorm(), sc.ParameterShare(trial.sparsity), structure=structure,
            data=lab.calibration(1024),
        )  # fmt: skip
        done = sc.reconstruct(trial.model, lab.dense, structure, lab.calibration(10_000))
        trial.model, _ = sc.compact(trial.model, example, structure=structure)
    trial.note = "; ".join(f"not refitted: {name}, {why}" for name, why in done.skipped.items())


def greedy(trial: Trial, share: float = 1.0) -> None:
    """Units one by one to a ``share`` of the way."""
    lab, options = trial.lab, trial.lab.options
    chosen_on = lab.data.validation.drawn(options.examples, options.seed)

    def fine_tune(small: nn.Module) -> None:
        if trial.left > options.epochs - options.epochs // 2:
            trial.train(1, small)

    with trial.timed("prune"):
        trial.model, run = sc.prune_greedily(
            trial.model, lab.example(), [(chosen_on.inputs, chosen_on.labels)], fine_tune=fine_tune,
            sparsity=trial.sparsity * share, method=sc.Greedy(every=EVERY, at_once=AT_ONCE), dense=lab.dense,
        )  # fmt: skip
    trial.note = "; ".join([f"{len(run.removals)} units in {len(run.stages)} stages", *run.slow])


def hybrid(trial: Trial) -> None:
    greedy(trial, 0.5)
    with trial.timed("prune"):
        gone = sc.sparsity(trial.model, trial.lab.dense)
        masks = sc.prune(trial.model, sc.Magnitude(), sc.Global(1 - (1 - trial.sparsity) / (1 - gone)))
        trial.model, proof = sc.compact(trial.model, trial.lab.example(), masks=masks)
        trial.masks = proof.masks


def selection(trial: Trial) -> None:
    """Structure selection with the penalty given, or of a bisection the one that comes nearest."""
    lab, known, goal, spent = trial.lab, trial.lab.selections, trial.sparsity, []
    given = lab.options.penalty.get(goal)

    def miss(penalty: float) -> float:
        return abs(known[penalty][0] - goal)

    for _ in range(1 if given else lab.options.steps):
        low = max([PENALTIES[0], *(p for p in known if known[p][0] < goal)])
        high = min([PENALTIES[1], *(p for p in known if known[p][0] >= goal)])
        penalty = given or math.sqrt(low * high)
        if penalty in known or (not given and any(miss(p) <= TOLERANCE for p in known)):
            break
        known[penalty] = select(lab, penalty)
        spent.append(sum(known[penalty][2].values()))
    penalty = given or min(known, key=miss)
    trial.model, trial.seconds = copy.deepcopy(known[penalty][1]), dict(known[penalty][2])
    trial.left -= lab.options.half
    trial.note = f"penalty {penalty:.3g}, {len(spent)} tried for it in {sum(spent):.0f} s"


def select(lab: Lab, penalty: float) -> tuple[float, nn.Module, dict[str, float]]:
    """Return the sparsity that a penalty leads to, the small network, and the seconds."""
    trial = Trial(lab, 0.0, copy.deepcopy(lab.dense), lab.options.epochs)
    with trial.timed("prune"):
        method = sc.StructureSelection(trial.model, lab.example(), penalty=penalty, lr=0.1)
        trial.train(lab.options.half, method.network, method.trained, keep="last")
        small, _ = method.fold()
    return sc.sparsity(small, lab.dense), small, trial.seconds


# -- the peers ---------------------------------------------------------------------------------------


def layers_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, "weight") for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def by_torch(trial: Trial) -> None:
    with trial.timed("prune"):
        trial.model.to(memory_format=torch.contiguous_format)  # it fails on channels_last weights
        method, layers = torch_prune.L1Unstructured, layers_of(trial.model)
        torch_prune.global_unstructured(layers, method, amount=trial.sparsity)


def tp_pruner(lab: Lab, model: nn.Module, kind: str, ratio: float, everywhere: bool) -> Any:
    import torch_pruning as tp

    make: Any = tp.pruner.MagnitudePruner
    importance: Any = tp.importance.GroupMagnitudeImportance(p=2)
    if kind == "bn-scale":
        make = partial(tp.pruner.BNScalePruner, reg=REGULARISATION)
        importance = tp.importance.BNScaleImportance()
    return make(
        model, lab.example(1), importance=importance, pruning_ratio=ratio, ignored_layers=[model.fc2],
        global_pruning=everywhere,
    )  # fmt: skip


def torch_pruning(trial: Trial, kind: str, everywhere: bool = False) -> None:
    """Torch-Pruning with the ratio that comes nearest to the MACs of secateur's greedy result."""
    lab = trial.lab
    goal = lab.row("greedy", trial.sparsity).macs * count_macs(lab.dense, lab.example(1)).dense
    if kind == "bn-scale":
        trial.model = sparse_trained(trial)
    low, high, best = 0.0, 1.0, (math.inf, trial.model, 0.0)
    with trial.timed("prune"):
        for _ in range(PROBES):
            ratio = (low + high) / 2
            small = copy.deepcopy(trial.model).eval()
            with torch.enable_grad():
                tp_pruner(lab, small, kind, ratio, everywhere).step()
            macs = count_macs(small, lab.example(1)).dense
            best = min(best, (abs(macs - goal), small, ratio), key=lambda one: one[0])
            low, high = (ratio, high) if macs > goal else (low, ratio)
        trial.model = best[1]
    trial.note = "; ".join(filter(None, [f"ratio {best[2]:.3f}", trial.note]))


def sparse_trained(trial: Trial) -> nn.Module:
    """The network with batch norms after the pruner's own sparse training, once for all trials."""
    lab, options = trial.lab, trial.lab.options
    if lab.sparse is None:
        model = dense_network(lab.data, options.bn_weights, options.dense_epochs, options.seed, True)
        lab.measure("dense, batch norms", Trial(lab, 0.0, model, 0))
        pruner = tp_pruner(lab, model, "bn-scale", 0.5, False)

        @contextlib.contextmanager
        def regularised(optimizer: torch.optim.Optimizer) -> Iterator[None]:
            pruner.update_regularizer()
            handle = optimizer.register_step_pre_hook(lambda *_: pruner.regularize(model))
            yield
            handle.remove()

        own = Trial(lab, 0.0, model, options.half)
        own.train(options.half, holding=regularised, keep="last")
        lab.sparse = model, own.seconds["retrain"]
    trial.seconds["retrain"] += lab.sparse[1]
    trial.left -= options.half
    trial.note = "fc1 has no batch norm"
    return copy.deepcopy(lab.sparse[0])


METHODS: dict[str, Callable[[Trial], None]] = {
    "magnitude": lambda trial: weights(trial, sc.Magnitude()),
    "random": lambda trial: weights(trial, sc.Random(trial.lab.options.seed)),
    "distilled": lambda trial: weights(trial, sc.Magnitude(), distill=0.5),
    "filters": filters,
    "refit": refit,
    "greedy": greedy,
    "selection": selection,
    "hybrid": hybrid,
    "torch": by_torch,
    "tp-magnitude": partial(torch_pruning, kind="magnitude"),
    "tp-magnitude-global": partial(torch_pruning, kind="magnitude", everywhere=True),
    "tp-bn-scale": partial(torch_pruning, kind="bn-scale"),
    "tp-bn-scale-global": partial(torch_pruning, kind="bn-scale", everywhere=True),
}


def pair(text: str) -> tuple[float, float]:
    sparsity, penalty = map(float, text.split("="))
    return sparsity, penalty


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9], metavar="SHARE")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    parser.add_argument("--epochs", type=int, default=4, help="of retraining, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="the dense network's state dict (safetensors)")
    parser.add_argument("--bn-weights", type=Path, help="that of the network with batch norms")
    parser.add_argument("--dense-epochs", type=int, default=20, help="where no weights are given")
    parser.add_argument("--penalty", type=pair, nargs="+", default=[], metavar="SPARSITY=PENALTY")
    parser.add_argument("--steps", type=int, default=5, help="tries of selection's bisection at most")
    parser.add_argument("--examples", type=int, default=1000, help="validation examples greedy chooses on")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing a latency")
    parser.add_argument("--train-examples", type=int, help="so many alone, to try the script")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.epochs < 1 or not all(0 < sparsity < 1 for sparsity in options.sparsities):
        parser.error("--epochs counts from 1, and --sparsities are shares between 0 and 1")
    options.penalty, options.half = dict(options.penalty), max(1, options.epochs // 2)
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = load_s5()
    if options.train_examples:
        data = replace(data, train=data.train.drawn(options.train_examples, 0))
    lab = Lab(data, dense_network(data, options.weights, options.dense_epochs, options.seed), options)
    print(f"torch {torch.__version__}, 1 thread, seed {options.seed}; {SETTINGS.with_epochs(options.epochs)}")
    print(f"{len(data.train)} training images; greedy chooses on {options.examples} of validation\n\n{HEAD}")
    sc.trace(lab.dense, lab.example())  # what it imports is no method's time
    lab.measure("dense", Trial(lab, 0.0, lab.dense, 0))
    failed = []
    for sparsity, method in itertools.product(options.sparsities, options.methods):
        try:
            lab.row(method, sparsity)
        except Exception as error:
            line = f"{type(error).__name__}: {first_line(error)}"
            failed.append({"method": method, "asked": sparsity, "error": line})
            print(f"{method:20s} {sparsity:6.1%} failed: {line}", flush=True)
        if options.json:
            settings = {name: str(value) for name, value in vars(options).items()}
            rows = [asdict(row) for row in lab.rows.values()]
            shown = {"torch": torch.__version__, "options": settings, "training": asdict(SETTINGS)}
            save_json(options.json, shown | {"rows": rows, "failed": failed})
    if any(not one["method"].startswith(("tp-", "torch")) for one in failed):
        sys.exit(1)


if __name__ == "__main__":
    main()
