"""Every public name shows an example, and the examples of docstrings and of pages run."""

from __future__ import annotations

import ast
import doctest
import inspect
import io
import re
from pathlib import Path

import pytest
import torch

import secateur

ROOT = Path(__file__).parents[1]
PARSER = doctest.DocTestParser()


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """In a folder of its own, on one thread, from one seed."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def documented():
    """Return every docstring with an example, by its place. Read from the source: what is decorated hides."""
    found = {}
    package = ROOT / "src" / "secateur"
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                doc = ast.get_docstring(node) or ""
                place = f"{module}:{getattr(node, 'name', '')}"
                if ">>>" in doc:
                    assert place not in found
                    found[place] = doc
    return found


DOCUMENTED = documented()


@pytest.mark.parametrize("place", DOCUMENTED)
def test_examples_run(place):
    said = io.StringIO()
    test = PARSER.get_doctest(DOCUMENTED[place], {}, place, None, 0)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.write)
    assert not said.getvalue(), said.getvalue()


@pytest.mark.parametrize("name", secateur.PUBLIC)
def test_every_public_name_has_an_example_that_is_run(name):
    examples = PARSER.get_examples(inspect.getdoc(getattr(secateur, name)))
    assert examples, f"{name} shows no example"
    assert not any(doctest.SKIP in example.options for example in examples)
    assert f"{secateur.PUBLIC[name]}:{name}" in DOCUMENTED


def test_names_in_docstrings_and_pages_are_plain_and_public():
    for path in sorted((ROOT / "src").rglob("*.py")):
        assert not re.search(r":(func|class|meth|mod|data|attr|exc):`", path.read_text(encoding="utf-8")), (
            path
        )
    for path in [ROOT / "README.md", ROOT / "llms.txt", *sorted((ROOT / "docs").rglob("*.md"))]:
        used = set(re.findall(r"\bsc\.([A-Za-z_]\w*)", path.read_text(encoding="utf-8")))
        assert used <= {*secateur.PUBLIC, "errors"}, path


@pytest.mark.parametrize(("name", "lines"), [("extending.md", 6), ("round_trips.md", 5), ("tasks.md", 2)])
def test_pages_run_and_print_what_they_say(name, lines, capsys):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    exec(compile(code, name, "exec", dont_inherit=True), {"__name__": "__main__"})
    said = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert len(said) >= lines
    assert capsys.readouterr().out.splitlines() == said
