"""Settings put over a document: where they go, what they leave alone, and what has no place."""

import copy

import pytest

from secateur.errors import RecipeError
from secateur.experiments.overrides import set_value

DOCUMENT = {
    "train": {"epochs": 2},
    "seeds": [0, 1],
    "data": "digits",
    "methods": {
        "a": {"steps": [{"prune": {"criterion": "magnitude"}}, {"compact": None}]},
        "b": {"steps": [{"prune": None}, {"id": "late", "retrain": {}}, {"id": "kindless"}, 3]},
        "c": 5,
    },
}
KEYS = ("train", "seeds", "data")


def with_setting(key, value):
    document = copy.deepcopy(DOCUMENT)
    set_value(document, key, value, "--set", KEYS)
    return document


def test_a_step_of_every_method_and_a_key_of_the_recipe():
    found = with_setting("prune.budget.sparsity", 0.5)["methods"]
    assert found["a"]["steps"][0] == {"prune": {"criterion": "magnitude", "budget": {"sparsity": 0.5}}}
    assert found["b"]["steps"][0] == {"prune": {"budget": {"sparsity": 0.5}}}
    assert with_setting("late.epochs", 3)["methods"]["b"]["steps"][1] == {
        "id": "late",
        "retrain": {"epochs": 3},
    }
    assert with_setting("train.lr", 0.1)["train"] == {"epochs": 2, "lr": 0.1}
    assert with_setting("seeds", [7])["seeds"] == [7]


def test_a_name_alone_becomes_a_mapping():
    found = with_setting("prune.criterion.normalise", True)["methods"]["a"]["steps"][0]["prune"]
    assert found == {"criterion": {"name": "magnitude", "normalise": True}}
    assert with_setting("data.validation", 5)["data"] == {"name": "digits", "validation": 5}


def test_the_value_is_a_copy():
    """A mapping that one setting puts in two places, and the next one changes, is the giver's own."""
    budget, document = {"name": "global"}, copy.deepcopy(DOCUMENT)
    set_value(document, "prune.budget", budget, "--set", KEYS)
    set_value(document, "prune.budget.sparsity", 0.5, "--set", KEYS)
    assert budget == {"name": "global"}
    first, second = (document["methods"][name]["steps"][0]["prune"]["budget"] for name in "ab")
    assert first == second == {"name": "global", "sparsity": 0.5}
    assert first is not second


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train..lr", 1, "a part of the key is empty"),
        (".train", 1, "a part of the key is empty"),
        ("train.", 1, "a part of the key is empty"),
        ("", 1, "a part of the key is empty"),
        (".", 1, "a part of the key is empty"),
        ("seeds.0", 1, r"'seeds' is \[0, 1\], which has no parts by name"),
        ("train.epochs.x", 1, "'epochs' is 2, which has no parts by name"),
        ("prune", {}, "'prune' is neither a step nor a key of the recipe"),
        ("é.x", 1, "'é' is neither a step nor a key"),
        ("x" * 100_000, 1, "is neither a step nor a key"),
        ("train.lr", float("nan"), "nan is not a finite number"),
        ("train.lr", {1}, "is not a plain value"),
        ("train.lr", {1: 2}, "the key 1: is no text"),
    ],
)
def test_what_has_no_place(key, value, message):
    with pytest.raises(RecipeError, match=message) as caught:
        with_setting(key, value)
    assert len(str(caught.value)) < 300
