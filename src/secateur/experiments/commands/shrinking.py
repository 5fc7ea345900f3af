"""``secateur shrink``: a checkpoint made smaller, from the goal to the file, and an honest table of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.data.dataset import Dataset, Split, Stream
from secateur.errors import DataError, RecipeError
from secateur.experiments.commands.agreeing import agreement
from secateur.experiments.commands.examples import FEWEST, Examples, chooses, dataset_named, examples_of
from secateur.experiments.commands.imitating import imitation, in_eval
from secateur.experiments.commands.network import check_files, check_one_of, refitted, side_by_side
from secateur.experiments.commands.opening import Named, check_runs, described, model_spec, open_network
from secateur.experiments.plan import TaskSpec
from secateur.measure.macs import count_macs
from secateur.measure.summary import profile
from secateur.methods.constraints import prune_to
from secateur.models import is_folder
from secateur.pretrained.writing import save_pretrained
from secateur.structure.compact import compact
from secateur.structure.proof import Proof
from secateur.structure.saved import save
from secateur.structure.surgery import mask_units
from secateur.structure.tracing import trace
from secateur.task.base import Task
from secateur.text import shown
from secateur.training.evaluate import Evaluation, evaluate
from secateur.training.fit import fit
from secateur.training.settings import Training

OnStep = Callable[[str], None]
_TAUGHT = 10_000  # examples at most, whose outputs lie in memory


@dataclass(frozen=True)
class Labelled:
    """A data set with labels, and the task that a network is trained and judged by on it."""

    data: Dataset
    task: Task

    def test(self, network: nn.Module) -> Evaluation:
        return evaluate(network, self.data.test, self.task)

    @property
    def lesson(self) -> tuple[Split | Stream, Split | Stream, Task]:
        return self.data.train, self.data.validation, self.task


def shrink_checkpoint(
    *,
    model: Named,
    out: Path,
    goals: Mapping[str, float | None],
    weights: Path | None = None,
    data: Named | None = None,
    inputs: Path | None = None,
    task: Named | None = None,
    epochs: int = 10,
    lr: float | None = None,
    chosen: Mapping[str, Any] | None = None,
    on_step: OnStep = lambda text: None,
) -> str:
    """Make a checkpoint smaller and save it to ``out``; return what was done, and dense beside small.

    Whole units go until one of ``goals`` is met: ``macs`` or ``parameters``, the share that may be left, or
    ``latency_ms`` of one example. What reads them is refitted, and all of it is trained: on the labels of
    ``data``, or else towards what the dense network puts out.

    The small network is proved equal to the masked and refitted one; then it is trained for ``epochs``, and
    the weights that are best on validation stay, those before training among them. Agreement and scores are
    of examples that neither the refit nor the training has read. ``lr``: Adam's, by default 1e-3 on labels
    and 1e-4 towards the dense network. ``chosen``: further arguments of ``secateur.prune_to``.
    """
    if sum(limit is not None for limit in goals.values()) != 1:
        raise RecipeError("what may be left? give one of --macs 0.5, --parameters 0.5 and --latency-ms 3")
    check_one_of({"--data": data, "--inputs": inputs})
    if data is None and inputs is None:
        raise RecipeError("shrink reads examples: give --data, or a file of them as --inputs")
    if task is not None and data is None:
        raise RecipeError("--task: examples in --inputs have no labels; it goes with --data")
    lr = (1e-3 if data is not None else 1e-4) if lr is None else lr
    settings = Training(epochs=epochs, lr=lr, lr_schedule="cosine")
    name = model_spec(model).name
    _check_out(out, name, weights)
    dataset = dataset_named(data)
    dense, _ = open_network(model, weights, trained=True)
    labelled = None if dataset is None else labelled_by(dataset, task, epochs)
    given = examples_of(dense, inputs=inputs, data=dataset, validated=bool(epochs))
    check_runs(dense, given.example)
    before = None if labelled is None else labelled.test(dense)  # first: labels of another kind end it here
    on_step(f"pruning {name} to its goal")
    small, proof = _pruned(dense, given, goals, chosen or {})
    on_step("refitting")
    small, proof, refit = _refitted(dense, proof, given)
    on, what = given.measured(dense)
    proof = replace(proof, macs=(count_macs(dense, on).dense, count_macs(small, on).dense))  # as in the table
    said = [f"{proof!r}", refit]
    if not proof.removed:
        said.insert(0, "the dense network meets the goal: nothing had to go")
    if weights is None and labelled is None and not is_folder(name):
        said.insert(0, f"no --weights: as {name} made them")
    if epochs:
        said.append(_trained(small, dense, labelled, given, settings, on_step))
    on_step("measuring")
    costs = profile(dense, on), profile(small, on, dense=dense)
    judged = _judged(dense, small, given, labelled, before)
    said += [side_by_side(*costs, what, ("dense", "small"), judged), _saved(small, name, out)]
    return "\n\n".join(said)


def labelled_by(data: Dataset, task: Named | None, epochs: int = 1) -> Labelled | None:
    """Return a data set with its task: the one named, or classification where its labels are classes.

    Raises RecipeError where ``epochs`` of training need a task that nobody named.
    """
    if task is None and not data.classes:
        if not epochs:
            return None
        raise RecipeError(
            f"{data.name}: it does not say what its labels are; name their task, --task classification or "
            "regression, say, or leave training out with --epochs 0"
        )
    built = described("--task", task or "classification", TaskSpec).build()
    return Labelled(data.of_inputs() if built.of_inputs else data, built)


def _pruned(
    dense: nn.Module, given: Examples, goals: Mapping[str, float | None], chosen: Mapping[str, Any]
) -> tuple[nn.Module, Proof]:
    example = given.example if goals.get("latency_ms") is None else given.one
    return prune_to(dense, example, **goals, **chosen)


def _refitted(dense: nn.Module, proof: Proof, given: Examples) -> tuple[nn.Module, Proof, str]:
    """Return the dense network without the units that a proof says went, what reads them refitted."""
    masked = deepcopy(dense)
    structure = trace(masked, given.example)
    mask_units(masked, structure, proof.pruned)
    refit = refitted(masked, dense, structure, given)
    small, proof = compact(masked, given.example, structure=structure)
    return small, proof, refit


def _trained(
    small: nn.Module,
    dense: nn.Module,
    labelled: Labelled | None,
    given: Examples,
    settings: Training,
    on_step: OnStep,
) -> str:
    """Train in place, on labels or towards the dense network; what it was stays where no epoch is better on
    validation."""
    if labelled is not None:
        how, lesson, mode = "fine-tuned", labelled.lesson, nullcontext()
    elif not (apart := given.validating()):
        return f"not taught by the dense network: of fewer than {FEWEST} examples none is left for validation"
    else:
        try:
            lesson = imitation(dense, given.fitting(_TAUGHT), apart)
        except DataError as error:
            return f"not taught by the dense network: {error}"
        how, mode = "taught by the dense network", in_eval(small)
    train, validation, task = lesson
    scale = task.score
    on_step(f"training for {settings.epochs} epochs")
    before, state = evaluate(small, validation, task), deepcopy(small.state_dict())
    with mode:
        history = fit(
            small,
            train,
            validation,
            settings,
            task=task,
            on_epoch=lambda row: on_step(
                f"  epoch {row.epoch}: validation {scale.name} {scale.text(row.validation_score)}"
            ),
        )
    # Training lays convolutions out channels last and a file does not: it is measured as it opens.
    small.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    after = evaluate(small, validation, task)
    scores = f"validation {scale.name} {scale.text(before.score)} -> {scale.text(after.score)}"
    if after.rank > before.rank:
        return f"{how} for {len(history.epochs)} epochs, the best is {history.best_epoch}: {scores}"
    small.load_state_dict(state)
    return f"{how} for {len(history.epochs)} epochs, none better than before ({scores}): left as it was"


def _judged(
    dense: nn.Module,
    small: nn.Module,
    given: Examples,
    labelled: Labelled | None,
    before: Evaluation | None,
) -> list[tuple[str, str, str]]:
    """Return dense beside small: how far they agree, and the task's score on test."""
    rows: list[tuple[str, str, str]] = []
    agrees = agreement(dense, small, given.held())
    if agrees.same is not None and chooses(None if labelled is None else labelled.task, given.dataset):
        rows.append(("same largest output", "", f"{agrees.same:,} of {agrees.number:,} ({agrees.share})"))
    rows.append(("outputs differ by", "", f"{100 * agrees.error:.2g} % on {agrees.number:,} examples"))
    if labelled is not None and before is not None:
        after, scale = labelled.test(small), labelled.task.score
        figures = (scale.text(before.score), scale.text(after.score))
        rows.append((f"{scale.name}, {after.number:,} test examples", *figures))
    return rows


def _check_out(out: Path, name: str, weights: Path | None) -> None:
    if _as_folder(out, name) and out.exists() and not out.is_dir():
        raise RecipeError(f"--out {shown(out)}: is a file; give a folder, or NAME.safetensors")
    check_files({"--weights": weights}, {"--out": None if _as_folder(out, name) else out})


def _as_folder(out: Path, name: str) -> bool:
    """Whether the small network becomes a folder of transformers, as it came from one."""
    return is_folder(name) and not out.suffix


def _saved(small: nn.Module, name: str, out: Path) -> str:
    if _as_folder(out, name):
        return repr(save_pretrained(small, out))
    save(small, out)
    return f"load it into the network at its full size: secateur.load(network, {str(out)!r})"
