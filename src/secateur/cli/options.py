"""What options of the command line hold, read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.errors import RecipeError
from secateur.text import shown

if TYPE_CHECKING:
    from rich.console import Console

Model = Annotated[
    str,
    typer.Option(
        help="A network's name, package.module:factory, a folder of transformers, timm:NAME, or YAML with "
        "options: {name: ..., width: 0.5}."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Its weights: a safetensors state dict, or a file of secateur.save [those its factory loads]."
    ),
]
InputShape = Annotated[
    str | None, typer.Option(help="Shape of one input batch, like 1,3,32,32: random numbers.")
]
InputDtype = Annotated[
    str | None, typer.Option(help="Dtype of that batch [float32]; int64 for networks that read tokens.")
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        help="Examples: an .npz with arg0, arg1, ... or arrays named as the forward's arguments, or an .npy."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="A data set, package.module:function, or YAML: {name: image-folder, path: ...}."),
]
Alike = Annotated[
    bool,
    typer.Option(
        "--alike",
        help="Of units, like groups of like blocks lose as many each: a stock configuration of transformers "
        "can say what is left.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(help="The task of --data [classification]: see `secateur list`, or package.module:Task."),
]


def console() -> Console:
    from rich.console import Console

    console = Console()
    # A log has no width of its own; wide enough that no row of a table is cut.
    return console if console.is_terminal else Console(width=200)


def named(option: str, text: str | None) -> Any:
    value = None if text is None else yaml_of(option, text)
    if value is None and text is not None:
        raise RecipeError(f"{option} {text!r}: is empty; give a name")
    return value


def yaml_of(option: str, text: str) -> Any:
    from secateur.experiments.yaml_lines import parse_yaml

    try:
        return parse_yaml(text, "").value
    except RecipeError as error:
        raise RecipeError(f"{option}: {shown(repr(text))} is not valid YAML: {error}") from error


def shape(text: str | None) -> tuple[int, ...] | None:
    shape = None if text is None else tuple(integers("--input-shape", text))
    if shape is not None and min(shape) < 1:
        raise RecipeError(f"--input-shape {text}: sizes count from 1")
    return shape


def integers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("-?[0-9]{1,19}", part) for part in parts):
        raise RecipeError(f"{option} {shown(text)}: write whole numbers with commas, like 0,1,2")
    return [int(part) for part in parts]
