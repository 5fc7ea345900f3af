"""Which choices go together: said before there is a network."""

import pytest

import secateur as sc
from secateur.errors import BudgetError, CriterionError
from secateur.pruning.prune import check

ANY = sc.Magnitude(), sc.Uniform(0.5)
REFUSED = [
    (
        (sc.L2Norm(), sc.Uniform(0.5)),
        {},
        CriterionError,
        "L2Norm ranks whole units: pass structure=.*units: true",
    ),
    ((sc.Magnitude(), sc.ParameterShare(0.5)), {}, BudgetError, "ParameterShare counts whole units"),
    (ANY, {"round_to": 8}, BudgetError, "round_to, min_kept and alike count whole units"),
    (ANY, {"min_kept": 2}, BudgetError, "round_to, min_kept and alike count whole units"),
    (ANY, {"round_to": 0, "units": True}, BudgetError, "both count units, from 1"),
    ((sc.L2Norm(), sc.ERK(0.5)), {"units": True}, BudgetError, "ERK does not go with whole units"),
    ((sc.L2Norm(), sc.Std(1.0)), {"units": True}, BudgetError, "Std does not go with whole units"),
    (ANY, {"units": True, "shrinkage": sc.Soft()}, BudgetError, "neither a shrinkage nor a block"),
    (ANY, {"units": True, "granularity": sc.Block(2, 2)}, BudgetError, "neither a shrinkage nor a block"),
    ((sc.Random(), sc.Std(1.0)), {}, BudgetError, "Std reads .* with Magnitude alone, not with Random"),
    ((sc.Wanda(), ANY[1]), {"shrinkage": sc.Soft()}, BudgetError, "Soft reads .* with Magnitude alone"),
    (ANY, {"shrinkage": sc.Trimmed()}, BudgetError, r"value budget \(Threshold, Std\).* not with Uniform"),
    (ANY, {"shrinkage": sc.Soft(), "scheduled": True}, BudgetError, "at each step of a schedule"),
    (
        ANY,
        {"shrinkage": sc.Soft(), "granularity": sc.Block(2, 2)},
        BudgetError,
        "single weights, not on blocks",
    ),
    ((sc.Taylor(), sc.NM(2, 4)), {"granularity": sc.Block(2, 2)}, BudgetError, "NM counts single weights"),
    (
        (sc.Taylor(), sc.Uniform(0.5, per="row")),
        {"granularity": sc.Block(2, 2)},
        BudgetError,
        "Uniform per row counts single weights",
    ),
    (
        (sc.L2Norm(), sc.Uniform(0.5, per="row")),
        {"units": True},
        BudgetError,
        "Uniform per row does not go with whole units",
    ),
    (ANY, {"shrinkage": sc.Soft}, BudgetError, "shrinkage is <class .* it is an instance, like Soft"),
]
FINE = [
    (ANY, {"shrinkage": sc.Hard(), "scheduled": True, "granularity": sc.Block(2, 2)}),
    (ANY, {"shrinkage": sc.Hard(), "units": True, "round_to": 8, "min_kept": 4}),
    ((sc.L2Norm(), sc.ParameterShare(0.5)), {"units": True, "scheduled": True}),
    ((sc.Magnitude(), sc.Std(1.0)), {"shrinkage": sc.Trimmed()}),
    ((sc.Magnitude(), sc.Global(0.5)), {"shrinkage": sc.Smooth()}),
]


@pytest.mark.parametrize(("choices", "options", "error", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_go_together(choices, options, error, message):
    with pytest.raises(error, match=message):
        check(*choices, **options)


@pytest.mark.parametrize(("choices", "options"), FINE, ids=range(len(FINE)))
def test_what_goes_together(choices, options):
    check(*choices, **options)
