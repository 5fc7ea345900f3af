"""The way down: which alpha and learning rate come next, what is undone, and how a run goes on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import secateur as sc
from networks.branched import net
from secateur.errors import BudgetError, CriterionError, NonFiniteError
from secateur.methods.annealing import Stage

HALVES = sc.Descent("multiplicative", factor=0.5, threshold=0.2)  # 0.5, 0.25, 0


def branches() -> sc.BranchAnnealing:
    model, x = net("plain")
    return sc.BranchAnnealing(model, x[:2], start="random")


def played(scores: list[float | tuple[float, float]], method: sc.Annealing, **options):
    """Run with these scores (and losses), and note what was asked for."""
    annealing, asked, left = branches(), [], list(scores)

    def fine_tune(network: nn.Module, rate: float) -> None:
        asked.append((annealing.alpha, rate))

    def evaluate(network: nn.Module) -> tuple[float, float]:
        score = left.pop(0)
        return score if isinstance(score, tuple) else (score, 1.0)

    stages = sc.anneal_branches(annealing, fine_tune, evaluate, method, **options)
    assert not left
    return stages, asked


def test_the_descents_alphas_one_training_each():
    stages, asked = played([0.9, 0.8, 0.3, 0.1], sc.Annealing(HALVES))
    assert asked == [(0.5, 1.0), (0.25, 1.0), (0.0, 1.0)]
    assert stages[0] == Stage(1.0, 0.0, 0.9, 1.0)
    assert [s.score for s in stages] == [0.9, 0.8, 0.3, 0.1]
    assert all(s.kept for s in stages)


def test_the_rate_is_raised_until_the_score_is_held():
    method = sc.Annealing(HALVES, rates=(1, 10, 100), tolerance=0.02)
    stages, asked = played([0.9, 0.88, 0.8, 0.85, 0.89, 0.9], method)
    assert asked == [(0.5, 1), (0.25, 1), (0.25, 10), (0.25, 100), (0.0, 1)]
    assert all(s.kept for s in stages)


def test_what_was_reached_when_no_rate_helps_is_the_best_from_there():
    method = sc.Annealing(HALVES, rates=(1, 10), tolerance=0.02)
    stages, asked = played([0.9, 0.7, 0.75, 0.74, 0.6, 0.5], method)
    assert asked == [(0.5, 1), (0.5, 10), (0.25, 1), (0.0, 1), (0.0, 10)]
    assert [s.kept for s in stages] == [True, True, True, True, True, False]


def test_a_best_score_on_the_way_is_what_counts():
    method = sc.Annealing(HALVES, rates=(1, 1), tolerance=0.02)
    _, asked = played([0.8, 0.9, 0.87, 0.89, 0.9], method)
    assert asked == [(0.5, 1), (0.25, 1), (0.25, 1), (0.0, 1)]


def test_adaptive_falls_by_the_step_and_by_half_of_it_after_a_fall():
    method = sc.Annealing(sc.Descent(step=0.4, threshold=0.1), adaptive=True, rates=(1, 1), tolerance=0.02)
    # 0.6 holds, 0.2 does not at first: from there the step is 0.2, and 0.2 - 0.2 = 0
    _, asked = played([0.9, 0.9, 0.5, 0.9, 0.9], method)
    assert asked == [(0.6, 1), (pytest.approx(0.2), 1), (pytest.approx(0.2), 1), (0.0, 1)]
    # 0.6 does not hold, ever: 0.4, then 0.2, then 0
    _, asked = played([0.9, 0.5, 0.5, 0.5, 0.5, 0.5], method)
    assert [a for a, _ in asked] == pytest.approx([0.6, 0.6, 0.4, 0.2, 0.0])


def test_the_adaptive_step_is_never_under_the_threshold():
    method = sc.Annealing(sc.Descent(step=0.5, threshold=0.25), adaptive=True, tolerance=0.0)
    _, asked = played([0.9, 0.8, 0.7, 0.6], method)  # 0.5; half of it, 0.25; then 0.125 would follow
    assert [a for a, _ in asked] == [0.5, 0.25, 0.0]


def test_a_training_that_does_not_help_is_undone():
    annealing, seen = branches(), []
    script = iter([(0.9, 1.0), (0.5, 1.0), (0.5, 1.5), (0.5, 0.5)])
    weight = annealing.network.model.fc1.weight

    def fine_tune(network: nn.Module, rate: float) -> None:
        with torch.no_grad():
            weight.add_(rate)
            network.wide.norm1.running_mean.add_(rate)

    def evaluate(network: nn.Module) -> tuple[float, float]:
        seen.append(float(weight.detach().sum()))
        return next(script)

    method = sc.Annealing(sc.Descent(step=1.0), rates=(1, 10, 100))
    mean = annealing.network.wide.norm1.running_mean.clone()
    before = weight.detach().clone()
    stages = sc.anneal_branches(annealing, fine_tune, evaluate, method)
    assert [s.kept for s in stages] == [True, True, False, True]  # the tie went by the loss
    assert torch.allclose(weight, before + 101)
    assert torch.allclose(annealing.network.wide.norm1.running_mean, mean + 101)


@pytest.mark.parametrize("how", ["training", "score"])
def test_a_raised_rate_that_diverges_is_undone(how: str):
    annealing, calls = branches(), []
    state = {n: t.clone() for n, t in annealing.network.state_dict().items() if n.startswith("model")}

    def fine_tune(network: nn.Module, rate: float) -> None:
        calls.append(rate)
        if rate == 10:
            with torch.no_grad():
                network.model.fc1.weight.fill_(math.nan)
            if how == "training":
                raise NonFiniteError("the loss became nan")

    def evaluate(network: nn.Module) -> tuple[float, float]:
        loss = float(network.model.fc1.weight.detach().sum())
        return (0.9, 1.0) if not calls else (0.5, 1.0 if loss == loss else math.nan)

    method = sc.Annealing(sc.Descent(step=1.0), rates=(1, 10))
    stages = sc.anneal_branches(annealing, fine_tune, evaluate, method)
    assert stages[-1] == Stage(0.0, 10, None, None, kept=False)
    assert all(torch.equal(tensor, annealing.network.state_dict()[n]) for n, tensor in state.items())
    with pytest.raises(NonFiniteError, match="loss of nan; finite"):
        sc.anneal_branches(branches(), lambda n, r: None, lambda n: (0.5, math.nan), method)


@pytest.mark.parametrize(
    ("update", "frozen"),
    [
        ("start", [False, False, False]),
        ("never", [True, True, True]),
        (0.25, [True, False, False]),
        (0.1, [True, True, False]),
        (1, [False, False, False]),
    ],
)
def test_when_the_pretrained_weights_are_trained(update, frozen: list[bool]):
    annealing, seen = branches(), []

    def fine_tune(network: nn.Module, rate: float) -> None:
        seen.append(network.frozen)
        assert network.model.fc1.weight.requires_grad != network.frozen
        assert network.up["fc1 -> fc2"].requires_grad

    sc.anneal_branches(annealing, fine_tune, lambda n: (0.5, 1.0), sc.Annealing(HALVES, update=update))
    assert seen == frozen


def test_a_run_goes_on_from_any_stage_to_the_same_numbers():
    method = sc.Annealing(HALVES, rates=(1, 3), tolerance=0.0, update=0.4)
    model, x = net("plain")
    y = torch.arange(6) % 3

    def fine_tune(network: nn.Module, rate: float) -> None:
        chosen = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(chosen, 0.02 * rate, momentum=0.9)
        network.train()
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()

    def evaluate(network: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(network.eval()(x), y))
        return -loss, loss

    def run(stages=(), state=None):
        annealing = sc.BranchAnnealing(model, x[:2], data=[x])
        if state is not None:
            annealing.network.load_state_dict(state)
        heard = []

        def on_stage(now: tuple[Stage, ...]) -> None:
            heard.append((now, {n: t.clone() for n, t in annealing.network.state_dict().items()}))

        found = sc.anneal_branches(annealing, fine_tune, evaluate, method, stages=stages, on_stage=on_stage)
        return found, annealing.network.state_dict(), heard

    stages, weights, heard = run()
    assert [now for now, _ in heard] == [stages[: n + 1] for n in range(len(stages))]
    assert len({s.rate for s in stages}) == 3  # none, 1 and 3: something was tried twice
    for now, state in heard:
        again, found, _ = run(now, state)
        assert again == stages
        assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": -0.1},
        {"tolerance": math.nan},
        {"rates": ()},
        {"rates": (1, 0)},
        {"update": "late"},
        {"update": 1.5},
        {"update": math.nan},
    ],
)
def test_impossible_settings_are_refused(options: dict):
    with pytest.raises(BudgetError, match=next(iter(options))):
        sc.Annealing(**options)


def test_a_training_without_a_rate_and_an_evaluation_without_a_loss_will_do():
    """As they are written for the other methods."""
    annealing, trained, scores = branches(), [], iter([0.9, 0.8, 0.7, 0.6])

    def fine_tune(network: nn.Module, epochs: int = 3) -> None:
        trained.append((annealing.alpha, epochs))

    stages = sc.anneal_branches(annealing, fine_tune, lambda network: next(scores), sc.Annealing(HALVES))
    assert trained == [(0.5, 3), (0.25, 3), (0.0, 3)]
    assert [(stage.score, stage.loss) for stage in stages][:2] == [(0.9, None), (0.8, None)]


def test_rates_that_a_training_does_not_take_are_refused():
    method = sc.Annealing(HALVES, rates=(1, 10))
    with pytest.raises(BudgetError, match="fine_tune takes the network alone"):
        sc.anneal_branches(branches(), lambda network: None, lambda network: 1.0, method)


@pytest.mark.parametrize("found", ["good", None, (1.0,), (1.0, 2.0, 3.0)])
def test_an_evaluation_that_is_no_score_is_one_error(found):
    with pytest.raises(CriterionError, match=r"a score, or a pair of numbers \(score, loss\), is right"):
        sc.anneal_branches(branches(), lambda network, rate: None, lambda network: found)


def reads(annealing: sc.BranchAnnealing, path: str, x: torch.Tensor) -> torch.Tensor:
    """What the layer at a path reads of both paths together: alpha B + (1 - alpha) U P."""
    seen = []
    module = annealing.network.wide.get_submodule(path)
    with module.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        annealing.network(x)
    (alpha,) = set(annealing.network.alphas.values())
    (up,) = annealing.network.up.values()
    own, branch = seen[0][:, : len(up)], seen[0][:, len(up) :]
    return alpha * own + (1 - alpha) * branch @ up.T


def mlp() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double(), torch.randn(64, 8).double()


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.5), (0.5, 0.1), (0.1, 0.0), (0.3, 0.3)])
def test_a_refit_is_the_least_squares_towards_what_was_read(before, after):
    model, x = mlp()
    annealing = sc.BranchAnnealing(model, x[:2], start="random", data=[x])
    annealing.alpha = before
    wanted = reads(annealing, "2", x)
    annealing.refit(after)
    assert annealing.alpha == after
    found = reads(annealing, "2", x)
    hidden = model[1](model[0](x))
    branch = torch.relu(model[0](x) @ annealing.network.down["0"].T)  # no norm between
    best = torch.linalg.lstsq(branch, wanted - after * hidden).solution
    torch.testing.assert_close(found, after * hidden + branch @ best, rtol=1e-3, atol=1e-3)
    if before == after:
        torch.testing.assert_close(found, wanted)


def test_backwards_the_layers_nearest_the_outputs_go_first():
    method = sc.Annealing(order="backwards")
    names = ["first", "second", "third"]
    assert method.by_group(1.0, names) == {"first": 1, "second": 1, "third": 1}
    assert method.by_group(0.75, names) == {"first": 1, "second": 1, "third": 0.25}
    assert method.by_group(0.5, names) == {"first": 1, "second": 0.5, "third": 0}
    assert method.by_group(0.0, names) == {"first": 0, "second": 0, "third": 0}
    assert sc.Annealing().by_group(0.4, names) == dict.fromkeys(names, 0.4)
    with pytest.raises(BudgetError, match="order is 'sideways'"):
        sc.Annealing(order="sideways")


def test_with_refits_a_network_of_repeated_channels_arrives_as_it_was():
    model, x = mlp()
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = model[0].weight[:3], model[0].bias[:3]
    losses = {}
    for refit in (True, False):
        annealing = sc.BranchAnnealing(model, x[:2], start="random", data=[x])
        annealing.network.down["0"].data = torch.eye(6).double()[:3]
        method = sc.Annealing(sc.Descent(step=0.25), order="backwards", refit=refit, statistics=True)
        sc.anneal_branches(annealing, lambda network: None, lambda network: 0.9, method)
        small, _ = annealing.fold()
        losses[refit] = float((small(x) - model(x)).abs().max())
    assert losses[True] < 1e-4 < losses[False]


def test_statistics_are_those_of_the_data_and_the_models_own_stay_where_it_is_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(64, 8)
    for frozen in (False, True):
        annealing = sc.BranchAnnealing(model, x[:2], start="random", data=[x[:32], x[32:]])
        annealing.network.freeze(frozen)
        annealing.learn_statistics()
        norm = annealing.network.wide.get_submodule("1")
        branch = model[0](x) @ annealing.network.down["0"].T
        torch.testing.assert_close(norm.running_mean[6:], branch.mean(0))
        own = torch.zeros(6) if frozen else model[0](x).mean(0)
        torch.testing.assert_close(norm.running_mean[:6], own)
        assert annealing.network.frozen == frozen
        assert norm.momentum == 0.1
    with pytest.raises(CriterionError, match="given no data="):
        sc.BranchAnnealing(model, x[:2], start="random").learn_statistics()
