"""Why the last step of an annealing costs so much: a random start, everything trained, alpha by 0.1.

At each alpha: the share of what the next layers read that comes from the original path, and how far the two
paths cancel (the cosine between them), means over the layers. Then from alpha 0.1 to 0: accuracy at once,
after the norms' statistics are taken anew, after `up` is fitted, after both, and after an epoch from each.

python benchmarks/annealing_last_step.py --weights runs/dense/NAME.safetensors  # VGG-16-BN, a quarter as wide
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from secateur.data import load_data
from secateur.data.dataset import Split
from secateur.methods.branch_fitting import grams
from secateur.methods.widening import key
from secateur.models import build_model
from secateur.training.checkpoint import load_network
from secateur.training.evaluate import evaluate
from secateur.training.fit import fit
from secateur.training.settings import Training

SOURCE = Training(epochs=1, optimizer="adam", lr=1e-3, shift=2, flip=True, keep="last")
DECAYED = Training(
    epochs=1,
    optimizer="sgd",
    lr=1e-2,
    lr_schedule="cosine",
    weight_decay=5e-4,
    shift=2,
    flip=True,
    keep="last",
)


def paths(branches: sc.BranchAnnealing) -> tuple[float, float]:
    """Return the original path's share of the norm that the next layers read, and the paths' cosine."""
    network, shares, cosines = branches.network, [], []
    for name, gram in grams(network, branches._parts, branches._inputs()).items():
        alpha, up = network.alphas[name], network.up[key(name)].detach().double()
        units = len(up)
        own = alpha**2 * gram[:units, :units].trace()
        branch = (1 - alpha) ** 2 * (up @ gram[units:, units:] @ up.T).trace()
        both = alpha * (1 - alpha) * (up @ gram[units:, :units]).trace()
        shares.append(float(own.sqrt() / (own.sqrt() + branch.sqrt())))
        cosines.append(float(both / (own * branch).sqrt().clamp_min(1e-30)))
    return sum(shares) / len(shares), sum(cosines) / len(cosines)


def accuracy(branches: sc.BranchAnnealing, validation: Split) -> float:
    return 100 * evaluate(branches.network, validation).score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=10_000, help="training images of each epoch")
    parser.add_argument("--amp", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("cifar10", validation=5000)
    train = data.train.drawn(options.examples, seed=0)
    model = build_model("vgg-16-bn", width=0.25)
    load_network(options.weights, model)
    print(f"dense: {100 * evaluate(model, data.validation).score:.1f} on validation")
    for words, settings in (("the source's training", SOURCE), ("weight decay, rate to 0", DECAYED)):
        run(words, copy.deepcopy(model), settings, train, data.validation, options.amp)


def run(words: str, model: Any, settings: Training, train: Split, validation: Split, amp: bool) -> None:
    settings = Training(**{**vars(settings), "amp": amp})
    batches = [(train.inputs[:1024], train.labels[:1024])]
    branches = sc.BranchAnnealing(model, train.inputs[:2], start="random", data=batches)
    print(f"\n{words}\nalpha  accuracy  share of the original path  cosine between the paths")
    for step in range(9, 0, -1):
        branches.alpha = step / 10
        fit(branches.network, train, validation, settings, seed=step)
        share, cosine = paths(branches)
        print(
            f"{step / 10:5.1f}  {accuracy(branches, validation):8.1f}  {share:26.2f}  {cosine:24.2f}",
            flush=True,
        )
    before = copy.deepcopy(branches.network.state_dict())
    print("\nfrom 0.1 to 0            at once   after an epoch at lr: / 10    as it was    x 10")
    for named, change in (
        ("nothing else", lambda: setattr(branches, "alpha", 0.0)),
        ("statistics anew", lambda: (setattr(branches, "alpha", 0.0), branches.learn_statistics())),
        ("up fitted", lambda: branches.refit(0.0)),
        ("both", lambda: (branches.refit(0.0), branches.learn_statistics())),
    ):
        found = []
        for rate in (None, 0.1, 1.0, 10.0):
            branches.network.load_state_dict(before)
            change()
            if rate is not None:
                fit(
                    branches.network,
                    train,
                    validation,
                    Training(**{**vars(settings), "lr": settings.lr * rate}),
                )
            found.append(accuracy(branches, validation))
        print(f"{named:24} {found[0]:8.1f}" + "".join(f"{value:13.1f}" for value in found[1:]), flush=True)


if __name__ == "__main__":
    main()
