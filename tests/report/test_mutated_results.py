"""Results that somebody changed: a report and a choice, or one line that names the file."""

import ast
import io
import json
import random
import sys

import pytest
from mutants import mutated
from rich.console import Console
from sample import compacted
from test_deployed import DEPLOYMENT

from secateur.errors import SecateurError
from secateur.experiments.results import read_results
from secateur.report import page as pages
from secateur.report.choice import QUANTITIES, Files, choose, how_to_load
from secateur.report.terminal import print_choice, print_deployment, print_table


@pytest.fixture
def folder(tmp_path):
    """A folder for results; a number may have any digits, as far as the test's own writer goes."""
    sys.set_int_max_str_digits(0)
    yield tmp_path
    sys.set_int_max_str_digits(4300)


def study():
    """Results as a study writes them, of two sparsities and two seeds, with all that a trial can have."""
    results = compacted(sparsities=(0.3, 0.6))
    for trial in results["trials"]:
        trial["metrics"] |= {"score_retrained_validation": 0.9, "score_pruned_validation": 0.9}
        trial["metrics"] |= {"bytes_sparse": 500, "bytes_dense": 4000}
        trial["stages"] = {"anneal": [{"alpha": 0.5, "rate": 1.0, "score": 0.9, "loss": 0.1, "kept": True}]}
        trial["config"]["steps"].append({"scratch": {"width": 0.5, "model": {"hidden": 4}}})
    return results


def write(folder, results, deployed):
    (folder / "results.json").write_text(json.dumps(results))
    place = folder / "trials" / "3000" / "deploy"
    place.mkdir(parents=True, exist_ok=True)
    (place / "deploy.json").write_text(json.dumps(deployed))


def shown(folder, rng):
    """All that is made of a study's files: the page, and what the commands print."""
    results = read_results(folder)
    console = Console(file=io.StringIO(), width=200)
    print_table(results, console)
    for trial in results["trials"]:
        if "deployment" in trial:
            print_deployment(trial["deployment"], console)
    page = pages.page([results])
    choice = choose([folder], 100, rng.choice(list(QUANTITIES)))
    files = Files(folder / "o", None, reshaped=rng.random() < 0.5)
    print_choice(choice, files, console)
    return page, console.file.getvalue(), "\n".join(how_to_load(choice, files))


def test_what_a_study_writes_is_shown_as_it_is(folder):
    write(folder, study(), DEPLOYMENT)
    results = read_results(folder)
    assert results["trials"][0].pop("deployment") == DEPLOYMENT
    assert [row["metrics"] for row in results["trials"]] == [row["metrics"] for row in study()["trials"]]
    page, printed, code = shown(folder, random.Random(0))
    assert "<h2>Deployment</h2>" in page
    assert "chosen: compacted" in printed
    assert "build_model('digits-mlp', hidden=4)" in code or "hidden=4, width=0.5" in code


def test_no_mutant_is_a_traceback(folder, monkeypatch):
    """Whatever is accepted can be encoded, ends no script, moves no cursor, and prints Python that parses."""
    monkeypatch.setattr(pages, "_plotly", lambda: "")
    said: list[str] = []
    for seed in range(1200):
        rng = random.Random(seed)
        both = [study(), DEPLOYMENT]
        index = rng.random() < 0.3
        both[index] = mutated(rng, both[index])
        write(folder, *both)
        try:
            page, printed, code = shown(folder, rng)
        except SecateurError as error:
            said.append(str(error))
            continue
        page.encode()
        printed.encode()
        assert "\x1b" not in page + printed, seed
        assert page.count("<script") == 3, seed
        assert "<b>" not in page, seed
        ast.parse(code)
    assert 400 < len(said) < 1100
    assert all(line.isprintable() and len(line) < 5000 for line in said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(id="../../x"), r"results\.json: trials\.0: id is '\.\./\.\./x'; a hash in"),
        (lambda t: t.update(dense="/etc/passwd"), r"dense is '/etc/passwd'; a hash in hexadecimal digits"),
        (lambda t: t["metrics"].update(sparsity=True), r"metrics\.sparsity is True; a number"),
        (lambda t: t["metrics"].update(score_dense=1.5), r"score_dense is 1\.5; a number from 0 to 1"),
        (lambda t: t["metrics"].update(macs=1.0), r"metrics\.macs is 1\.0; a whole number from 0"),
        (lambda t: t["metrics"].update(latency_ms=0), r"metrics\.latency_ms is 0; a number from 1e-18"),
        (lambda t: t.update(metrics=[]), r"metrics is a list of 0; an object is right"),
        (lambda t: t.update(state="\x1b[2J"), r"state is '\\x1b\[2J'"),
        (lambda t: t["layers"][0].pop("name"), r"lacks 'layers\.0\.name'"),
        (lambda t: t["curves"].update(dense=[{}]), r"lacks 'curves\.dense\.0\.validation_score'"),
        (lambda t: t["config"]["model"].update({"x); import os; (y": 1}), r"'x\); import os; \(y' is no"),
        (lambda t: t["config"]["model"].update({"class": 1}), r"'class' is no name that Python takes"),
        (lambda t: t["config"].update(steps=[{"prune": {}}]), r"config\.steps\.0 is .*an object is right"),
        (lambda t: t.pop("epochs"), "a trial lacks 'epochs': written by an early version"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, change, message):
    results = study()
    change(results["trials"][0])
    write(folder, results, DEPLOYMENT)
    with pytest.raises(SecateurError, match=message):
        read_results(folder)


@pytest.mark.parametrize("trials", [[], "failed"])
def test_a_study_without_a_finished_trial_has_a_page(folder, trials):
    results = study()
    if trials == "failed":
        lost = {"id": "f", "method": "m", "state": "failed", "point": {}, "seed": 1, "config": None}
        trials = [lost]
    write(folder, results | {"trials": trials}, DEPLOYMENT)
    assert "<h2>Results</h2>" in pages.page([read_results(folder)])


def test_a_link_out_of_the_study_is_not_followed(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write(outside, study(), DEPLOYMENT)
    write(folder, study(), DEPLOYMENT)
    deployed = folder / "trials" / "3000" / "deploy" / "deploy.json"
    deployed.unlink()
    deployed.symlink_to(outside / "trials" / "3000" / "deploy" / "deploy.json")
    with pytest.raises(SecateurError, match="a link leads out of"):
        read_results(folder)
