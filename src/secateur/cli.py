"""The command line: arguments in, calls out."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import secateur
from secateur.errors import MissingExtraError, RecipeError, SecateurError, StorageError, WriteError
from secateur.text import shown

try:
    import typer
except ImportError as error:  # the core without the extra: the console script still exists
    raise SystemExit(f"error: {MissingExtraError('typer', 'lab')}") from error

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="secateur",
    help="Prune PyTorch networks, hold the zeros through any training, and say honestly what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_RUNS = Path("runs")  # the studies in it share their dense networks and finished trials

_Model = Annotated[
    str,
    typer.Option(
        help="A network's name, package.module:factory, or YAML with options: {name: ..., width: 0.5}."
    ),
]
_Folders = Annotated[list[Path], typer.Argument(help="Folders of studies (with a results.json each).")]
_InputDtype = Annotated[
    str | None, typer.Option(help="Dtype of that batch [float32]; int64 for networks that read tokens.")
]


def main() -> None:
    """Run the command line; an error of secateur's is one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot print a character loses that one
            stream.reconfigure(errors="replace")
    try:
        app()
    except (SecateurError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"secateur {secateur.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("list")
def list_() -> None:
    """List recipes, steps, data sets, networks, criteria, budgets, shrinkages and schedules, a line each."""
    from secateur.experiments.catalog import catalog

    for kind, entries in catalog().items():
        typer.echo(f"{kind}:")
        for name, line in entries.items():
            typer.echo(f"  {name:<20} {line}")


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `secateur list`) or a YAML file.")],
    set_: Annotated[
        list[str], typer.Option("--set", help="Override a setting: a.b=c.", metavar="A.B=C")
    ] = [],  # noqa: B006
    seeds: Annotated[str | None, typer.Option(help="Seeds, like 0,1,2.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder [runs/<recipe>].")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the trials.")] = 1,
    storage: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL of a database that several machines share.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="grid, or tpe: search within the sweep.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many points a search tries.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print what would run, and stop.")] = False,
    track: Annotated[
        str | None, typer.Option(help="Send trials, table and report to tensorboard, mlflow or wandb too.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print nothing but errors.")] = False,
) -> None:
    """Run a recipe: train, prune, retrain with the zeros held, measure, and report."""
    from secateur.experiments.recipe import load_recipe
    from secateur.experiments.results import read_results
    from secateur.experiments.study import describe, run_study
    from secateur.integrations.trackers import Tracked
    from secateur.report.page import write_page
    from secateur.report.terminal import print_table, progress

    settings = _settings(set_)
    settings |= {k: v for k, v in (("sampler", sampler), ("trials", trials)) if v is not None}
    loaded = load_recipe(recipe, settings, None if seeds is None else _integers("--seeds", seeds))
    folder = out or _RUNS / loaded.name
    shared = _RUNS if folder.parent.resolve() == _RUNS.resolve() else None
    if dry_run:
        typer.echo(describe(loaded, folder))
        return
    console = _console()
    tracked = Tracked(track, loaded.name, folder, lambda line: typer.echo(line, err=True))
    try:
        with progress(console, quiet) as reporter:
            heard = {"on_trial": tracked.with_trials(reporter.trial), "on_epoch": reporter.epoch}
            results = run_study(loaded, folder, workers=workers, storage=storage, shared=shared, **heard)
    except KeyboardInterrupt as interrupt:
        typer.echo("interrupted; run the same command again to go on from the last checkpoint", err=True)
        raise typer.Exit(130) from interrupt
    if not quiet:
        print_table(results, console)
    try:  # read back: there what `secateur deploy` measured of a trial stands beside it
        page = write_page([read_results(folder)], folder / "report.html")
    except (WriteError, OSError) as error:
        typer.echo(f"error: no report: {error}", err=True)
        raise typer.Exit(2) from error
    tracked.finish(results, page)
    if not quiet:
        files = f"{folder}/results.json, {folder}/results.csv"
        console.print(f"results: {files}; report: {page}", highlight=False, markup=False)
    failed = sum(row["state"] == "failed" for row in results["trials"])
    if failed:
        typer.echo(f"error: {failed} of {len(results['trials'])} trials failed (see the notes)", err=True)
        raise typer.Exit(1)


@app.command()
def report(
    folders: _Folders,
    out: Annotated[Path | None, typer.Option(help="The page [report.html in the first folder].")] = None,
    pictures: Annotated[
        str | None, typer.Option(help="Write each plot beside the page too: png, svg or pdf.")
    ] = None,
) -> None:
    """Write one report over one or several studies."""
    from secateur.experiments.results import check_writable, read_results
    from secateur.report.page import write_page
    from secateur.report.pictures import check_format, write_pictures

    check_format(pictures)
    studies = [read_results(folder) for folder in folders]
    page = out or folders[0] / "report.html"
    check_writable(page.parent)
    typer.echo(f"report: {write_page(studies, page)}")
    for picture in write_pictures(studies, page.parent, pictures) if pictures else []:
        typer.echo(f"picture: {picture}")


@app.command()
def choose(
    folders: _Folders,
    drop: Annotated[
        float,
        typer.Option(
            "--drop",
            "--accuracy-drop",
            help="How much worse than dense the validation score may be: points of accuracy.",
        ),
    ],
    minimise: Annotated[str, typer.Option(help="bytes, latency, macs or parameters.")] = "bytes",
    out: Annotated[
        Path | None, typer.Option(help="The network's file [chosen.safetensors in the first folder].")
    ] = None,
) -> None:
    """Take the smallest network whose validation score holds, and only then say its test figures."""
    from secateur.experiments.results import check_writable
    from secateur.report.choice import choose, write_choice
    from secateur.report.terminal import print_choice

    choice = choose(folders, drop, minimise)
    file = out or folders[0] / "chosen.safetensors"
    check_writable(file.parent)
    print_choice(choice, write_choice(choice, file), _console())


@app.command()
def deploy(
    trial: Annotated[Path, typer.Argument(help="The folder of one finished trial: OUT/trials/<id>.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the files go [deploy in the trial's folder].")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Your own network, as for inspect: its module is imported, a trial's file names none."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Your own data set: package.module:function, or YAML with options.")
    ] = None,
) -> None:
    """Write a trial's network in every format, and measure each: bytes, load, latency, memory, accuracy."""
    from secateur.experiments.commands.deployment import deploy
    from secateur.experiments.results import check_writable, read_results
    from secateur.report.page import write_page
    from secateur.report.terminal import print_deployment

    named = {"model": _named("--model", model), "data": _named("--data", data)}
    deployment = deploy(trial, out, **named, on_step=typer.echo)
    print_deployment(deployment, _console())
    study = trial.resolve().parent.parent
    if trial.resolve().parent.name == "trials" and (study / "results.json").is_file():
        try:
            check_writable(study)
        except StorageError as error:  # the table above is what was asked for
            typer.echo(f"no report: {error}", err=True)
        else:
            typer.echo(f"report: {write_page([read_results(study)], study / 'report.html')}")


@app.command()
def inspect(
    model: _Model,
    weights: Annotated[
        Path | None, typer.Option(help="A safetensors file: a state dict, or one of secateur.save.")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Shape of one input batch, like 1,3,32,32: adds MACs, latency, memory.")
    ] = None,
    input_dtype: _InputDtype = None,
) -> None:
    """Print a network's layers: shapes, parameters, non-zeros and sparsity."""
    from secateur.experiments.commands.network import inspect_model

    typer.echo(inspect_model(_named("--model", model), weights, _shape(input_shape), input_dtype))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A file of torch.save: .pth, .pt, .ckpt, .bin.")],
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    key: Annotated[
        str | None, typer.Option(help="The part that holds the weights, like ema/module [the usual one].")
    ] = None,
    keep_prefix: Annotated[
        bool, typer.Option("--keep-prefix", help="Leave what stands before every name, like 'model.'.")
    ] = False,
) -> None:
    """Make a PyTorch checkpoint a safetensors file, without running what it holds."""
    from secateur.experiments.commands.convert import convert as converted

    typer.echo(converted(source, target, key=key, keep_prefix=keep_prefix))


@app.command()
def prune(
    model: _Model,
    weights: Annotated[
        Path, typer.Option(help="Its trained weights: a safetensors state dict, or a file of secateur.save.")
    ],
    out: Annotated[Path, typer.Option(help="Where the pruned network goes.")],
    criterion: Annotated[
        str | None, typer.Option(help="A criterion's name [magnitude; with --units l2_norm].")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="A budget's name, or YAML: {name: std, sensitivity: 1.5} [global; with --units uniform]."
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="The share of weights to zero; with --units, of units to remove.")
    ] = None,
    shrinkage: Annotated[
        str, typer.Option(help="hard, soft, or YAML: {name: trimmed, upper: 0.99}.")
    ] = "hard",
    units: Annotated[
        bool,
        typer.Option("--units", help="Whole neurons, filters and heads go, and are removed for real."),
    ] = False,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Remove for real what the zeros left dead; --units always does."),
    ] = False,
    graph: Annotated[
        bool,
        typer.Option(
            "--graph", help="Removed from its graph: no size written into its forward is in the way."
        ),
    ] = False,
    input_shape: Annotated[
        str | None, typer.Option(help="Shape of one input batch, like 1,3,32,32, for --units and --compact.")
    ] = None,
    input_dtype: _InputDtype = None,
    round_to: Annotated[int, typer.Option(help="Of units, every group keeps a multiple of this.")] = 1,
    min_kept: Annotated[int, typer.Option(help="Of units, every group keeps at least this many.")] = 1,
    include: Annotated[
        list[str] | None, typer.Option(help="Only tensors (with --units groups) that match this pattern.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No tensor (group) that matches this pattern.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A data set, or YAML, for criteria that read data; units may be found on it too."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Where the masks of the network in --out go too.")
    ] = None,
) -> None:
    """Prune a checkpoint of your own, without a recipe."""
    from secateur.experiments.commands.network import prune_checkpoint

    result = prune_checkpoint(
        model=_named("--model", model),
        weights=weights,
        out=out,
        step={
            "criterion": _named("--criterion", criterion),
            "budget": _named("--budget", budget),
            "shrinkage": _named("--shrinkage", shrinkage),
            "units": units,
            "round_to": round_to,
            "min_kept": min_kept,
            "include": include,
            "exclude": exclude,
        },
        sparsity=sparsity,
        removing=compact,
        input_shape=_shape(input_shape),
        input_dtype=input_dtype,
        data=_named("--data", data),
        masks_out=masks,
        graph=graph,
    )
    typer.echo(result)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A log has no width of its own; wide enough that no row of a table is cut.
    return console if console.is_terminal else Console(width=200)


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {shown(pair)}: write it as key=value, like retrain.epochs=0")
        settings[key] = _yaml(f"--set {shown(key)}", value)
    return settings


def _named(option: str, text: str | None) -> Any:
    value = None if text is None else _yaml(option, text)
    if value is None and text is not None:
        raise RecipeError(f"{option} {text!r}: is empty; give a name")
    return value


def _yaml(option: str, text: str) -> Any:
    from secateur.experiments.yaml_lines import parse_yaml

    try:
        return parse_yaml(text, "").value
    except RecipeError as error:
        raise RecipeError(f"{option}: {shown(repr(text))} is not valid YAML: {error}") from error


def _shape(text: str | None) -> tuple[int, ...] | None:
    shape = None if text is None else tuple(_integers("--input-shape", text))
    if shape is not None and min(shape) < 1:
        raise RecipeError(f"--input-shape {text}: sizes count from 1")
    return shape


def _integers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("-?[0-9]{1,19}", part) for part in parts):
        raise RecipeError(f"{option} {shown(text)}: write whole numbers with commas, like 0,1,2")
    return [int(part) for part in parts]


if __name__ == "__main__":
    main()
