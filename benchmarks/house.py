"""Counts of the house: how often an idea is written down, how many lines there are, which files form circles.

    python benchmarks/house.py                        # this checkout
    python benchmarks/house.py ../before/src ./src    # beside another one
    python benchmarks/house.py --places               # with the places behind each count

Counted are places in the source, found in its syntax trees; nothing of it is imported but torch, which says
what an operator is.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

LAYERS = {
    "Linear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "_ConvNd",
}
Files = dict[str, tuple[str, ast.Module]]


def files_of(root: Path) -> Files:
    """Return the modules of a source tree by dotted name: text and syntax tree."""
    found: Files = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = (text, ast.parse(text))
    return found


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield functions and methods that are not inside another function."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield prefix + child.name, child
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")

    return walk(tree, "")


def attributes(node: ast.AST) -> list[str]:
    return [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]


def binds_a_schema(node: ast.AST) -> bool:
    """Whether a function goes through a schema's arguments and takes the call's by index or zip."""
    names = attributes(node)
    return "arguments" in names and "args" in names and ("_schema" in names or "schema" in names)


def hooks_a_step(node: ast.AST) -> bool:
    called = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} | set(attributes(node))
    return bool({"register_step_pre_hook", "register_step_post_hook", "around_steps"} & called)


def states_a_goal(node: ast.AST) -> bool:
    """Whether a function says itself that exactly one limit must be given."""
    texts = [
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    return any("exactly one of" in text for text in texts if len(text) < 200)


def in_functions(wanted: Callable[[ast.AST], bool]) -> Callable[[Files], list[str]]:
    return lambda files: [
        f"{name}:{function}"
        for name, (_, tree) in files.items()
        for function, node in functions(tree)
        if wanted(node)
    ]


def tables_of_operators(files: Files) -> list[str]:
    """Module-level tables that name three operators of torch or more as bare text."""
    known = {name.rstrip("_") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    known = {name.removeprefix("aten::").partition(".")[0].rstrip("_") for name in known}
    found = []
    for name, (_, tree) in files.items():
        for node in tree.body:
            value = getattr(node, "value", None)
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or value is None:
                continue
            words = [word.rstrip("_") for text in _listed(value) for word in text.split()]
            if (
                len({word for word in words if word in known and len(word) > 2}) >= 3
                and "runtime" not in name
            ):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                found.append(f"{name}:{ast.unparse(target)}")
    return found


def _listed(value: ast.AST) -> Iterator[str]:
    """Yield the texts that a table lists: of a mapping its keys, and those of its values that are lists of
    texts themselves. What else a key stands for is the file's own word, not the name of an operator."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.Dict):
        for key, each in zip(value.keys, value.values, strict=True):
            lists = key is None or isinstance(each, (ast.Tuple, ast.List, ast.Set, ast.Dict))
            yield from _listed(each) if lists else ()
            yield from _listed(key) if key is not None else ()
    elif isinstance(value, ast.DictComp):
        for part in (value.key, *value.generators):
            yield from _listed(part)
    else:
        for part in ast.iter_child_nodes(value):
            yield from _listed(part)


def notions_of_a_layer(files: Files) -> list[str]:
    """Modules that name the classes of layers themselves."""
    return [
        name
        for name, (_, tree) in files.items()
        if LAYERS
        & {part.attr for part in ast.walk(tree) if isinstance(part, ast.Attribute) and _of_nn(part.value)}
        and ".models" not in name
    ]


def _of_nn(node: ast.AST) -> bool:
    return ast.unparse(node) in ("nn", "torch.nn", "nn.modules.conv")


def code_lines(files: Files) -> int:
    """Lines that hold code: no docstrings, no comments, no blanks."""
    total = 0
    for text, tree in files.values():
        skipped: set[int] = set()
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                value = body[0].value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    skipped |= set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
            if token.type not in (*layout, tokenize.ENDMARKER):
                lines |= set(range(token.start[0], token.end[0] + 1))
        total += len(lines - skipped)
    return total


def circles(files: Files) -> list[list[str]]:
    """Return the sets of files that import one another, in functions and for types alone included."""
    names = [name for name in files if "." in name]  # not the package itself, whose names are lazy
    at = {name: index for index, name in enumerate(names)}
    edges = {
        (at[name], at[target])
        for name in names
        for target in _imported(name, files[name][1], files)
        if target in at and target != name
    }
    rows, columns = (np.array(side, dtype=int) for side in (zip(*edges, strict=True) if edges else ((), ())))
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    number, member = connected_components(graph, directed=True, connection="strong")
    sets = [[name for name in names if member[at[name]] == one] for one in range(number)]
    return sorted(group for group in sets if len(group) > 1)


def _imported(name: str, tree: ast.Module, files: Files) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: -node.level] if name.count(".") else [name]
                base = ".".join([*package, base]).rstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in files else base


COUNTS: dict[str, Callable[[Files], list[str]]] = {
    "places that bind a call's arguments": in_functions(binds_a_schema),
    "tables of operators by bare names": tables_of_operators,
    "files with a notion of a layer": notions_of_a_layer,
    "hooks around a step": in_functions(hooks_a_step),
    "checks of a goal": in_functions(states_a_goal),
    "circles of files": lambda files: [" - ".join(group) for group in circles(files)],
    "files over 400 lines": lambda files: [n for n, (text, _) in files.items() if text.count("\n") > 400],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, default=[Path(__file__).parents[1] / "src"])
    parser.add_argument("--places", action="store_true")
    options = parser.parse_args()
    trees = [files_of(root) for root in options.sources]
    print("| count |" + "".join(f" {root} |" for root in options.sources))
    print("| --- |" + " --- |" * len(trees))
    for what, count in COUNTS.items():
        found = [count(files) for files in trees]
        print(f"| {what} |" + "".join(f" {len(places)} |" for places in found))
        for places in found if options.places else ():
            print("\n".join(f"    {place}" for place in places))
    print("| lines of code |" + "".join(f" {code_lines(files):,} |" for files in trees))
    print("| files |" + "".join(f" {len(files)} |" for files in trees))


if __name__ == "__main__":
    main()
