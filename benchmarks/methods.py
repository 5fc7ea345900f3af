"""Every method at the same sparsities on S5's network, beside torch.nn.utils.prune and Torch-Pruning.

All start from one trained dense network and are retrained for the same number of epochs with the same
settings (AdamW, cosine, flips); the epochs that greedy, structure selection and sparse training take on
the way count. Sparsity is the share of the dense network's Linear and Conv weights that is gone; the
epoch kept is chosen on validation, and test accuracy is read once, at the end. MACs are those that run
("needed": zeros skipped). Latency is one forward on one thread, timed in turn with the dense network's.

    magnitude, random    single weights, global, the zeros held; distilled: magnitude, taught by the dense
    filters              whole units by L2 norm, prune_to
    refit                whole units by activation norm, the layers behind them refitted
    greedy               units one by one (--every, --at-once, --examples), half of the epochs on the way
    selection            structure selection, half of the epochs on the way; its penalty by bisection
    hybrid               greedy half the way, then magnitude on what is left
    torch                torch.nn.utils.prune.global_unstructured
    tp-magnitude         Torch-Pruning's MagnitudePruner as its README sets it up, at greedy's MACs
    tp-bn-scale          its BNScalePruner at greedy's MACs, on the network with batch norms: half of the
                         epochs sparse training, as its README says
    tp-*-global          the same with global_pruning=True

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
from secateur.errors import nearest
from secateur.measure.latency import time_inference
from secateur.measure.macs import count_macs
from secateur.measure.running import first_line
from secateur.measure.size import count_nonzero, count_parameters
from secateur.storage import save_json
from secateur.training.batches import seed_of
from secateur.training.evaluate import evaluate_on
from secateur.training.fit import fit

BATCHES = (1, 64)  # of the latencies
PENALTIES = (1e-4, 1e-1)  # of structure selection: the search is between these
REGULARISATION = 5e-4  # of BNScalePruner in Torch-Pruning's own experiments on CIFAR-10
PROBES = 14  # of Torch-Pruning's ratio


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
        times = " ".join(f"{share:9.1%}" for share in self.latency.values())
        return f"{self.method:20s} {counts} {costs} {self.retrain_seconds:9.1f} {times}  {self.note}".rstrip()


HEAD = (
    f"{'method':20s} {'asked':>6s} {'sparsity':>8s} {'params':>9s} {'non-zero':>9s} {'MACs':>7s} {'needed':>7s} "
    f"{'test':>7s} {'prune s':>8s} {'retrain s':>9s} "
    + " ".join(f"latency {b:<2d}"[:10].rjust(9) for b in BATCHES)
)


@dataclass
class Trial:
    """One method at one sparsity under way: the network it works on and what it has spent.

    The seconds are the processor's on one thread; what runs inside another block is not counted twice.
    """

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
        settings = replace(SETTINGS.with_epochs(epochs), **changes)
        self.left -= epochs
        with self.timed("retrain"):
            fit(
                self.model if model is None else model,
                self.lab.data.train,
                self.lab.data.validation,
                settings,
                seed=seed_of(self.lab.seed, "retrain", self.left),
                masks=self.masks,
                teacher=self.lab.dense if settings.distill else None,
                holding=holding,
            )


@dataclass
class Lab:
    """What the trials share, and the rows that there are."""

    data: Dataset
    dense: nn.Module
    options: argparse.Namespace
    normed: nn.Module | None = None
    rows: dict[tuple[str, float], Row] = field(default_factory=dict)
    selections: dict[float, tuple[float, nn.Module, dict[str, float]]] = field(default_factory=dict)
    sparse: tuple[nn.Module, dict[str, float]] | None = None

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def epochs(self) -> int:
        return self.options.epochs

    def example(self, number: int = 2) -> Tensor:
        return self.data.validation.inputs[:number].contiguous(memory_format=torch.channels_last)

    def calibration(self, number: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "calibration"))
        order = torch.randperm(len(self.data.train), generator=generator)[:number]
        return [self.data.train.inputs[part] for part in order.split(256)]

    def row(self, method: str, sparsity: float) -> Row:
        """Run a method once, and print what came of it."""
        if (method, sparsity) not in self.rows:
            trial = Trial(self, sparsity, copy.deepcopy(self.dense), self.epochs)
            METHODS[method](trial)
            if trial.left > 0:
                trial.train(trial.left)
            if method == "torch":
                for layer in layers_of(trial.model):
                    torch_prune.remove(*layer)
            self.measure(method, trial)
        return self.rows[method, sparsity]

    def measure(self, name: str, trial: Trial) -> None:
        model, example = trial.model.eval(), self.example(1)
        all_macs, macs = (count_macs(m, example) for m in (self.dense, model))
        shares = {}
        for batch in BATCHES:
            both, seconds = {"dense": self.dense, "this": model}, self.options.seconds
            times = time_inference(both, self.example(batch), seconds=seconds, threads=1)
            shares[batch] = times["this"].median / times["dense"].median
        row = self.rows[name, trial.sparsity] = Row(
            name,
            trial.sparsity,
            sc.sparsity(model, self.dense),
            count_parameters(model),
            count_nonzero(model),
            macs.dense / all_macs.dense,
            macs.effective / all_macs.dense,
            evaluate_on(model, self.data.test).accuracy,
            *trial.seconds.values(),
            shares,
            trial.note,
        )
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
    lab = trial.lab
    on, at_least = lab.data.validation.first(lab.options.examples), lab.epochs - lab.epochs // 2

    def fine_tune(small: nn.Module) -> None:
        if trial.left > at_least:
            trial.train(1, small)

    with trial.timed("prune"):
        trial.model, run = sc.prune_greedily(
            trial.model,
            lab.example(),
            [(on.inputs, on.labels)],
            sparsity=trial.sparsity * share,
            method=sc.Greedy(every=lab.options.every, at_once=lab.options.at_once),
            fine_tune=fine_tune,
            dense=lab.dense,
        )
    trial.note = "; ".join([f"{len(run.removals)} units in {len(run.stages)} stages", *run.slow])


def hybrid(trial: Trial) -> None:
    greedy(trial, 0.5)
    with trial.timed("prune"):
        now, dense = (
            sum(t.weight.numel() for t in sc.find_targets(model).values())
            for model in (trial.model, trial.lab.dense)
        )
        budget = sc.Global(1 - (1 - trial.sparsity) * dense / now)
        masks = sc.prune(trial.model, sc.Magnitude(), budget)
        trial.model, proof = sc.compact(trial.model, trial.lab.example(), masks=masks)
        trial.masks = proof.masks


def selection(trial: Trial) -> None:
    """Structure selection with the penalty given, or of a bisection the one that comes nearest."""
    lab, spent = trial.lab, []
    given = lab.options.penalty.get(trial.sparsity)

    def reached(penalty: float) -> float:
        if penalty not in lab.selections:
            lab.selections[penalty] = select(lab, penalty)
            spent.append(sum(lab.selections[penalty][2].values()))
        return lab.selections[penalty][0]

    def apart(penalty: float) -> float:
        return abs(reached(penalty) - trial.sparsity)

    if given is None:  # what earlier trials have tried narrows it down
        low = max([PENALTIES[0], *(p for p in lab.selections if reached(p) < trial.sparsity)])
        high = min([PENALTIES[1], *(p for p in lab.selections if reached(p) >= trial.sparsity)])
        while len(spent) < lab.options.steps:
            if low >= high or min(map(apart, lab.selections), default=1.0) <= lab.options.tolerance:
                break
            penalty = math.sqrt(low * high)
            low, high = (penalty, high) if reached(penalty) < trial.sparsity else (low, penalty)
    penalty = given or min(lab.selections, key=apart)
    reached(penalty)
    _, small, seconds = lab.selections[penalty]
    trial.model, trial.seconds = copy.deepcopy(small), dict(seconds)
    trial.left -= max(1, lab.epochs // 2)
    trial.note = f"penalty {penalty:.3g}, {len(spent)} more tried for it in {sum(spent):.0f} s"


def select(lab: Lab, penalty: float) -> tuple[float, nn.Module, dict[str, float]]:
    """Return the sparsity that a penalty leads to, the small network, and the seconds."""
    trial = Trial(lab, 0.0, copy.deepcopy(lab.dense), lab.epochs)
    with trial.timed("prune"):
        method = sc.StructureSelection(trial.model, lab.example(), penalty=penalty, lr=0.1)
        trial.train(max(1, lab.epochs // 2), method.network, method.trained, keep="last")
        small, _, _ = method.fold()
    return sc.sparsity(small, lab.dense), small, trial.seconds


# -- the peers ---------------------------------------------------------------------------------------


def layers_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, "weight") for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def torchs(trial: Trial) -> None:
    with trial.timed("prune"):
        layers = layers_of(trial.model)
        torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=trial.sparsity)


def tp_pruner(lab: Lab, model: nn.Module, kind: str, ratio: float, everywhere: bool) -> Any:
    import torch_pruning as tp

    importances = {
        "magnitude": partial(tp.importance.GroupMagnitudeImportance, p=2),
        "bn-scale": tp.importance.BNScaleImportance,
    }
    make = tp.pruner.MagnitudePruner
    if kind == "bn-scale":
        make = partial(tp.pruner.BNScalePruner, reg=REGULARISATION)
    return make(
        model, lab.example(1), importance=importances[kind](), pruning_ratio=ratio,
        ignored_layers=[model.fc2], global_pruning=everywhere,
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
    lab = trial.lab
    if lab.sparse is None:
        model = copy.deepcopy(normed(lab))
        pruner = tp_pruner(lab, model, "bn-scale", 0.5, False)

        @contextlib.contextmanager
        def regularised(optimizer: torch.optim.Optimizer) -> Iterator[None]:
            pruner.update_regularizer()
            handle = optimizer.register_step_pre_hook(lambda *_: pruner.regularize(model))
            try:
                yield
            finally:
                handle.remove()

        own = Trial(lab, 0.0, model, lab.epochs)
        own.train(max(1, lab.epochs // 2), holding=regularised, keep="last")
        lab.sparse = model, own.seconds
    model, seconds = lab.sparse
    trial.seconds["retrain"] += seconds["retrain"]
    trial.left -= max(1, lab.epochs // 2)
    trial.note = "fc1 has no batch norm"
    return copy.deepcopy(model)


def normed(lab: Lab) -> nn.Module:
    if lab.normed is None:
        options = lab.options
        lab.normed = dense_network(lab.data, options.bn_weights, options.dense_epochs, lab.seed, True)
        lab.measure("dense, batch norms", Trial(lab, 0.0, lab.normed, 0))
    return lab.normed


METHODS: dict[str, Callable[[Trial], None]] = {
    "magnitude": lambda trial: weights(trial, sc.Magnitude()),
    "random": lambda trial: weights(trial, sc.Random(trial.lab.seed)),
    "distilled": lambda trial: weights(trial, sc.Magnitude(), distill=0.5),
    "filters": filters,
    "refit": refit,
    "greedy": greedy,
    "selection": selection,
    "hybrid": hybrid,
    "torch": torchs,
    "tp-magnitude": partial(torch_pruning, kind="magnitude"),
    "tp-magnitude-global": partial(torch_pruning, kind="magnitude", everywhere=True),
    "tp-bn-scale": partial(torch_pruning, kind="bn-scale"),
    "tp-bn-scale-global": partial(torch_pruning, kind="bn-scale", everywhere=True),
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9], metavar="SHARE")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--epochs", type=int, default=4, help="of retraining, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="the dense network's state dict (safetensors)")
    parser.add_argument("--bn-weights", type=Path, help="that of the network with batch norms")
    parser.add_argument("--dense-epochs", type=int, default=20, help="where no weights are given")
    parser.add_argument("--penalty", nargs="+", default=[], metavar="SPARSITY=PENALTY")
    parser.add_argument("--steps", type=int, default=5, help="tries of selection's bisection at most")
    parser.add_argument("--tolerance", type=float, default=0.01, help="sparsity that selection may miss by")
    parser.add_argument("--examples", type=int, default=1000, help="validation examples greedy chooses on")
    parser.add_argument("--every", type=int, default=128)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing a latency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-examples", type=int, help="the first so many alone, to try the script")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    for name in options.methods:
        if name not in METHODS:
            parser.error(f"unknown method {name!r}{nearest(name, METHODS)}; known: {', '.join(METHODS)}")
    if options.epochs < 1 or not all(0 < sparsity < 1 for sparsity in options.sparsities):
        parser.error("--epochs counts from 1, and --sparsities are shares between 0 and 1")
    try:
        options.penalty = dict(map(float, pair.split("=", 1)) for pair in options.penalty)
    except ValueError:
        parser.error("--penalty takes pairs such as 0.5=0.002")
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    data = load_s5()
    if options.train_examples:
        data = replace(data, train=data.train.first(options.train_examples))
    lab = Lab(data, dense_network(data, options.weights, options.dense_epochs, options.seed), options)
    print(f"torch {torch.__version__}, {options.threads} thread(s), seed {options.seed}; {SETTINGS}")
    print(f"{options.epochs} epochs of retraining; {len(data.train)} training images\n\n{HEAD}")
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
