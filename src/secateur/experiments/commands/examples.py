"""What a command runs a network on: a batch of random numbers, a file of examples, or a data set."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.data.checks import reading
from secateur.data.dataset import Dataset, Inputs, each_tensor, rows_of
from secateur.data.npz import read_array, read_arrays
from secateur.errors import DataError, ModelError, RecipeError
from secateur.experiments.commands.opening import Named, check_runs, described
from secateur.experiments.dense import calibration_batches, load_dataset
from secateur.experiments.plan import DataSpec
from secateur.pruning.batches import arguments_of
from secateur.task.base import Task
from secateur.text import first_line, nearest, shown

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
_MOST_NUMBERS = 2**27  # of one batch: half a gigabyte in float32
_BATCH = 64
FEWEST = 24  # examples of a file of which some are for validation
_COMPARED = 1000  # examples of a test split
_POSITION = re.compile(r"arg(0|[1-9][0-9]{0,2})")
Batch = tuple[Any, Any]


@dataclass(frozen=True)
class Examples:
    """``example``: two inputs that a network is traced on; ``one`` of them, where it is known which dim holds
    them. ``inputs``: those of a file; ``dataset``: that of --data. Random numbers have neither: nothing is
    fitted to them and nothing compared on them. ``validated``: some are kept for validation."""

    example: Any
    inputs: Inputs | None = None
    dataset: Dataset | None = None
    one: Any = None
    validated: bool = False

    def measured(self, network: nn.Module) -> tuple[Any, str]:
        """Return what costs are measured on, and that in words: one example, as everywhere else; a shape that
        somebody gave, as it is; and the batch where the network runs on no single one."""
        if self.one is None:
            return self.example, f"of an input of shape {'x'.join(map(str, self.example.shape))}"
        try:
            check_runs(network, self.one)
        except ModelError:
            return self.example, f"of a batch of {rows_of(self.example)}, as one alone does not run"
        return self.one, "of one example"

    @property
    def real(self) -> bool:
        return self.inputs is not None or self.dataset is not None

    @property
    def parts(self) -> tuple[int, int]:
        """Of a file's examples: up to which one is fitted to, and from which one is held back. Between the
        two are those for validation, where there are enough to say something."""
        rows = 0 if self.inputs is None else rows_of(self.inputs)
        held = rows - min(rows, max(1, rows // 4))
        return (held - rows // 8 if self.validated and rows >= FEWEST else held), held

    def fitting(self, number: int) -> list[Batch]:
        """Return batches of up to ``number`` examples that a network is fitted to; none where there is only
        one."""
        if self.dataset is not None:
            return calibration_batches(self.dataset.train, number, seed=0)
        return _cut(self.inputs, 0, min(number, self.parts[0]))

    def validating(self) -> list[Batch]:
        """Return batches of a file's examples for validation; none where it has few."""
        return _cut(self.inputs, *self.parts)

    def apart(self) -> Any:
        """Return inputs that neither ``fitting`` nor ``validating`` has any of; random numbers where there
        are no others."""
        if self.dataset is not None:
            return self.dataset.test.drawn(_COMPARED, 0).inputs
        if self.inputs is None:
            return self.example
        return each_tensor(lambda tensor: tensor[self.parts[1] :], self.inputs)

    def held(self) -> list[Batch]:
        """Return ``apart`` in batches."""
        apart = self.apart()
        return _cut(apart, 0, rows_of(apart))


def _cut(inputs: Any, start: int, stop: int) -> list[Batch]:
    return [
        (each_tensor(lambda tensor, at=at: tensor[at : min(at + _BATCH, stop)], inputs), None)
        for at in range(start, stop, _BATCH)
    ]


def examples_of(
    network: nn.Module,
    *,
    input_shape: tuple[int, ...] | None = None,
    input_dtype: str | None = None,
    inputs: Path | None = None,
    data: Dataset | None = None,
    validated: bool = False,
) -> Examples:
    """Return what a network is run on, of the one of three options that is given; ``validated``: some of a
    file's examples are kept for validation."""
    if inputs is not None:
        found = bound(read_inputs(inputs), network, inputs)
        two, one = (each_tensor(lambda tensor, n=n: tensor[:n], found) for n in (2, 1))
        return Examples(two, found, data, one, validated)
    if input_shape is not None:
        return Examples(example_inputs(network, input_shape, dtype_of(input_shape, input_dtype)), None, data)
    if data is not None:
        return Examples(data.validation.first(2), None, data, data.validation.first(1))
    raise RecipeError("nothing to run the network on; give --input-shape, --inputs or --data")


def chooses(task: Task | None, data: Dataset | None) -> bool:
    """Return whether outputs are scores of classes as far as is known, so that two networks' first choices
    can be the same: the task says it, or else the labels of a data set."""
    if task is not None:
        return task.classes is not None
    return data is None or bool(data.classes)


def dataset_named(data: Named | None) -> Dataset | None:
    """Return the data set of ``--data``; a bare path is told how to write what it may be."""
    if data is None:
        return None
    if isinstance(data, str) and ":" not in data and (Path(data).exists() or "/" in data):
        kind = "npz" if data.endswith(".npz") else "image-folder"
        more = "" if kind == "npz" else ", size: 32"
        raise RecipeError(
            f"--data {shown(data)}: is a path; say what it is: --data '{{name: {kind}, path: {data}{more}}}'"
        )
    return load_dataset(described("--data", data, DataSpec))


def read_inputs(file: Path) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Read examples: of an .npz the arrays arg0, arg1, ... as positional arguments and others by their names,
    or the one of an .npy. The first dim of each is the batch.

    Raises DataError for what is neither, and for arrays that have not as many examples each.
    """
    if file.suffix == ".npy":
        arrays = {"arg0": read_array(file)}
    else:
        arrays, _ = read_arrays(file, lambda path, members: list(members))
    if not arrays:
        raise DataError(f"{file}: holds no array; arg0 is the first positional argument")
    for name, array in arrays.items():
        if not array.ndim or len(array) != len(next(iter(arrays.values()))) or not array.size:
            raise DataError(
                f"{file}: {name} has shape {array.shape}; the first dim of each array is the batch, as long "
                "in all of them"
            )
    with reading(f"{file}: torch has no such numbers", TypeError):
        native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}
        tensors = {name: torch.from_numpy(array) for name, array in native.items()}
    for name, tensor in tensors.items():
        if bool(tensor.isnan().any()):
            raise DataError(f"{file}: {name} holds a NaN; leave out the examples that do")
    positions = [name for name in tensors if _POSITION.fullmatch(name)]
    if {*positions} != {f"arg{i}" for i in range(len(positions))}:
        raise DataError(f"{file}: holds {', '.join(positions)}; positional arguments count from arg0")
    return [tensors.pop(f"arg{i}") for i in range(len(positions))], tensors


def bound(given: tuple[Sequence[Tensor], Mapping[str, Tensor]], network: nn.Module, file: Path) -> Inputs:
    """Return the arguments of a file as a network is called on them: one tensor, a tuple, or a dict by name.

    Raises DataError where the forward does not take them, and says what it takes.
    """
    args, named = given
    takes = arguments_of(network)
    says = f"{takes.name}.forward takes {takes}"
    if len(args) > len(takes.positional) and not takes.more:
        raise DataError(f"{file}: holds {len(args)} positional arguments (arg0, ...); {says}")
    strange = [name for name in named if name not in takes.keywords]
    if strange and not takes.any_keyword:
        raise DataError(f"{file}: {strange[0]!r} is no argument{nearest(strange[0], takes.keywords)}; {says}")
    places = dict(zip(takes.positional, args, strict=False))
    twice = next((name for name in named if name in places), None)
    if twice is not None:
        raise DataError(f"{file}: {twice!r} and one of arg0, ... are the same argument; {says}")
    missing = {*takes.positional[: takes.required], *takes.needed} - {*places, *named}
    if missing:
        raise DataError(f"{file}: lacks {min(missing)!r}; {says}")
    if not named:
        return args[0] if len(args) == 1 else tuple(args)
    if len(args) > len(takes.positional):
        raise DataError(f"{file}: arguments by name beside *args; {says}")
    return {**places, **named}


def dtype_of(shape: tuple[int, ...] | None, name: str | None) -> torch.dtype:
    if name is not None and name not in DTYPES:
        raise RecipeError(f"--input-dtype {name}: no such dtype{nearest(name, DTYPES)}")
    if name is not None and shape is None:
        raise RecipeError(f"--input-dtype {name}: the dtype of which inputs? give --input-shape too")
    return getattr(torch, name or "float32")


def example_inputs(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return one batch of normal numbers, or of integers that every embedding of the network has a row
    for (zeros where it has none); the same on every call."""
    text = shown(",".join(map(str, shape)))
    if math.prod(shape) > _MOST_NUMBERS:
        raise RecipeError(
            f"--input-shape {text}: no such tensor can be made: over {_MOST_NUMBERS:,} numbers are too many"
        )
    generator = torch.Generator().manual_seed(0)
    try:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        rows = [m.num_embeddings for m in network.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        return torch.randint(0, min(rows, default=1), shape, generator=generator).to(dtype)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise RecipeError(f"--input-shape {text}: no such tensor can be made: {first_line(error)}") from error


def no_data(who: str) -> Iterator[Any]:
    """Batches that are not there: who reads them hears which option would give them."""
    raise RecipeError(f"{who} reads data: name a data set with --data, or examples with --inputs")
    yield
