"""Recipes and settings, and what ``report``, ``choose`` and ``deploy`` read of a study."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from formats import Files, Opened, files_below
from mutations import Chance, changed, edited, json_text, nasty
from rich.console import Console
from subjects import make_study

from secateur import cli
from secateur.errors import SecateurError
from secateur.experiments.commands.finished import load_dense, load_pruned, read_trial
from secateur.experiments.recipe import load_recipe, packaged_recipes
from secateur.experiments.results import read_results
from secateur.report.choice import choose, write_choice
from secateur.report.page import write_page
from secateur.report.terminal import print_choice, print_table

# What JSON has not: written into YAML text where a value stood.
_YAML = [
    *(
        "!!int abc",
        "&a [*a]",
        "*a",
        "2001-01-01",
        "2001-01-01 10:00:00",
        "!!python/name:os.system",
        "!!binary aGk=",
    ),
    *(
        "!!set {a, b}",
        "!!omap [a: 1]",
        "{<<: {a: 1}, b: 2}",
        "{<<: 1}",
        "{? [a]: b}",
        "{? {a: b}: c}",
        "1:20:30",
    ),
    *(
        "0o17",
        "0x1F",
        "0b1",
        "1_000",
        ".inf",
        "-.inf",
        ".nan",
        "~",
        "yes",
        "no",
        "on",
        "|\n    x",
        "'unclosed",
    ),
    *(
        "!!float 1e400",
        "!!str 5",
        "!!timestamp x",
        "!custom 3",
        "&x 1",
        "? a",
        "- a",
        "{a: &b {c: *b}}",
        "\t",
        "%",
    ),
    *(
        "{1: 2}",
        "{null: 1}",
        "{true: 1}",
        "{1.5: 2}",
        "9" * 5000,
        "[" * 3000,
        "{a: " * 3000,
        "1e-3",
        "1e3",
        "0.9",
    ),
    '!!python/object/apply:os.system ["touch evil"]',
]
_BOMB = "b0: &b0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


def recipes(folder: Path) -> Opened:
    texts = [path.read_text(encoding="utf-8") for path in packaged_recipes().values()]
    trees = [yaml.safe_load(text) for text in texts]

    def mutate(chance: Chance) -> Files:
        kind, at = chance.randrange(10), chance.randrange(len(texts))
        if kind < 4:
            tree = json.loads(json.dumps(trees[at]))  # JSON is YAML too
            return {"recipe.yaml": json_text(edited(tree, chance, code=False), chance)}
        if kind < 7:
            return {"recipe.yaml": _lines(texts[at], chance).encode("utf-8", "surrogatepass")}
        if kind == 7:
            return {"recipe.yaml": (texts[at] + _BOMB).encode()}
        return {"recipe.yaml": changed(texts[at].encode(), chance, chance.choice(texts).encode())}

    def read(place: Path) -> None:
        load_recipe(str(place / "recipe.yaml"))

    return Opened(mutate, read, [{"recipe.yaml": text.encode()} for text in texts])


def _lines(text: str, chance: Chance) -> str:
    """Drop, double, swap and indent lines, or put something else where a value stands."""
    lines = text.splitlines()
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        kind = chance.randrange(8)
        key, colon, value = lines[at].partition(":")
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(other, lines[at])
        elif kind == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = "  " * chance.randrange(3) + lines[at].lstrip()
        elif kind == 4 and colon:
            lines[at] = f"{key}: &a {value}"
            lines.append(f"more: {'[' + '*a, ' * 40 + '*a]'}")
        elif colon:
            lines[at] = f"{key}: {chance.choice(_YAML)}"
    return "\n".join(lines) + "\n"


def settings(folder: Path) -> Opened:
    names = ["mnist", "gradual", "greedy", "structure_selection", "branch_annealing", "quickstart", "pareto"]
    keys: list[str] = []
    for name in names:
        keys += _dotted(load_recipe(name).raw)
    words = [
        "1",
        "0.5",
        "true",
        "[1, 2]",
        "magnitude",
        "{name: global, sparsity: 0.9}",
        "digits",
        "null",
        "auto",
    ]
    originals: list[Files] = [{"set.txt": f"{name}\nseeds=[0]".encode()} for name in names]

    def mutate(chance: Chance) -> Files:
        pairs = [chance.choice(names)]
        for _ in range(chance.choice((1, 1, 2))):
            key, value = chance.choice(keys), chance.choice(words + _YAML)
            if chance.random() < 0.4:
                key = changed(key.encode(), chance).decode("utf-8", "replace")
            if chance.random() < 0.3:
                value = str(nasty(chance, code=False))
            elif chance.random() < 0.3:
                value = changed(value.encode()[:300], chance).decode("utf-8", "replace")
            pairs.append(f"{key}{'=' if chance.random() < 0.95 else ''}{value}".replace("\n", " "))
        return {"set.txt": "\n".join(pairs).encode("utf-8", "surrogatepass")}

    def read(place: Path) -> None:
        name, *pairs = (place / "set.txt").read_bytes().decode("utf-8", "surrogatepass").split("\n")
        load_recipe(name, cli._settings(pairs))

    return Opened(mutate, read, originals)


def _dotted(raw: dict[str, Any]) -> list[str]:
    """Return keys as ``--set`` takes them: of the recipe, of its parts and of its steps."""
    keys = [*raw]
    for part in ("data", "model", "train"):
        keys += [f"{part}.{key}" for key in raw.get(part) or {}]
    lists = [raw.get("steps") or [], *(m["steps"] for m in (raw.get("methods") or {}).values())]
    for step in (step for steps in lists for step in steps):
        for name, inner in step.items():
            keys.append(name)
            keys += [f"{name}.{key}" for key in inner] if isinstance(inner, dict) else []
    return [*keys, "prune.budget.sparsity", "prune.criterion.name", "a..b", ".", "", "steps.0", "retrain."]


def _of_study(
    folder: Path, names: tuple[str, ...], read: Callable[[Path], Any], trial: str | None = None
) -> Opened:
    """Mutate the JSON files ``names`` of a study; ``trial``: the method of the trial TRIAL."""
    study = make_study(folder / "study")
    rows = json.loads((study / "results.json").read_text())["trials"]
    chosen = [row["id"] for row in rows if trial in (None, row["method"])]
    texts = {name: (study / name.replace("TRIAL", chosen[0])).read_bytes() for name in names}
    places = {name: f"runs/small/{name.replace('TRIAL', chosen[0])}" for name in names}

    def mutate(chance: Chance) -> Files:
        files: Files = {places[name]: text for name, text in texts.items()}
        name = chance.choice(names)
        if chance.random() < 0.85:
            files[places[name]] = json_text(edited(json.loads(texts[name]), chance), chance)
        else:
            files[places[name]] = changed(texts[name], chance, texts[name])
        return files

    original: Files = {places[name]: text for name, text in texts.items()}
    return Opened(mutate, read, [original], always=files_below(folder / "study"))


def _quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def report(folder: Path) -> Opened:
    def read(place: Path) -> None:
        results = read_results(place / "runs/small")
        write_page([results], place / "runs/small/report.html")
        print_table(results, _quiet())

    row = json.loads((make_study(folder / "study") / "results.json").read_text())["trials"][0]
    return _of_study(
        folder, ("results.json", "results.json", "trials/TRIAL/deploy/deploy.json"), read, row["method"]
    )


def chosen(folder: Path) -> Opened:
    def read(place: Path) -> None:
        study = place / "runs/small"
        choice = choose(
            [study], 50.0, random.Random(len((study / "results.json").read_bytes())).choice(_QUANTITIES)
        )
        files = write_choice(choice, study / "chosen.safetensors")
        with redirect_stdout(io.StringIO()):
            print_choice(choice, files, _quiet())

    return _of_study(folder, ("results.json",), read)


_QUANTITIES = ("bytes", "parameters", "macs")  # the study measures no latency


def deployed(method: str) -> Callable[[Path], Opened]:
    def open_(folder: Path) -> Opened:
        study = make_study(folder / "study")
        rows = json.loads((study / "results.json").read_text())["trials"]
        trial = next(row["id"] for row in rows if row["method"] == method)

        def read(place: Path) -> None:
            found = read_trial(place / "runs/small/trials" / trial)
            problems: list[SecateurError] = []
            for load in (load_pruned, lambda trial: load_dense(trial, trial.dense_file())):
                try:
                    load(found)
                except SecateurError as error:
                    problems.append(error)
            if problems:
                raise problems[0]

        return _of_study(folder, ("trials/TRIAL/result.json",), read, method)

    return open_


FORMATS = {
    "recipes": recipes,
    "settings": settings,
    "report": report,
    "choose": chosen,
    "deploy": deployed("zeros"),
    "deploy-scratch": deployed("scratch"),
}
