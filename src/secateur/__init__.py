"""secateur: prune PyTorch networks, hold the zeros through any training, and say honestly what it cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

PUBLIC = {
    "prune": "pruning.prune",
    "Block": "pruning.prune",
    "find_targets": "pruning.targets",
    "sparsity": "pruning.targets",
    "Masks": "pruning.masks",
    "gradually": "pruning.schedules",
    "during": "pruning.schedules",
    "OneShot": "pruning.schedules",
    "Iterative": "pruning.schedules",
    "Cubic": "pruning.schedules",
    "Magnitude": "pruning.criteria",
    "Random": "pruning.criteria",
    "Wanda": "pruning.criteria",
    "Taylor": "pruning.criteria",
    "Fisher": "pruning.criteria",
    "L1Norm": "pruning.unit_criteria",
    "L2Norm": "pruning.unit_criteria",
    "BNScale": "pruning.unit_criteria",
    "ActivationNorm": "pruning.unit_criteria",
    "ParameterShare": "pruning.structured",
    "trace": "structure.units",
    "Structure": "structure.units",
    "register_operator": "graph.operators",
    "forget_operator": "graph.operators",
    "compact": "structure.compact",
    "Proof": "structure.proof",
    "save": "structure.saved",
    "load": "structure.saved",
    "Uniform": "pruning.budgets",
    "Global": "pruning.budgets",
    "PerLayer": "pruning.budgets",
    "Std": "pruning.budgets",
    "Threshold": "pruning.budgets",
    "ERK": "pruning.budgets",
    "LAMP": "pruning.budgets",
    "MagnitudeRatios": "pruning.budgets",
    "NM": "pruning.budgets",
    "Hard": "pruning.shrinkage",
    "Soft": "pruning.shrinkage",
    "Trimmed": "pruning.shrinkage",
    "Smooth": "pruning.shrinkage",
    "sensitivity": "methods.layer_sensitivity",
    "prune_to": "methods.constraints",
    "reconstruct": "methods.reconstruction",
    "Refit": "methods.reconstruction",
    "prune_greedily": "methods.greedy",
    "Greedy": "methods.greedy",
    "GreedyRun": "methods.greedy",
    "StructureSelection": "methods.structure_selection",
    "Selected": "methods.structure_selection",
    "slimming": "methods.structure_selection",
    "BranchAnnealing": "methods.branch_annealing",
    "Descent": "methods.branch_annealing",
    "anneal_branches": "methods.annealing",
    "Annealing": "methods.annealing",
    "sparsify": "deploy.sparse",
    "Sparsified": "deploy.sparse",
    "pack": "deploy.packing",
    "unpack": "deploy.packing",
    "Packed": "deploy.packing",
    "share_weights": "deploy.sharing",
    "Sharing": "deploy.sharing",
    "write_folder": "deploy.folder",
    "export_onnx": "deploy.onnx",
    "Exported": "deploy.onnx",
    "profile": "measure.summary",
}

if TYPE_CHECKING:  # for type checkers and editors; PUBLIC is what runs
    from secateur.deploy.folder import write_folder
    from secateur.deploy.onnx import Exported, export_onnx
    from secateur.deploy.packing import Packed, pack, unpack
    from secateur.deploy.sharing import Sharing, share_weights
    from secateur.deploy.sparse import Sparsified, sparsify
    from secateur.graph.operators import forget_operator, register_operator
    from secateur.measure.summary import profile
    from secateur.methods.annealing import Annealing, anneal_branches
    from secateur.methods.branch_annealing import BranchAnnealing, Descent
    from secateur.methods.constraints import prune_to
    from secateur.methods.greedy import Greedy, GreedyRun, prune_greedily
    from secateur.methods.layer_sensitivity import sensitivity
    from secateur.methods.reconstruction import Refit, reconstruct
    from secateur.methods.structure_selection import Selected, StructureSelection, slimming
    from secateur.pruning.budgets import (
        ERK,
        LAMP,
        NM,
        Global,
        MagnitudeRatios,
        PerLayer,
        Std,
        Threshold,
        Uniform,
    )
    from secateur.pruning.criteria import Fisher, Magnitude, Random, Taylor, Wanda
    from secateur.pruning.masks import Masks
    from secateur.pruning.prune import Block, prune
    from secateur.pruning.schedules import Cubic, Iterative, OneShot, during, gradually
    from secateur.pruning.shrinkage import Hard, Smooth, Soft, Trimmed
    from secateur.pruning.structured import ParameterShare
    from secateur.pruning.targets import find_targets, sparsity
    from secateur.pruning.unit_criteria import ActivationNorm, BNScale, L1Norm, L2Norm
    from secateur.structure.compact import compact
    from secateur.structure.proof import Proof
    from secateur.structure.saved import load, save
    from secateur.structure.units import Structure, trace

__all__ = ["PUBLIC", "__version__", *PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"secateur.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
