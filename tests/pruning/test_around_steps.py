"""What is called around a step, and when: with a closure or without, in a wrapper or alone."""

import pytest
import torch
from torch.optim import SGD

from networks.toy import hooks
from secateur.errors import ModelError
from secateur.pruning.holding import around_steps, innermost, levels_of, owned, refuse_scaler, scalers_shown


class Wrapper:
    """Hands its steps on."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self, closure=None):
        return self.optimizer.step(closure)


def events_of(optimizer, closure=None, levels=levels_of):
    seen = []

    def noted(what):
        def note(level, *by_closure):
            assert not torch.is_grad_enabled()
            where = "inner" if level.innermost else "outer"
            seen.append(" ".join([what, where, *("closure" for made in by_closure if made)]))

        return note

    actions = {name: noted(name) for name in ("forward", "gradients", "after")}
    with around_steps(levels(optimizer), **actions):
        optimizer.step(closure)
    optimizer.step(closure)  # outside the block nothing is called
    return seen


def wrapped():
    return Wrapper(SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))


def test_gradients_are_ready_where_the_step_is_really_taken():
    assert events_of(wrapped()) == ["gradients inner", "after inner", "after outer"]
    assert events_of(wrapped(), levels=innermost) == ["gradients inner", "after inner"]


def test_a_closure_is_evaluated_between_what_comes_before_and_after_it():
    assert events_of(wrapped(), closure=lambda: 1.0) == [
        "forward inner",
        "forward outer",
        "gradients outer closure",
        "gradients inner closure",
        "after inner",
        "after outer",
    ]
    once = ["forward inner", "gradients inner closure", "after inner"]
    assert events_of(wrapped(), lambda: 1.0, innermost) == once


def test_hooks_go_with_an_error_in_what_is_called():
    optimizer = SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)

    def fails(level, by_closure):
        raise KeyError

    with pytest.raises(KeyError), around_steps(levels_of(optimizer), gradients=fails):
        optimizer.step()
    assert hooks(optimizer) == 0


def test_each_level_owns_what_its_optimizer_updates():
    first, second, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    levels = innermost([SGD([first], lr=0.1), Wrapper(SGD([second], lr=0.1))])
    found = owned(levels, [first, second, other], lambda tensor: tensor)
    assert [[id(t) for t in found[level]] for level in levels] == [[id(first)], [id(second)]]


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_is_seen_by_what_it_leaves_on_an_optimizer(fused):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1, fused=fused)
    levels, scaler = levels_of(optimizer), torch.amp.GradScaler("cpu")
    before = dict(vars(optimizer))

    def step():
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)

    def refuse(level, by_closure):
        refuse_scaler(levels, "is here")

    with (
        pytest.raises(ModelError, match="a GradScaler is here"),
        scalers_shown(levels),
        around_steps(levels, gradients=refuse),
    ):
        step()
    assert vars(optimizer).keys() == before.keys()
    assert torch.equal(weight, torch.ones(2))
