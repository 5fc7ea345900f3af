"""The command line: arguments in, calls out."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import secateur
from secateur.errors import MissingExtraError, RecipeError, SecateurError, WriteError
from secateur.text import shown

try:
    import typer
except ImportError as error:  # the core without the extra: the console script still exists
    raise SystemExit(f"error: {MissingExtraError('typer', 'lab')}") from error

from secateur.cli import checkpoints, folders
from secateur.cli.options import console, integers, yaml_of

app = typer.Typer(
    name="secateur",
    help="Prune PyTorch networks, hold the zeros through any training, and say honestly what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_RUNS = Path("runs")  # the studies in it share their dense networks and finished trials

_Folders = Annotated[list[Path], typer.Argument(help="Folders of studies (with a results.json each).")]


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
    loaded = load_recipe(recipe, settings, None if seeds is None else integers("--seeds", seeds))
    folder = out or _RUNS / loaded.name
    shared = _RUNS if folder.parent.resolve() == _RUNS.resolve() else None
    if dry_run:
        typer.echo(describe(loaded, folder))
        return
    screen = console()
    tracked = Tracked(track, loaded.name, folder, lambda line: typer.echo(line, err=True))
    try:
        with progress(screen, quiet) as reporter:
            heard = {"on_trial": tracked.with_trials(reporter.trial), "on_epoch": reporter.epoch}
            results = run_study(loaded, folder, workers=workers, storage=storage, shared=shared, **heard)
    except KeyboardInterrupt as interrupt:
        typer.echo("interrupted; run the same command again to go on from the last checkpoint", err=True)
        raise typer.Exit(130) from interrupt
    if not quiet:
        print_table(results, screen)
    try:  # read back: there what `secateur deploy` measured of a trial stands beside it
        page = write_page([read_results(folder)], folder / "report.html")
    except (WriteError, OSError) as error:
        typer.echo(f"error: no report: {error}", err=True)
        raise typer.Exit(2) from error
    tracked.finish(results, page)
    if not quiet:
        files = f"{folder}/results.json, {folder}/results.csv"
        screen.print(f"results: {files}; report: {page}", highlight=False, markup=False)
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
    print_choice(choice, write_choice(choice, file), console())


for command in (
    checkpoints.inspect,
    checkpoints.convert,
    checkpoints.prune,
    checkpoints.shrink,
    checkpoints.deploy,
    folders.prune_folder,
    folders.evaluate,
):
    app.command()(command)


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {shown(pair)}: write it as key=value, like retrain.epochs=0")
        settings[key] = yaml_of(f"--set {shown(key)}", value)
    return settings
