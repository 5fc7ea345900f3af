"""Recipes that are right: sweeps, methods, settings over the file, and the names of what they choose."""

from recipes import RECIPE

from secateur.experiments.choices import choices, make, spelled
from secateur.experiments.recipe import load_recipe, packaged_recipes
from secateur.experiments.trial import trial_id
from secateur.pruning.budgets import ERK, Global, PerLayer, Std, Uniform
from secateur.training.settings import Training


def test_a_sweep_is_a_grid_in_order(write):
    recipe = load_recipe(write(RECIPE))
    assert [tuple(plan.point.values()) for plan in recipe.plans] == [
        (0.5, "magnitude"),
        (0.5, "random"),
        (0.9, "magnitude"),
        (0.9, "random"),
    ]
    assert recipe.plans[0].steps[0].settings.budget == Global(0.5)


def test_retraining_is_as_training_where_it_says_nothing(write):
    retrain = load_recipe(write(RECIPE)).plans[0].steps[1].settings.training
    assert retrain == Training(epochs=3, lr=1e-3, batch_size=64)


def test_set_goes_over_the_file(write):
    recipe = load_recipe(write(RECIPE), {"retrain.epochs": 0, "train.lr": 0.5, "seeds": [7]})
    assert recipe.plans[0].steps[1].settings.training.epochs == 0
    assert recipe.plans[0].train.lr == 0.5
    assert recipe.seeds == [7]


def test_several_grids_and_methods(write):
    recipe = load_recipe(
        write("""\
        name: many
        data: {name: digits}
        model: {name: digits-mlp}
        methods:
          random:
            steps: [{prune: {criterion: random, budget: {name: uniform, sparsity: 0.5}}}]
          gradual:
            steps:
              - prune:
                  budget: {name: global, sparsity: 0.9}
                  schedule: {name: cubic, steps: 3, retrain: {epochs: 2}}
              - retrain: {epochs: 4}
            sweep: [{prune.budget.sparsity: [0.8, 0.9]}, {prune.schedule.steps: [5]}]
        """)
    )
    assert [(p.method, p.point) for p in recipe.plans] == [
        ("random", {}),
        ("gradual", {"prune.budget.sparsity": 0.8}),
        ("gradual", {"prune.budget.sparsity": 0.9}),
        ("gradual", {"prune.schedule.steps": 5}),
    ]
    kinds = [action.timed_as for action in recipe.plans[1].actions]
    assert kinds == ["prune", "retrain", "prune", "retrain", "prune", "retrain"]
    assert recipe.plans[1].epochs == 2 + 2 + 4
    assert recipe.plans[3].epochs == 4 * 2 + 4


def test_a_trials_name_depends_on_what_determines_it(write):
    path = write(RECIPE)
    first, again = load_recipe(path).plans[0], load_recipe(path).plans[0]
    assert trial_id(first, 0) == trial_id(again, 0)
    others = {trial_id(first, 1), trial_id(load_recipe(path).plans[1], 0)}
    others.add(trial_id(load_recipe(path, {"train.epochs": 3}).plans[0], 0))
    assert len(others | {trial_id(first, 0)}) == 4


def test_every_packaged_recipe_is_valid_and_named_after_its_file():
    assert {"quickstart", "mnist"} <= set(packaged_recipes())
    for name in packaged_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.spec.description
        assert recipe.spec.source


def test_names_in_recipes():
    assert [spelled(name) for name in ("PerLayer", "ERK", "NM", "OneShot", "L2Norm")] == [
        "per_layer",
        "erk",
        "nm",
        "one_shot",
        "l2_norm",
    ] or spelled("L2Norm") == "l2norm"
    assert choices("budget")["per_layer"] == "PerLayer"
    assert make("budget", {"name": "std", "sensitivity": "1e-1"}) == Std(0.1)
    assert make("budget", {"name": "global", "sparsity": 0.9}) == Global(0.9)
    assert make("budget", {"name": "uniform", "sparsity": 0.5, "per": "row"}) == Uniform(0.5, per="row")
    assert make("budget", {"name": "per_layer", "sparsity": {"fc1": 0.5}}) == PerLayer({"fc1": 0.5})
    assert make("budget", {"name": "erk", "sparsity": 0.5}) == ERK(0.5)


def test_set_reaches_every_method_with_a_step_of_that_name():
    recipe = load_recipe("mnist", {"retrain.epochs": 5})
    assert [plan.steps[-1].settings.training.epochs for plan in recipe.plans] == [5, 5]


def test_points_share_no_value(write):
    """A mapping that the sweep puts in place and then sets a part of stays as it is in the other points."""
    text = RECIPE.replace(
        "prune.budget.sparsity: [0.5, 0.9], prune.criterion: [magnitude, random]",
        "prune.budget: [{name: global, sparsity: 0.1}], prune.budget.sparsity: [0.5, 0.9]",
    )
    recipe = load_recipe(write(text))
    assert [plan.config["steps"][0]["prune"]["budget"]["sparsity"] for plan in recipe.plans] == [0.5, 0.9]
    assert [plan.point["prune.budget"]["sparsity"] for plan in recipe.plans] == [0.1, 0.1]
    settings = {"prune.budget": {"name": "uniform"}}
    text = text.replace("prune.budget: [{name: global, sparsity: 0.1}], ", "")
    assert (
        load_recipe(write(text), settings).plans[1].config["steps"][0]["prune"]["budget"]["name"] == "uniform"
    )
    assert settings == {"prune.budget": {"name": "uniform"}}
