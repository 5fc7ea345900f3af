"""The search of ``prune_greedily`` beside the naive one: mask each unit, evaluate the whole network.

On S5's network, trained, and real validation images. The naive search runs inside each round of the fast
one, on a copy of the same (masked, compacted) network, with the same batches, memory format and threads,
and decides for itself: both must remove the same unit every time, or the script ends with 1. Its time
covers masking and evaluating alone; the fast one's is all of ``prune_greedily``, set-up, compaction and
proofs included. As every unit takes the naive search the same, it is timed on --timed units a round and
scaled; what it decides on is computed for all units, from the inputs of the layer that makes them (these
do not change): the timed units show that this is the whole forward to the bit. --timed 0: nothing of
this, every unit takes and is timed on a whole forward (hours). On one thread the clock is the processor's.

    python benchmarks/greedy_search.py --weights dense.safetensors
    python benchmarks/greedy_search.py --epochs 1 --examples 200 --removals 5
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.data import load_data
from secateur.data.dataset import Dataset, Split
from secateur.methods import greedy
from secateur.methods.tries import classified, tries_of
from secateur.models import build_model
from secateur.running import denormals_flushed
from secateur.structure.surgery import mask_units
from secateur.structure.units import Structure
from secateur.training.batches import seed_of
from secateur.training.checkpoint import load_network
from secateur.training.fit import fit
from secateur.training.settings import Training

SETTINGS = Training(
    optimizer="adamw", lr=1e-3, lr_schedule="cosine", batch_size=128, weight_decay=1e-2, flip=True
)
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LAST = "conv4"
STEPS: dict[str, Callable[[Any, Tensor], Tensor]] = {  # the network's forward in eval mode, cut in parts
    "conv1": lambda net, x: net.conv1(x).relu(),
    "conv2": lambda net, x: net.pool(net.conv2(x).relu()),
    "conv3": lambda net, x: net.conv3(x).relu(),
    "conv4": lambda net, x: net.pool(net.conv4(x).relu()),
    "fc1": lambda net, x: net.fc1(x.flatten(1)).relu(),
    "fc2": lambda net, x: net.fc2(x),
}


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def load_s5() -> Dataset:
    """S5's images, from $SECATEUR_DATA or the folder beside the repository."""
    if DATA.is_dir():
        os.environ.setdefault("SECATEUR_DATA", str(DATA))
    return load_data("cifar10-first5", validation=2500, download=False)


def dense_network(
    data: Dataset, weights: Path | None, epochs: int, seed: int = 0, batch_norm: bool = False
) -> nn.Module:
    """S5's network: with the weights of a file, or trained here."""
    model = build_model("convnet-25", seed=seed, batch_norm=batch_norm)
    if weights is not None:
        load_network(weights, model)
    else:
        fit(model, data.train, data.validation, SETTINGS.with_epochs(epochs), seed=seed_of(seed, "dense"))
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


# -- the naive search --------------------------------------------------------------------------------


class Naive:
    """One round of the naive search on a copy of the network that a stage of the fast one works on."""

    def __init__(self, stage: Any, timed: int) -> None:
        self.model = copy.deepcopy(stage.model).to(memory_format=torch.channels_last)
        self.structure, self.method, self.sizes = stage.structure, stage.method, stage.sizes
        self.left = {name: np.flatnonzero(~gone) for name, gone in stage.pruned.items()}
        self.batches = [(chunk.example[0][0], chunk.labels, chunk.number) for chunk in stage.tries.chunks]
        self.timed = timed
        self.seconds = 0.0

    def next(self) -> sc.methods.greedy.Removal:
        names = [name for name, units in self.left.items() if len(units) > self.method.min_kept]
        if self.method.scope == "layer":
            names = [max(names, key=lambda name: len(self.left[name]) / self.sizes[name])]
        tried = [one for name in names for one in self.tried(name)]
        return min(tried, key=lambda one: (-one.score, one.loss))

    @torch.no_grad()
    def tried(self, name: str) -> list[Any]:
        """Every unit of a group that is left, with the score and the loss without it."""
        units = self.left[name]
        some = units[np.unique(np.linspace(0, len(units) - 1, self.timed or len(units)).astype(int))]
        with denormals_flushed():
            start = clock()
            found = {unit: self.without(name, unit, self.model, self.batches) for unit in some}
            self.seconds += (clock() - start) * len(units) / len(some)
            if self.timed:
                found = self.from_inputs(name, found)
        number = sum(number for _, _, number in self.batches)
        return [greedy.Removal(name, int(u), found[u][0] / number, found[u][1] / number) for u in units]

    def from_inputs(self, name: str, whole: dict[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
        """The same from the inputs of the layer that makes the units."""
        steps = list(STEPS)
        at = steps.index(
            next(p.name for p in self.structure.groups[name].slices if not p.reads).split(".")[0]
        )

        def run(x: Tensor, start: int, stop: int | None = None) -> Tensor:
            for step in steps[start:stop]:
                x = STEPS[step](self.model, x)
            return x

        inputs = [(run(x, 0, at), labels, number) for x, labels, number in self.batches]
        found = {u: self.without(name, u, lambda x: run(x, at), inputs) for u in self.left[name]}
        if any(found[unit] != sums for unit, sums in whole.items()):
            sys.exit(f"{name}: from its layer's inputs on it is not the whole forward; use --timed 0")
        return found

    def without(self, name: str, unit: int, run: Callable[[Tensor], Tensor], batches: Any) -> Any:
        """The sums of scores and of losses with one unit masked."""
        right = loss = 0.0
        with masked(self.model, self.structure, name, unit):
            for x, labels, number in batches:
                scores, losses = classified(run(x), labels)
                right += float(scores[:number].sum())
                loss += float(losses[:number].double().sum())
        return right, loss


@contextmanager
def masked(model: nn.Module, structure: Structure, name: str, unit: int) -> Iterator[None]:
    tensors = dict(model.named_parameters())
    before = {part.name: tensors[part.name].clone() for part in structure.groups[name].slices if part.masked}
    mask_units(model, structure, {name: np.arange(len(structure.groups[name])) == unit})
    try:
        yield
    finally:
        for place, tensor in before.items():
            tensors[place].copy_(tensor)


# -- both side by side -------------------------------------------------------------------------------


class EnoughError(Exception):
    """As many units went as were wanted."""


class Race:
    """A whole run of ``prune_greedily`` with the naive search inside each of its rounds."""

    def __init__(self, removals: int, timed: int) -> None:
        self.removals, self.timed = removals, timed
        self.pairs: list[tuple[Any, Any]] = []
        self.naive = self.rounds = self.outside = 0.0

    def run(self, model: nn.Module, split: Split, include: str | None, method: sc.Greedy) -> float:
        """Return the seconds that the fast run took."""
        plain = greedy._Stage.next

        def beside(stage: Any) -> list[Any]:
            if len(self.pairs) == self.removals:
                return []
            start = clock()
            other = Naive(stage, self.timed)
            mine = other.next() if len(self.pairs) % 2 else None  # each is first in turn
            middle = clock()
            found = plain(stage)
            end = clock()
            mine = mine or other.next()
            self.pairs.append((found[0], mine))
            self.naive += other.seconds
            self.rounds += end - middle
            self.outside += middle - start + clock() - end
            show(f"  {len(self.pairs)}: {found[0].group} {found[0].unit}, naive {mine.group} {mine.unit}")
            if (found[0].group, found[0].unit) != (mine.group, mine.unit):
                sys.exit(f"removal {len(self.pairs)} differs: {found[0]} and the naive one {mine}")
            return found

        def stop(_: nn.Module) -> None:
            if len(self.pairs) == self.removals:
                raise EnoughError

        start = clock()
        with mock.patch.object(greedy._Stage, "next", beside):
            try:  # a score that is always kept: the run ends where ``stop`` ends it
                sc.prune_greedily(
                    model, split.inputs[:2], [(split.inputs, split.labels)], score=0.0, method=method,
                    include=include, on_stage=stop,
                )  # fmt: skip
            except EnoughError:
                return clock() - start - self.outside
        sys.exit(f"the run ended after {len(self.pairs)} of {self.removals} removals")

    def report(self, what: str, seconds: float) -> None:
        apart = max(abs(a.loss - b.loss) for a, b in self.pairs)
        exact = all(a.score == b.score for a, b in self.pairs)
        print(
            f"{what}: {len(self.pairs)} removals, the same units; scores {'equal' if exact else 'DIFFER'}, "
            f"losses apart by {apart:.0e}\n  naive {self.naive:.1f} s, fast {seconds:.1f} s: "
            f"{self.naive / seconds:.1f}x (its rounds alone, {self.rounds:.1f} s: "
            f"{self.naive / self.rounds:.1f}x)",
            flush=True,
        )


def stage_of(model: nn.Module, split: Split, method: sc.Greedy) -> Any:
    """What ``prune_greedily`` sets up before its first removal."""
    structure = sc.trace(model, split.inputs[:2])
    sizes = {name: len(group) for name, group in structure.groups.items()}
    given = [(split.inputs, split.labels)]
    found = tries_of(given, model, classified, size=method.batch_size, labelled=True)
    return greedy._Stage(model, structure, method, found, sizes)


def by_layer(model: nn.Module, split: Split, method: sc.Greedy, timed: int) -> None:
    stage = stage_of(copy.deepcopy(model), split, method)
    for name in stage.structure.groups:
        stage._scored([name])
        start = clock()
        stage._scored([name])
        fast, naive = clock() - start, Naive(stage, timed)
        naive.tried(name)
        print(
            f"  {name}: {len(naive.left[name])} units, naive {naive.seconds:.2f} s, fast {fast:.2f} s: "
            f"{naive.seconds / fast:.1f}x",
            flush=True,
        )


# -- memory ------------------------------------------------------------------------------------------


def growth(work: Callable[[], Any]) -> int:
    """By how many bytes the resident memory of a forked child peaks above what it had, on the second
    run of ``work`` (the first loads code)."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # the threads of the pool are the parent's
            work()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = status("VmRSS")
            work()
            os.write(write, str(status("VmHWM") - before).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1]:
        sys.exit("the memory cannot be measured here")
    return int(text)


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory(model: nn.Module, split: Split, method: sc.Greedy) -> None:
    """Set-up and one round, a layer at a time; two batches are enough, as one is there at a time."""
    few, work = split.drawn(2 * method.batch_size, 0), copy.deepcopy(model)
    stage = stage_of(work, few, method)
    naive, layers = Naive(stage, 4), list(stage.structure.groups)

    @torch.no_grad()
    def plain() -> None:
        for name in layers:
            for unit in range(4):
                naive.without(name, unit, naive.model, naive.batches)

    setup = growth(lambda: stage_of(work, few, method))
    rounds = {name: growth(lambda name=name: stage._scored([name])) for name in layers}
    most, naively = max(rounds, key=rounds.__getitem__), growth(plain)
    print(
        f"peak memory above the start: a round {rounds[most] / 1e6:.0f} MB at most ({most}), naive "
        f"{naively / 1e6:.0f} MB; set-up {setup / 1e6:.0f} MB; Greedy.memory {method.memory / 1e6:.0f} MB",
        flush=True,
    )


def show(line: str) -> None:
    if sys.stderr.isatty():
        print(f"{line}\033[K", end="\r", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, help="the dense network's state dict (safetensors)")
    parser.add_argument("--epochs", type=int, default=3, help="of training it, where no weights are given")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--removals", type=int, default=40)
    parser.add_argument("--every", type=int, default=sc.Greedy.every)
    parser.add_argument("--timed", type=int, default=16, help="units a round, of the naive search; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    data = load_s5()
    model = dense_network(data, options.weights, options.epochs)
    split, method = data.validation.drawn(options.examples, 0), sc.Greedy(every=options.every)
    score, loss = stage_of(model, split, method).tries.evaluated(model)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {len(split)} validation images")
    print(f"convnet-25, dense: score {score:.4f}, loss {loss:.4f}; compacted every {method.every} removals")
    if Path("/proc/self/clear_refs").exists():
        memory(model, split, method)
    print("one round on the dense network, a layer at a time:")
    by_layer(model, split, method, options.timed)
    for what, include in (("whole network, scope layer", None), (f"{LAST} alone", LAST)):
        race = Race(options.removals, options.timed)
        race.report(what, race.run(model, split, include, method))


if __name__ == "__main__":
    main()
