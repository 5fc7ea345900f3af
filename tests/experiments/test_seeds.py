"""Seeds of a study, of a method and of a grid: what runs with which."""

import pytest
from recipes import RECIPE

from secateur.errors import RecipeError
from secateur.experiments.recipe import load_recipe
from secateur.experiments.trial import trial_id

SEEDED = """\
name: seeded
data: {name: digits}
model: {name: digits-mlp}
methods:
  all of them:
    steps: [&cut {prune: {budget: {name: uniform, sparsity: 0.5}}}]
  one:
    steps: [*cut]
    seeds: [0]
  both:
    steps: [*cut]
    sweep:
      - {prune.budget.sparsity: [0.5]}
      - {prune.budget.sparsity: [0.8, 0.9], seeds: [2, 0]}
seeds: [0, 1, 2]
"""


def jobs_of(recipe):
    return [(plan.method, plan.point.get("prune.budget.sparsity"), seed) for plan, seed in recipe.jobs]


def test_a_method_and_a_grid_narrow_the_seeds_of_the_study(write):
    path = write(SEEDED)
    assert jobs_of(load_recipe(path)) == [
        *(("all of them", None, seed) for seed in (0, 1, 2)),
        ("one", None, 0),
        *(("both", 0.5, seed) for seed in (0, 1, 2)),
        *(("both", 0.8, seed) for seed in (0, 2)),
        *(("both", 0.9, seed) for seed in (0, 2)),
    ]
    assert jobs_of(load_recipe(path, seeds=[1, 7])) == [
        *(("all of them", None, seed) for seed in (1, 7)),
        *(("both", 0.5, seed) for seed in (1, 7)),
    ]
    within = load_recipe(write(SEEDED.replace("[2, 0]}\n", "[2, 0]}\n    seeds: [1, 2]\n")))
    assert jobs_of(within)[4:] == [("both", 0.5, 1), ("both", 0.5, 2), ("both", 0.8, 2), ("both", 0.9, 2)]


def test_seeds_of_its_own_are_no_part_of_a_trials_name(write):
    with_own = load_recipe(write(SEEDED))
    names = {(p.method, *p.point.values(), seed): trial_id(p, seed) for p, seed in with_own.jobs}
    without = load_recipe(write(SEEDED.replace("    seeds: [0]\n", "").replace(", seeds: [2, 0]", "")))
    again = {(p.method, *p.point.values(), seed): trial_id(p, seed) for p, seed in without.jobs}
    assert again.items() >= names.items()
    assert len(again) == 15
    assert "seeds" not in with_own.plans[1].config


def test_seeds_that_nothing_runs_with_are_an_error(write):
    text = SEEDED.replace("  all of them:", "  all of them:\n    seeds: [1]")
    text = text.replace("- {prune.budget.sparsity: [0.5]}", "- {prune.budget.sparsity: [0.5], seeds: [1]}")
    with pytest.raises(RecipeError, match=r"nothing runs with the seeds \[5\]"):
        load_recipe(write(text), seeds=[5])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    seeds: [0]\n", "    seeds: []\n", r"line 9: seeds is \[\]; it lists one seed or more"),
        ("    seeds: [0]\n", "    seeds: [0, 0]\n", r"line 9: a seed stands twice in \[0, 0\]"),
        ("    seeds: [0]\n", "    seeds: 0\n", r"line 9: .*seeds is 0"),
        ("    seeds: [0]\n", "    seed: [0]\n", r"line 9: unknown key 'seed'; did you mean 'seeds'"),
        ("seeds: [2, 0]", "seeds: []", r"line 14: seeds is \[\]"),
        ("seeds: [2, 0]", "seeds: [2, 2]", r"line 14: a seed stands twice in \[2, 2\]"),
        ("seeds: [2, 0]", "seeds: [one]", r"line 14: seeds is \['one'\]; .* as integers"),
        (
            "seeds: [2, 0]",
            "threads: [2]",
            r"sweep threads: is the whole study's; a sweep is over data, model",
        ),
    ],
)
def test_malformed_seeds_name_the_line(write, old, new, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(SEEDED.replace(old, new)))


def test_a_searching_sampler_runs_every_point_with_all_seeds(write):
    text = RECIPE.replace("random]}", "random], seeds: [0]}") + "sampler: tpe\n"
    with pytest.raises(RecipeError, match="line 8: sampler tpe runs each point with all seeds"):
        load_recipe(write(text))
    with pytest.raises(RecipeError, match="sampler tpe searches one grid: give steps and one sweep"):
        load_recipe(write(SEEDED + "sampler: tpe\n"))
