"""The result table and the progress of a study on a terminal, or as plain lines in a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from secateur.report.aggregate import (
    Figure,
    Group,
    check_one_score,
    columns_unit,
    figure_of,
    groups_of,
    scored,
    table_of,
)
from secateur.report.choice import Choice, Files, Quantity, how_to_load, is_own
from secateur.report.deployed import Deployment, deployed_label, deployment_lines, deployment_table
from secateur.report.smaller import smaller_table
from secateur.text import printable

_SHOWN = 10  # points of a choice


class Reporter:
    """Hears of every trial that starts and every epoch that ends; this one keeps it to itself."""

    def trial(self, index: int, total: int, label: str) -> None:
        pass

    def epoch(self, text: str) -> None:
        pass


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """Print one row a point: means over seeds, the quoted figures labelled as quoted."""
    groups = groups_of(results)
    title = f"{results['recipe']}: test {check_one_score(groups).title}, mean ± std over seeds"
    _print_rows(title, *table_of(groups), console)
    header, rows = smaller_table(groups)
    if rows:
        _print_rows(
            "really smaller, beside the dense network; latency measured, batch of one", header, rows, console
        )
    for note in dict.fromkeys(note for trial in results["trials"] for note in trial.get("notes", [])):
        console.print(Text(printable(f"note: {note}")), style="yellow" if "emptied" in note else "dim")


def print_choice(choice: Choice, files: Files, console: Console) -> None:
    """Print what was considered, the network chosen on validation, only then its test figures, and the
    file with the lines that load it."""
    candidates = [*choice.within, *choice.beyond]
    several = len({candidate.group.study for candidate in candidates}) > 1
    share = choice.quantity.over is not None
    scale = candidates[0].group.scale
    unit = columns_unit(scale)
    header = [
        "point",
        f"validation{unit}",
        f"dense{unit}",
        "drop",
        f"{choice.quantity.name}{' %' if share else ''}",
    ]
    rows: list[list[str]] = []
    for index, candidate in enumerate(candidates[:_SHOWN]):
        study = _study_of(candidate.group) if several else ""
        cost = 100 * candidate.cost.mean if share else candidate.cost.mean
        row = [f"{study}{candidate.group.label}"]
        row += [scored(figure, scale) for figure in (candidate.validation, candidate.dense)]
        row += [f"{candidate.drop:.2f}", f"{cost:.1f}" if share else f"{cost:,.0f}"]
        seeds = str(candidate.validation.number)
        rows.append([*row, seeds, "yes" if index < len(choice.within) else "no"])
    title = (
        f"points at most {choice.limit:g} {scale.points} worse than the dense network on validation: "
        f"{len(choice.within)} of {len(candidates)}"
    )
    _print_rows(title, [*header, "seeds", "within"], rows, console)
    if len(candidates) > _SHOWN:
        _say(f"not shown: {len(candidates) - _SHOWN} more", console)
    if choice.failed:
        _say(f"note: trials that failed and are not counted: {choice.failed}", console)
    if choice.ties:
        _say(f"note: others with exactly as few {choice.quantity.name}: {choice.ties}", console)
    _print_chosen(choice, several, console)
    masks = f"; its masks: {files.masks}" if files.masks else ""
    _say(f"model: {files.model}{masks}; load it with", console)
    for line in how_to_load(choice, files):
        _say(f"  {line}", console)
    trial = choice.chosen.folder / "trials" / choice.trial["id"]
    own = " --model package.module:factory" if is_own(choice) else ""
    _say(f"in every format, and what each costs: secateur deploy {trial}{own}", console)


def print_deployment(deployment: Deployment, console: Console) -> None:
    """Print one row a format, what is best by each measure, and what the figures are."""
    title = f"{deployed_label(deployment)}: {deployment['test']:,} test examples"
    _print_rows(title, *deployment_table(deployment), console)
    for line in deployment_lines(deployment):
        _say(line, console)


def _print_chosen(choice: Choice, several: bool, console: Console) -> None:
    """Dense beside chosen, mean of its seeds and the one seed: validation, quantity, and last the test."""
    best, quantity, trial = choice.chosen, choice.quantity, choice.trial
    group, seed, scale = best.group, f"seed {trial['seed']}", best.group.scale
    unit = columns_unit(scale)
    test, alone = best.metric.removesuffix("_validation"), replace(group, trials=(trial,))
    of_dense = figure_of(quantity.dense(each["metrics"]) for each in group.trials)
    scores = [best.dense, best.validation, alone.figure(best.metric)]
    costs = [of_dense, group.figure(quantity.metric), alone.figure(quantity.metric)]
    tests = [group.figure("score_dense"), group.figure(test), alone.figure(test)]
    rows = [
        [f"validation {scale.name}{unit}", *(scored(figure, scale) for figure in scores)],
        [quantity.words, *(_number(cost, quantity) for cost in costs)],
        [f"test {scale.name}{unit}, read after the choice", *(scored(figure, scale) for figure in tests)],
    ]
    study = _study_of(group) if several else ""
    title = f"chosen: {study}{group.label}, {seed}: the best of its {len(group.trials)} on validation"
    _print_rows(title, ["", "dense", "chosen, mean", seed], rows, console)


def _study_of(group: Group) -> str:
    return "" if group.study == group.method else f"{group.study}: "


def _number(figure: Figure | None, quantity: Quantity) -> str:
    if figure is None:
        return "not recorded"
    return f"{figure.mean:,.0f}" if quantity.over is None else f"{figure.mean:.3g}"


def _say(text: str, console: Console) -> None:
    console.print(Text(printable(text)), soft_wrap=True)


def _print_rows(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    console.print(Text(printable(title), style="italic"), soft_wrap=True)
    table = Table()
    for index, name in enumerate(header):
        table.add_column(Text(printable(name)), justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


@contextmanager
def progress(console: Console, quiet: bool) -> Iterator[Reporter]:
    """Yield what shows progress: bars on a terminal, a line a trial elsewhere, nothing if ``quiet``."""
    if quiet:
        yield Reporter()
    elif not console.is_terminal:
        yield _Lines(console)
    else:
        label = TextColumn("{task.description}", markup=False)
        done = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        epoch = TextColumn("{task.fields[epoch]}", style="dim", markup=False)
        with Progress(label, *done, epoch, console=console, transient=True) as bar:
            yield _Bars(bar)


class _Lines(Reporter):
    def __init__(self, console: Console) -> None:
        self.console = console

    def trial(self, index: int, total: int, label: str) -> None:
        if index < total:
            self.console.print(Text(printable(f"trial {index + 1}/{total}: {label}")))


class _Bars(Reporter):
    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("trials", total=None, epoch="")

    def trial(self, index: int, total: int, label: str) -> None:
        self.bar.update(self.task, total=total, completed=index, description=printable(label))

    def epoch(self, text: str) -> None:
        self.bar.update(self.task, epoch=printable(text))
