"""The kinds of steps by the names that recipes write: a new one is a file and a line here.

As places, so that the names are known without what the steps need (torch takes seconds to import).
"""

from __future__ import annotations

_HERE = "secateur.experiments.steps"

STEPS = {
    "prune": f"{_HERE}.prune:Prune",
    "prune_to": f"{_HERE}.prune_to:PruneTo",
    "greedy": f"{_HERE}.greedy:GreedyPruning",
    "structure_selection": f"{_HERE}.selection:Selection",
    "low_rank": f"{_HERE}.low_rank:LowRankLayers",
    "l0": f"{_HERE}.l0:L0",
    "variational_dropout": f"{_HERE}.variational_dropout:SparseVD",
    "sparsegpt": f"{_HERE}.sparsegpt:SparseGPT",
    "experts": f"{_HERE}.experts:Experts",
    "depth": f"{_HERE}.depth:Depth",
    "group_lasso": f"{_HERE}.group_lasso:GroupLasso",
    "grow_penalty": f"{_HERE}.grow_penalty:GrowPenalty",
    "regrow": f"{_HERE}.regrow:Regrow",
    "rewind": f"{_HERE}.rewind:Rewind",
    "anneal": f"{_HERE}.anneal:Anneal",
    "refit": f"{_HERE}.refit:Refit",
    "compact": f"{_HERE}.compact:Compact",
    "recover": f"{_HERE}.recover:Recover",
    "retrain": f"{_HERE}.retrain:Retrain",
    "scratch": f"{_HERE}.scratch:Scratch",
    "share": f"{_HERE}.share:Share",
    "pack": f"{_HERE}.pack:Pack",
}
