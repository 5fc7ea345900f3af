"""What ``secateur deploy`` deploys: the network of a finished trial, or a checkpoint of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.data.dataset import Dataset, Split, Stream, each_tensor, rows_of
from secateur.errors import RecipeError
from secateur.experiments.commands.examples import chooses, dataset_named, examples_of
from secateur.experiments.commands.finished import (
    FinishedTrial,
    dense_options,
    load_dense,
    load_pruned,
    pruned_options,
)
from secateur.experiments.commands.network import check_one_of
from secateur.experiments.commands.opening import Named, check_runs, model_spec, open_network
from secateur.experiments.commands.shrinking import labelled_by
from secateur.experiments.dense import calibration_batches
from secateur.models import TIMM, is_folder
from secateur.task.base import Task

PRUNED = "pruned, PyTorch"
_TIMED = 64  # the largest batch that is timed
_CALIBRATION = 512  # training examples that int8 reads


@dataclass(frozen=True)
class Dense:
    """The network that a trial started from: its options, and how it is found and loaded."""

    options: Mapping[str, Any]
    load: Callable[[], nn.Module]


@dataclass(frozen=True)
class Source:
    """A ``network``, the name and options that build it at the size its ``file`` is loaded into (no file: its
    factory brings its weights), and what it runs on.

    ``example``: two inputs; ``timed``: those of the largest batch; ``calibration``: batches that int8 reads;
    ``test``: inputs whose outputs are compared with those of the format ``reference``, and judged by ``task``
    where there are ``labels``; ``choices``: whether outputs may be scores of classes.
    """

    label: str
    reference: str
    network: nn.Module
    model: str
    options: Mapping[str, Any]
    file: Path | None
    example: Any
    timed: Any
    calibration: list[tuple[Any, Any]]
    test: Any
    labels: Any = None
    task: Task | None = None
    choices: bool = True
    dense: Dense | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def number(self) -> int:
        """How many examples are compared."""
        return rows_of(self.test)

    @property
    def own(self) -> bool:
        """Whether code that is not secateur's builds the network, found where this process finds it."""
        return ":" in self.model or is_folder(self.model)

    @property
    def needs(self) -> tuple[str, ...]:
        """The modules beside torch that a process needs to build the network."""
        if is_folder(self.model):
            return ("transformers",)
        if self.model.startswith(TIMM):
            return ("timm",)
        return ()


def of_trial(trial: FinishedTrial, data: Dataset) -> Source:
    """Return the network that a trial left, on its data, beside the dense one it came from."""
    plan, seed = trial.plan, trial.row["seed"]
    task = plan.task.build()
    test = _whole(data.test)
    return Source(
        label="",
        reference=PRUNED,
        network=load_pruned(trial),
        model=plan.model.name,
        options=pruned_options(plan.config),
        file=trial.network_file,
        example=data.validation.first(2),
        # The speed and the memory are no test figures: nothing else needs the test split before its time.
        timed=_cycled(data.validation.first(_TIMED)),
        calibration=calibration_batches(data.train, _CALIBRATION, seed),
        test=test.inputs,
        labels=test.labels,
        task=task,
        choices=chooses(task, data),
        dense=Dense(dense_options(plan.config), lambda: load_dense(trial, trial.dense_file())),
    )


def of_checkpoint(
    file: Path,
    *,
    model: Named | None = None,
    data: Named | None = None,
    inputs: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    input_dtype: str | None = None,
    task: Named | None = None,
) -> Source:
    """Return a network of one's own: weights in a file and what builds them, or a folder of transformers.

    Raises RecipeError where it is not said what builds it or what it runs on.
    """
    folder = file.is_dir()
    if not folder and model is None:
        raise RecipeError(f"{file}: weights alone build no network; name it with --model")
    options = {"--input-shape": input_shape, "--inputs": inputs, "--data": data}
    check_one_of(options)
    if not any(value is not None for value in options.values()):
        raise RecipeError("deploy runs the network: give --data, --inputs, or --input-shape, like 1,3,32,32")
    if task is not None and data is None:
        raise RecipeError("--task: inputs alone have no labels; it goes with --data")
    spec = model_spec(str(file.resolve()) if folder else model or "")
    dataset = dataset_named(data)
    network, _ = open_network(spec.model_dump(exclude={"weights"}), None if folder else file)
    network.eval()
    labelled = None if dataset is None else labelled_by(dataset, task, epochs=0)
    given = examples_of(
        network, input_shape=input_shape, input_dtype=input_dtype, inputs=inputs, data=dataset
    )
    check_runs(network, given.example)
    judge = labelled.task if labelled else None
    test, labels = given.apart(), None
    if labelled is not None:
        whole = _whole(labelled.data.test)
        test, labels = whole.inputs, whole.labels
    return Source(
        label=file.name,
        reference="PyTorch",
        network=network,
        model=spec.name,
        options=spec.model_extra or {},
        file=None if folder else file.resolve(),
        example=given.example,
        timed=_cycled(given.inputs if given.inputs is not None else test),
        calibration=given.fitting(_CALIBRATION),
        test=test,
        labels=labels,
        task=judge,
        choices=chooses(judge, dataset),
        notes=() if given.real else ("Its inputs are random numbers: agreement on real ones may differ.",),
    )


def _whole(split: Split | Stream) -> Split:
    return split if isinstance(split, Split) else split.drawn(len(split), 0)


def _cycled(inputs: Any) -> Any:
    """Return as many examples as are timed at once, again and again the same where there are fewer."""
    index = torch.arange(_TIMED) % rows_of(inputs)
    return each_tensor(lambda tensor: tensor[index], inputs)
