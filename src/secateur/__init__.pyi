"""The public names: one list, which type checkers read here and ``import secateur`` reads as it is.

A line a name, under what it is for; both stand in ``help(secateur)`` and in the index of the documentation.
"""

from secateur import errors as errors

# Pruning: zeros in place, and what they are held by
from secateur.pruning.prune import prune as prune
from secateur.pruning.gradual import gradually as gradually
from secateur.pruning.gradual import during as during
from secateur.pruning.targets import find_targets as find_targets
from secateur.pruning.targets import sparsity as sparsity
from secateur.methods.layer_sensitivity import sensitivity as sensitivity
from secateur.pruning.masks import Masks as Masks
from secateur.pruning.regrowth import regrow as regrow
from secateur.pruning.prune import Block as Block

# Criteria: what is important, weight by weight
from secateur.pruning.criteria import Magnitude as Magnitude
from secateur.pruning.criteria import Random as Random
from secateur.pruning.criteria import Wanda as Wanda
from secateur.pruning.criteria import Taylor as Taylor
from secateur.pruning.criteria import Fisher as Fisher
from secateur.pruning.saliency import SynFlow as SynFlow
from secateur.pruning.movement import Movement as Movement

# Criteria: what is important, unit by unit
from secateur.pruning.unit_criteria import L1Norm as L1Norm
from secateur.pruning.unit_criteria import L2Norm as L2Norm
from secateur.pruning.unit_criteria import FPGM as FPGM
from secateur.pruning.unit_criteria import BNScale as BNScale
from secateur.pruning.unit_criteria import ActivationNorm as ActivationNorm
from secateur.methods.elimination import Reconstruction as Reconstruction

# Budgets: how much goes, and from where
from secateur.pruning.budgets import Uniform as Uniform
from secateur.pruning.budgets import Global as Global
from secateur.pruning.budgets import PerLayer as PerLayer
from secateur.pruning.budgets import Std as Std
from secateur.pruning.budgets import Threshold as Threshold
from secateur.pruning.budgets import ERK as ERK
from secateur.pruning.budgets import LAMP as LAMP
from secateur.pruning.budgets import MagnitudeRatios as MagnitudeRatios
from secateur.pruning.budgets import NM as NM
from secateur.pruning.structured import ParameterShare as ParameterShare
from secateur.pruning.selection import Cut as Cut

# Shrinkages: what becomes of a weight at the cut
from secateur.pruning.shrinkage import Hard as Hard
from secateur.pruning.shrinkage import Soft as Soft
from secateur.pruning.shrinkage import Trimmed as Trimmed
from secateur.pruning.shrinkage import Smooth as Smooth

# Schedules: the way there
from secateur.pruning.schedules import OneShot as OneShot
from secateur.pruning.schedules import Iterative as Iterative
from secateur.pruning.schedules import Cubic as Cubic

# Structure: coupled channels found, removed and proved
from secateur.structure.tracing import trace as trace
from secateur.structure.units import Structure as Structure
from secateur.structure.compact import compact as compact
from secateur.structure.proof import Proof as Proof
from secateur.structure.experts import find_experts as find_experts
from secateur.structure.fewer_experts import remove_experts as remove_experts
from secateur.structure.saved import save as save
from secateur.structure.graph_files import load_graph as load_graph
from secateur.structure.saved import load as load

# Folders of transformers
from secateur.pretrained.writing import save_pretrained as save_pretrained
from secateur.pretrained.writing import WrittenFolder as WrittenFolder
from secateur.pretrained.opening import from_pretrained as from_pretrained
from secateur.large.pruning import prune_folder as prune_folder
from secateur.large.result import PrunedFolder as PrunedFolder
from secateur.large.evaluating import evaluate_folder as evaluate_folder
from secateur.large.evaluating import EvaluatedFolder as EvaluatedFolder

# Methods that search and train
from secateur.methods.constraints import prune_to as prune_to
from secateur.methods.expert_scores import score_experts as score_experts
from secateur.methods.expert_scores import weakest_experts as weakest_experts
from secateur.methods.depth import block_influence as block_influence
from secateur.methods.depth import drop_blocks as drop_blocks
from secateur.methods.reconstruction import reconstruct as reconstruct
from secateur.methods.reconstruction import Refit as Refit
from secateur.methods.recalibration import recalibrate as recalibrate
from secateur.methods.distillation import distill as distill
from secateur.methods.distillation import Distilled as Distilled
from secateur.methods.low_rank import low_rank as low_rank
from secateur.methods.low_rank import LowRank as LowRank
from secateur.methods.greedy import prune_greedily as prune_greedily
from secateur.methods.greedy import Greedy as Greedy
from secateur.methods.greedy import GreedyRun as GreedyRun
from secateur.methods.sparsegpt import sparsegpt as sparsegpt
from secateur.methods.structure_selection import StructureSelection as StructureSelection
from secateur.methods.structure_selection import Selected as Selected
from secateur.methods.network_slimming import slimming as slimming
from secateur.methods.l0_gates import L0Gates as L0Gates
from secateur.methods.variational_dropout import VariationalDropout as VariationalDropout
from secateur.methods.unit_penalties import group_lasso as group_lasso
from secateur.methods.unit_penalties import growing_penalty as growing_penalty
from secateur.methods.branch_annealing import BranchAnnealing as BranchAnnealing
from secateur.methods.branch_annealing import Descent as Descent
from secateur.methods.annealing import anneal_branches as anneal_branches
from secateur.methods.annealing import Annealing as Annealing

# Deployment: files, engines and figures
from secateur.deploy.sparse import sparsify as sparsify
from secateur.deploy.sparse import Sparsified as Sparsified
from secateur.pruning.sharing import share_weights as share_weights
from secateur.pruning.sharing import Sharing as Sharing
from secateur.deploy.packing import pack as pack
from secateur.deploy.packing import unpack as unpack
from secateur.deploy.packing import Packed as Packed
from secateur.deploy.folder import write_folder as write_folder
from secateur.deploy.onnx import export_onnx as export_onnx
from secateur.deploy.onnx import Exported as Exported
from secateur.measure.summary import profile as profile

# Tasks: what networks are trained and judged by
from secateur.task import build_task as build_task
from secateur.task.base import Task as Task
from secateur.task.base import Score as Score
from secateur.training.evaluate import evaluate as evaluate
from secateur.training.evaluate import Evaluation as Evaluation

# Networks: those that recipes name
from secateur.models import build_model as build_model

# Your own: what secateur cannot know of your code
from secateur.graph.operators import register_operator as register_operator
from secateur.graph.operators import forget_operator as forget_operator
from secateur.structure.layers import register_layer as register_layer
from secateur.structure.layers import forget_layer as forget_layer
from secateur.experiments.steps.base import Step as Step

# Errors: every one that is raised on purpose, and the warning
from secateur.errors import SecateurError as SecateurError
from secateur.errors import SecateurWarning as SecateurWarning
from secateur.errors import TargetError as TargetError
from secateur.errors import BudgetError as BudgetError
from secateur.errors import CriterionError as CriterionError
from secateur.errors import MaskError as MaskError
from secateur.errors import NonFiniteError as NonFiniteError
from secateur.errors import DataError as DataError
from secateur.errors import ModelError as ModelError
from secateur.errors import TaskError as TaskError
from secateur.errors import RecipeError as RecipeError
from secateur.errors import StepError as StepError
from secateur.errors import StorageError as StorageError
from secateur.errors import WriteError as WriteError
from secateur.errors import MissingExtraError as MissingExtraError

__version__: str
PUBLIC: dict[str, str]
PURPOSES: dict[str, list[str]]
