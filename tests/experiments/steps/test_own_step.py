"""A step, a criterion, a budget, a shrinkage and a schedule of the user's own, named in a recipe."""

import json
import sys

import pytest
import torch
from one_trial import run, without_times

from kills import killed_at_every_write
from secateur.errors import RecipeError
from secateur.experiments.commands.finished import load_pruned, read_trial
from secateur.experiments.recipe import load_recipe
from secateur.experiments.results import read_results
from secateur.experiments.study import run_study
from secateur.experiments.trial import trial_id
from secateur.report.choice import choose, how_to_load, write_choice

OWN = """\
from dataclasses import dataclass, field
from typing import ClassVar
import torch
import secateur as sc
from pydantic import Field
Step = sc.Step
class Shrink(Step):
    '''All weights become smaller.'''
    factor: float = Field(0.5, gt=0)
    include: list[str] | None = None
    def run(self, work, id):
        with torch.no_grad():
            for weight in work.state.model.parameters():
                weight *= self.factor
        work.state.notes[id] = [f"times {self.factor}"]
@dataclass(frozen=True)
class Largest:
    '''The largest weights are the least important.'''
    power: float = 1.0
    also: list[int] = field(default_factory=list)
    reads_data: ClassVar[bool] = False
    def __call__(self, targets, data=None, loss=None):
        return {name: -target.weight.detach().abs() ** self.power for name, target in targets.items()}
@dataclass(frozen=True)
class Half:
    sparsity: float = 0.5
    amount: ClassVar[str] = "sparsity"
    def __call__(self, scores, weights):
        return sc.Uniform(self.sparsity)(scores, weights)
@dataclass(frozen=True)
class Zero:
    def __call__(self, weight, doomed, cut):
        weight[doomed] = 0
        return doomed
@dataclass(frozen=True)
class Twice:
    first: float
    def __call__(self, final):
        return [self.first, final]
@dataclass(frozen=True)
class Broken:
    def __call__(self, final):
        return [final / 0]
class Plain:
    pass
class Idle(Step):
    pass
class Failing(Step):
    factor: float
    def run(self, work, id):
        if self.factor == 0.25:
            raise KeyError('fc1')
"""
RECIPE = """\
name: own
data: {name: digits, validation: 200}
model: {name: digits-mlp, hidden: 16}
train: {epochs: 1}
measure: []
seeds: [0]
sweep: {Shrink.factor: [0.5, 0.25]}
steps:
  - NAME:Shrink: {factor: 0.1}
  - prune:
      criterion: {name: NAME:Largest, power: 2.0}
      budget: {name: NAME:Half, sparsity: 0.8}
      schedule: {name: NAME:Twice, first: 0.4, retrain: {epochs: 1}}
  - retrain: {epochs: 1}
"""


def chosen(folder):
    choice = choose([folder], 100.0)
    return choice, write_choice(choice, folder / "chosen.safetensors")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A working folder with a module of the user's, that no other test imports."""
    name = tmp_path.name.replace("-", "_")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])

    def writer(*changes, own=OWN):
        text = RECIPE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / f"own_{name}.py").write_text(own)
        (tmp_path / "own.yaml").write_text(text.replace("NAME", f"own_{name}"))
        for other in [other for other in sys.modules if other.startswith("own_")]:
            del sys.modules[other]
        return str(tmp_path / "own.yaml")

    return writer


def test_they_run_in_a_study_with_its_sweep_and_are_found_again(write, tmp_path):
    path, before = write(), list(sys.path)
    results = run_study(load_recipe(path), tmp_path / "out")
    assert sys.path == before
    rows = results["trials"]
    assert [row["point"] for row in rows] == [{"Shrink.factor": 0.5}, {"Shrink.factor": 0.25}]
    assert [row["notes"][0] for row in rows] == ["times 0.5", "times 0.25"]
    assert all(row["metrics"]["sparsity"] == pytest.approx(0.8, abs=1e-3) for row in rows)
    assert list(rows[0]["curves"]) == ["dense", "prune.0", "retrain"]
    again = run_study(load_recipe(path), tmp_path / "out")
    assert json.dumps(again["trials"]) == json.dumps(rows)
    own = next(name for name in sys.modules if name.startswith("own_"))
    del sys.modules[own]
    assert read_results(tmp_path / "out")["trials"] == rows
    assert load_pruned(read_trial(tmp_path / "out" / "trials" / rows[0]["id"])) is not None
    assert how_to_load(*chosen(tmp_path / "out"))
    assert own not in sys.modules, "what reads results imports nothing"


def test_one_that_raises_is_a_failed_trial_and_the_study_goes_on(write, tmp_path):
    path = write(("NAME:Shrink", "NAME:Failing"), ("Shrink.factor", "Failing.factor"))
    good, failed = run_study(load_recipe(path), tmp_path / "out")["trials"]
    assert (good["state"], failed["state"]) == ("finished", "failed")
    assert "step 'Failing' (own_" in failed["notes"][0]
    assert failed["notes"][0].endswith(":Failing) failed: KeyError: 'fc1'")


def test_killed_at_any_write_it_goes_on_to_the_same_numbers(write, tmp_path, monkeypatch):
    plan = load_recipe(write()).plans[0]
    whole = run(plan, tmp_path / "whole")
    again, kills = killed_at_every_write(monkeypatch, lambda: run(plan, tmp_path / "killed"))
    assert kills >= 4
    assert without_times(again) == without_times(whole)


def test_a_trials_name_depends_on_the_class_and_on_its_code(write):
    names = [
        trial_id(load_recipe(write(*changes, own=own)).plans[0], 0)
        for changes, own in (
            ((), OWN),
            ((), OWN + "\n# changed\n"),
            ((("criterion: {name: NAME:Largest, power: 2.0}", "criterion: magnitude"),), OWN),
            ((), OWN),
        )
    ]
    assert len(set(names)) == 3
    assert names[0] == names[-1]


def test_what_a_step_imports_while_it_runs_is_found_in_the_working_folder(write, tmp_path):
    (tmp_path / "only_here.py").write_text("half = 0.5")
    late = OWN.replace(
        "        with torch.no_grad():\n", "        import only_here\n        with torch.no_grad():\n"
    )
    before = list(sys.path)
    assert run(load_recipe(write(own=late)).plans[0], tmp_path / "a")["state"] == "finished"
    assert sys.path == before
    del sys.modules["only_here"]


def test_single_weights_shrink_in_a_way_of_ones_own(write, tmp_path):
    steps = RECIPE[RECIPE.index("steps:") :]
    one = "steps:\n  - prune: {budget: {name: NAME:Half}, shrinkage: NAME:Zero}\n"
    path = write((steps, one), ("sweep: {Shrink.factor: [0.5, 0.25]}\n", ""))
    assert run(load_recipe(path).plans[0], tmp_path / "a")["metrics"]["sparsity"] == pytest.approx(
        0.5, abs=1e-3
    )


WRONG = [
    ("- NAME:Shrink: {factor: 0.1}", "- {id: Shrink, NAME:Idle: {}}", "line 9: own_.*:Idle does nothing"),
    (":Shrink: {factor: 0.1}", ":Shrink: {facto: 0.1}", "line 9: unknown key 'facto'; did you mean 'factor'"),
    ("[0.5, 0.25]", "[0.5, -1]", r"factor is -1: Input should be greater than 0"),
    (":Shrink: {factor: 0.1}", ":Shrink: {include: [conv]}", "line 9: pattern 'conv' matches nothing"),
    (
        "- NAME:Shrink: {factor: 0.1}",
        "- {id: Shrink, NAME:Plain: {}}",
        "line 9: own_.*:Plain is no step: it is no class that derives from",
    ),
    (
        "- NAME:Shrink: {factor: 0.1}",
        "- {id: Shrink, NAME:Shrnk: {}}",
        "line 9: own_.*:Shrnk: .* has no function 'Shrnk'; did you mean 'Shrink'",
    ),
    ("NAME:Largest,", "NAME:Plain,", "line 11: criterion: own_.*:Plain is no dataclass"),
    ("NAME:Largest,", "no_such_module_here:Largest,", "line 11: criterion: .* cannot import"),
    ("power: 2.0", "power: many", "line 11: criterion own_.*:Largest: power is 'many'"),
    ("power: 2.0", "powr: 2.0", "unknown setting 'powr'; did you mean 'power'"),
    ("first: 0.4, ", "", "line 13: schedule own_.*:Twice: lacks 'first'"),
    ("NAME:Twice, first: 0.4", "NAME:Broken", "line 13: schedule: ZeroDivisionError: float division by zero"),
    ("NAME:Half", "NAME.Half", r"line 12: budget: unknown name .* \(your own: package.module:Class\)"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[new for _, new, _ in WRONG])
def test_what_is_wrong_names_its_line(write, old, new, message):
    before = list(sys.path)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write((old, new)))
    assert "\n" not in str(caught.value)
    assert sys.path == before


ORDER = """\
from secateur.experiments.steps.base import Step
class Smaller(Step):
    def run(self, work, id): ...
    removes = True
class Few(Step):
    def run(self, work, id): ...
    shares = True
class Last(Step):
    def run(self, work, id): ...
    ends = True
    keeps_shared = True
"""


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["NAME:Smaller", "refit"], "refit needs the dense network's shapes; put it before own_.*:Smaller"),
        (["NAME:Few", "retrain"], "retrain would undo what own_.*:Few did; put it before own_.*:Few"),
        (["NAME:Last", "compact"], "compact after own_.*:Last: own_.*:Last writes what the trial ends with"),
        (["NAME:Few", "NAME:Last"], None),
    ],
)
def test_a_step_says_of_itself_what_may_come_after_it(write, kinds, message):
    steps = "".join(f"  - {kind}:\n" for kind in kinds)
    sweep = "sweep: {Shrink.factor: [0.5, 0.25]}\n"
    path = write((RECIPE[RECIPE.index("steps:") :], f"steps:\n{steps}"), (sweep, ""), own=ORDER)
    if message is None:
        assert [step.id for step in load_recipe(path).plans[0].steps] == ["Few", "Last"]
        return
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_trial_leaves_the_threads_of_torch_as_they_were(write, tmp_path):
    before = torch.get_num_threads()
    run(load_recipe(write(), {"threads": before + 1}).plans[0], tmp_path / "a")
    assert torch.get_num_threads() == before
