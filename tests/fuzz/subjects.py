"""A small network with one of everything that files of networks describe, and a study of small trials."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.experiments.recipe import load_recipe
from secateur.experiments.study import run_study

RECIPE = """\
name: small
description: "trials of every kind"
source: "a test"
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 12}
train: {epochs: 1, lr: 2.0e-3, batch_size: 256}
measure: []
methods:
  zeros:
    steps:
      - prune: {budget: {name: uniform, sparsity: 0.5}}
      - retrain: {epochs: 1}
    sweep: {prune.budget.sparsity: [0.5, 0.8]}
  units:
    steps:
      - prune: {units: true, criterion: l2_norm, budget: {name: uniform, sparsity: 0.5}}
      - compact: {}
      - retrain: {epochs: 1}
  scratch: {steps: [scratch: {model: {hidden: 6}}, retrain: {epochs: 1}]}
seeds: [0, 1]
reference: [{prune.budget.sparsity: 0.5, score_retrained: 0.9, note: quoted}]
"""
_TIMING = {"median": 0.002, "low": 0.001, "high": 0.004, "runs": 9, "threads": 1}
_FORMAT = {
    "name": "packed, numpy", "file": "packed/model.secateur", "bytes": 1000, "reason": None, "load_s": 0.01,
    "latency": {"1": _TIMING, "64": _TIMING}, "memory": {"imports": 10**8, "peak": {"1": 10**8, "64": 10**8}},
    "score": 0.9, "same": 350, "note": "a note",
}  # fmt: skip


class Everything(nn.Module):
    """Convolution, batch norm, recurrence, attention, norms over a stream, tied weights, a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.into, self.first, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.rnn = nn.LSTM(8, 5, batch_first=True)
        self.branch = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))
        self.back, self.out = nn.Linear(5, 8), nn.Linear(8, 3, bias=False)
        self.again = nn.Linear(8, 3, bias=False)
        self.again.weight = self.out.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.width, self.sizes, self.settings = 8, (4, 8), SimpleNamespace(heads=2, name="everything")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean(3).transpose(1, 2)
        x = self.into(x)
        x = x + self.mix(self.first(x), x, x, need_weights=False)[0]
        x = x + self.branch(x)
        x = self.last(x + self.back(self.rnn(x)[0]))
        return self.out(x) + self.again(x)


def fresh(seed: int = 0) -> Everything:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Everything().eval()


def smaller() -> nn.Module:
    """Return the network with half of its units gone."""
    network, x = fresh(), torch.zeros(2, 2, 6, 6)
    structure = sc.trace(network, x, streams=True)
    sc.prune(network, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    return sc.compact(network, x, structure=structure)[0].eval()


def make_study(folder: Path) -> Path:
    """Run the study in ``folder`` once, and return the folder of its results."""
    study = folder / "runs" / "small"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
        results = run_study(load_recipe(str(folder / "small.yaml")), study)
        for row in results["trials"]:
            assert row["state"] == "finished", row["notes"]
        trial = results["trials"][0]
        deployed: dict[str, Any] = {
            "schema": 1,
            "trial": {key: trial[key] for key in ("id", "method", "point", "seed")},
            "environment": results["environment"],
            "test": 360,
            "seconds": 0.5,
            "formats": [_FORMAT, {"name": "ONNX", "reason": "not installed"}],
            "notes": ["a difference"],
        }
        (study / "trials" / trial["id"] / "deploy").mkdir()
        (study / "trials" / trial["id"] / "deploy" / "deploy.json").write_text(json.dumps(deployed))
        (folder / "done").write_text("")
    return study
