"""The one table of operators: its keys, in-place twins, and operators of a user's own."""

import pytest
import torch

from secateur.deploy.program import moves, rules
from secateur.errors import ModelError
from secateur.graph import operators
from secateur.graph.operators import forget_operator, operator_at, plain, register_operator
from secateur.structure.rules import table

aten = torch.ops.aten


def test_every_key_is_an_operator_of_this_torch_and_stands_once():
    names = [name for name, _ in operators.ROWS]
    assert [name for name in names if not hasattr(aten, name)] == []
    assert len(names) == len(set(names)) == len(operators.OPERATORS)
    assert all(plain(key) is key for key in operators.OPERATORS)


@pytest.mark.parametrize("keyed", [table.RULES, rules.RULES, moves.MOVES], ids=["labels", "program", "moves"])
def test_rules_stand_under_operators_that_are_found_there(keyed):
    assert all(isinstance(key, torch._ops.OpOverloadPacket) for key in keyed)
    assert all(plain(key) is key for key in keyed)  # none is hidden behind its twin's


def test_no_operator_has_two_rules_in_a_program():
    assert rules.RULES.keys() & moves.MOVES.keys() == set()


@pytest.mark.parametrize(
    ("operator", "twin"),
    [
        (aten.relu_, aten.relu),
        (aten.add_, aten.add),
        (aten.copy_, aten.copy),
        (aten.__and__, aten.__and__),
        (aten.linear, aten.linear),
    ],
)
def test_in_place_operators_share_the_row_of_their_twins(operator, twin):
    assert plain(operator) is twin
    assert operator_at(operator) == operator_at(twin)


def test_a_name_in_another_namespace_is_another_operator():
    with torch.library._scoped_library("house_test", "DEF") as library:
        library.define("relu(Tensor self) -> Tensor")
        own = torch.ops.house_test.relu
        assert operator_at(own) is operators.UNKNOWN
        register_operator(own, like=aten.relu)
        try:
            assert plain(own) is aten.relu
            assert operator_at(own).kind == "pointwise"
        finally:
            forget_operator(own)
        assert operator_at(own) is operators.UNKNOWN


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, "give like=, kind= or rule="),
        ({"kind": "affine"}, "needs weight="),
        ({"kind": "affine", "weight": "wieght"}, "has no argument 'wieght'"),
        ({"like": "relu"}, "operator is 'relu'"),
        ({"kind": "pointwiese"}, "kind is 'pointwiese'; one of pointwise, same, moves"),
        ({"rule": 3}, "rule is 3; it is a function"),
        ({"like": aten.linear}, "has no argument 'input' and 'weight', which aten.linear has"),
        ({"like": "nope::x"}, "no operator nope::x is defined"),
    ],
)
def test_a_row_that_says_nothing_or_names_what_is_not_there_is_refused(settings, wrong):
    with pytest.raises(ModelError, match=wrong):
        register_operator(aten.softshrink, **settings)
    assert aten.softshrink not in operators._REGISTERED


def test_what_custom_op_returns_is_not_the_operator():
    @torch.library.custom_op("house_test::twice", mutates_args=())
    def twice(self: torch.Tensor) -> torch.Tensor:
        return self * 2

    with pytest.raises(ModelError, match=r"pass torch.ops.house_test.twice"):
        register_operator(twice, kind="pointwise")
