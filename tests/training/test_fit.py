import math

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.data import load_data
from secateur.data.dataset import Split
from secateur.errors import NonFiniteError, RecipeError, StorageError
from secateur.models import build_model
from secateur.storage import load_tensors, save_tensors
from secateur.training.batches import augment, seed_of, training_batches
from secateur.training.checkpoint import load_network, save_weights
from secateur.training.evaluate import evaluate
from secateur.training.fit import fit
from secateur.training.settings import Training


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", validation=200)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns(digits):
    model = build_model("digits-mlp")
    history = fit(model, digits.train, digits.validation, Training(epochs=5, lr=2e-3, batch_size=64))
    assert evaluate(model, digits.test).score > 0.9
    assert len(history.epochs) == 5
    assert history.epochs[0].train_loss > history.epochs[-1].train_loss


class Stop(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_killed_run_goes_on_to_the_same_numbers(digits, tmp_path, optimizer):
    settings = Training(epochs=4, optimizer=optimizer, lr=1e-3, lr_schedule="cosine", shift=1, batch_size=100)

    def run(checkpoint, stop_after=None):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
        model.load_state_dict(start)
        masks = sc.prune(model, sc.Magnitude(), sc.Global(0.5))

        def on_epoch(row):
            if row.epoch == stop_after:
                raise Stop

        history = fit(
            model,
            digits.train,
            digits.validation,
            settings,
            seed=3,
            masks=masks,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
        return weights_of(model), [(e.train_loss, e.validation_score) for e in history.epochs]

    torch.manual_seed(0)
    start = weights_of(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
    )
    whole, whole_curve = run(None)
    with pytest.raises(Stop):
        run(tmp_path / "run.safetensors", stop_after=2)
    resumed, curve = run(tmp_path / "run.safetensors")
    assert same(whole, resumed)
    assert curve == whole_curve


def test_masks_hold_and_the_global_random_state_is_untouched(digits):
    model = build_model("digits-mlp")
    masks = sc.prune(model, sc.Magnitude(), sc.Global(0.9))
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    fit(model, digits.train, digits.validation, Training(epochs=2, weight_decay=0.1), masks=masks)
    assert torch.equal(torch.rand(2), expected)
    assert abs(sc.sparsity(model) - 0.9) < 1e-4


def test_the_best_epoch_on_validation_is_kept(digits):
    settings = Training(epochs=6, lr=0.05, batch_size=32)  # so wild that accuracy goes up and down
    best = build_model("digits-mlp")
    history = fit(best, digits.train, digits.validation, settings, seed=1)
    accuracies = [row.validation_score for row in history.epochs]
    assert evaluate(best, digits.validation).score == max(accuracies)
    assert accuracies[history.best_epoch - 1] == max(accuracies)
    last = build_model("digits-mlp")
    fit(
        last, digits.train, digits.validation, Training(epochs=6, lr=0.05, batch_size=32, keep="last"), seed=1
    )
    assert evaluate(last, digits.validation).score == accuracies[-1]


def test_patience_stops_early(digits):
    settings = Training(epochs=50, lr=0.0, patience=3)
    history = fit(build_model("digits-mlp"), digits.train, digits.validation, settings)
    assert len(history.epochs) == 4  # the first is the best, three bring nothing


def test_l1_shrinks_weights_and_leaves_biases_alone(digits):
    def trained(l1):
        model = build_model("digits-mlp", seed=1)
        fit(model, digits.train, digits.validation, Training(epochs=6, l1=l1, keep="last"), seed=1)
        return model

    plain, shrunk = trained(0.0), trained(5e-3)
    assert shrunk.layers[0].weight.abs().mean() < 0.6 * plain.layers[0].weight.abs().mean()


def test_l1_adds_its_sign_to_the_gradient_by_hand():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
        model.bias.zero_()
    data = Split(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))  # zero inputs: the loss has no gradient here
    fit(model, data, data, Training(epochs=1, optimizer="sgd", momentum=0.0, lr=0.5, l1=0.1, batch_size=None))
    expected = torch.tensor([[0.95, -1.95], [0.0, 2.95]])
    torch.testing.assert_close(model.weight.detach(), expected)


def test_binary_networks_have_one_logit():
    data = load_data("make-classification", features=10)
    model = build_model("tabular-256")
    settings = Training(epochs=20, lr=0.01, batch_size=None)
    fit(model, data.train, data.validation, settings)
    assert evaluate(model, data.test).score > 0.85


def test_a_loader_serves_data_that_does_not_fit(digits):
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(digits.train.inputs, digits.train.labels), batch_size=100
    )
    model = build_model("digits-mlp")
    fit(model, loader, digits.validation, Training(epochs=3))
    assert evaluate(model, digits.test).score > 0.8


def test_channels_last_and_amp_run_on_convs():
    images = torch.randn(64, 3, 25, 25)
    data = Split(images, (images.mean((1, 2, 3)) > 0).long())
    model = build_model("convnet-25", classes=2)
    history = fit(model, data, data, Training(epochs=1, batch_size=32, amp=True))
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert math.isfinite(history.epochs[0].train_loss)


def test_every_epoch_is_a_permutation_of_its_own():
    data = Split(torch.arange(10.0)[:, None], torch.arange(10))
    settings = Training(batch_size=4)

    def order(epoch, seed=0):
        parts = training_batches(data, settings, seed, epoch, torch.device("cpu"))
        return torch.cat([labels for _, labels in parts]).tolist()

    assert sorted(order(1)) == list(range(10))
    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=1)


def test_shifts_and_flips_are_drawn_for_each_image():
    image = torch.arange(25.0).view(1, 1, 5, 5)
    batch = image.expand(200, 1, 5, 5)
    generator = torch.Generator().manual_seed(0)
    out, over = augment(batch, shift=1, flip=True, generator=generator, labels=batch[:, 0].long())
    assert torch.equal(over, out[:, 0].long())  # a map over the pixels goes where they go
    expected = set()
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")[0, 0]
    for dy in range(3):
        for dx in range(3):
            crop = padded[dy : dy + 5, dx : dx + 5]
            expected |= {tuple(crop.flatten().tolist()), tuple(crop.flip(1).flatten().tolist())}
    seen = {tuple(o.flatten().tolist()) for o in out}
    assert seen <= expected
    assert len(seen) == 18  # 9 shifts, mirrored or not: all of them among 200 draws


def test_learning_rate_schedules():
    at = {
        name: Training(lr=1.0, lr_schedule=name).lr_at
        for name in ("constant", "linear", "cosine", "step", "onecycle")
    }
    assert [at["constant"](p) for p in (0, 0.5, 0.9)] == [1.0, 1.0, 1.0]
    assert at["linear"](0.25) == 0.75
    assert at["cosine"](0.5) == pytest.approx(0.5)
    assert [at["step"](p) for p in (0.4, 0.6, 0.8)] == pytest.approx([1.0, 0.1, 0.01])
    assert at["onecycle"](0.0) == pytest.approx(0.04)
    assert at["onecycle"](0.3) == pytest.approx(1.0)
    assert at["onecycle"](0.65) == pytest.approx(0.5)


def test_diverging_training_is_an_error(digits):
    with pytest.raises(NonFiniteError, match=r"a smaller lr than 1e\+30 may help|made a NaN"):
        fit(
            build_model("digits-mlp"),
            digits.train,
            digits.validation,
            Training(epochs=3, optimizer="sgd", lr=1e30),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(RecipeError, match=message):
        Training(**settings)


def test_weights_are_checked_before_any_is_loaded(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, build_model("digits-mlp", hidden=64))
    model = build_model("digits-mlp", hidden=128)
    before = weights_of(model)
    with pytest.raises(StorageError, match=r"layers.0.weight has shape \(64, 64\) there and \(128, 64\)"):
        load_network(path, model)
    with pytest.raises(StorageError, match=r"lacks 'weight', which Linear has"):
        load_network(path, nn.Linear(3, 3))
    assert same(before, weights_of(model))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = nn.Linear(3, 3)
    before = weights_of(model)
    save_weights(tmp_path / "w", model)
    tensors, _ = load_tensors(tmp_path / "w")
    tensors["weight"][1, 1] = value
    save_tensors(tmp_path / "w", tensors)
    with pytest.raises(NonFiniteError, match="w: weight holds a NaN or an infinity"):
        load_network(tmp_path / "w", model)
    assert same(before, weights_of(model))


def change_first(key, value):
    return lambda tensors, metadata: metadata["progress"]["epochs"][0].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.pop("progress"),
        lambda tensors, metadata: metadata.update(progress=[1]),
        lambda tensors, metadata: metadata["progress"].pop("best_score"),
        lambda tensors, metadata: metadata["progress"].update(best_score=[1.0]),
        lambda tensors, metadata: metadata["progress"].update(best_epoch="one"),
        lambda tensors, metadata: metadata["progress"].update(epochs={"a": 1}),
        change_first("epoch", 7),
        change_first("lr", None),
        change_first("more", 1),
        lambda tensors, metadata: metadata.pop("optimizer"),
        lambda tensors, metadata: metadata.update(optimizer=3),
        lambda tensors, metadata: metadata.update(optimizer={"a": {}}),
        lambda tensors, metadata: metadata.update(optimizer={"99": {"step": 1}}),
        lambda tensors, metadata: tensors.pop("optimizer/0/exp_avg"),
        lambda tensors, metadata: tensors.update({"optimizer/0/exp_avg": torch.zeros(1, 2)}),
        lambda tensors, metadata: tensors["optimizer/0/exp_avg"].fill_(math.nan),
        lambda tensors, metadata: tensors.update({"optimizer/x/exp_avg": torch.zeros(1)}),
        lambda tensors, metadata: tensors.update(more=torch.zeros(1)),
        lambda tensors, metadata: tensors.pop("best/weight"),
        lambda tensors, metadata: tensors.update({"model/weight": torch.zeros(3, 2)}),
    ],
)
def test_a_damaged_training_checkpoint_is_one_error_and_changes_nothing(tmp_path, change):
    data = Split(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), torch.tensor([0, 1]))
    settings, path = Training(epochs=1, batch_size=None), tmp_path / "run.safetensors"
    fit(nn.Linear(2, 2), data, data, settings, checkpoint=path)
    tensors, metadata = load_tensors(path)
    change(tensors, metadata)
    save_tensors(path, tensors, metadata)
    model = nn.Linear(2, 2)
    before = weights_of(model)
    with pytest.raises(StorageError, match=r"run\.safetensors: "):
        fit(model, data, data, settings.with_epochs(2), checkpoint=path)
    assert same(before, weights_of(model))


def test_seeds_depend_on_every_part():
    seeds = {seed_of(0, "a", 1), seed_of(0, "a", 2), seed_of(1, "a", 1), seed_of(0, "b", 1)}
    assert len(seeds) == 4
    assert all(0 <= s < 2**63 for s in seeds)


def test_the_processor_is_left_as_it_was(digits):
    smallest = float("5e-324")
    fit(build_model("digits-mlp"), digits.train, digits.validation, Training(epochs=1))
    evaluate(build_model("digits-mlp"), digits.test)
    assert smallest * 1.0 > 0, "denormals are flushed while training, and no longer"


def test_clipping_does_not_count_the_gradients_of_dead_weights():
    model = nn.Linear(2, 2, bias=False)
    masks = sc.prune(model, sc.Magnitude(), sc.Uniform(0.5))
    data = Split(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), torch.tensor([0, 1]))
    before = model.weight.detach().clone()
    settings = Training(epochs=1, optimizer="sgd", momentum=0.0, lr=1.0, clip=0.01, batch_size=None)
    fit(model, data, data, settings, masks=masks)
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.01, rel=1e-3)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


AVERAGED = Training(epochs=4, lr=1e-2, batch_size=100, average=0.5, keep="last")


def test_weights_are_averaged_over_the_last_epochs_and_norms_see_the_data_again(digits):
    model, seen = normed(), []
    masks = sc.prune(model, sc.Magnitude(), sc.Global(0.5))
    fit(
        model,
        digits.train,
        digits.validation,
        AVERAGED,
        masks=masks,
        on_epoch=lambda row: seen.append(weights_of(model)),
    )
    for name in ("1.weight", "1.bias", "4.weight", "2.weight"):
        torch.testing.assert_close(model.state_dict()[name], (seen[2][name] + seen[3][name]) / 2)
    masks.check()
    inputs = model[1](digits.train.inputs.flatten(1))
    torch.testing.assert_close(model[2].running_mean, inputs.mean(0), rtol=0.02, atol=0.02)
    assert not torch.allclose(model[2].running_mean, seen[3]["2.running_mean"])


def test_the_best_on_validation_may_be_the_average_or_an_epoch(digits):
    found = {}
    for keep in ("last", "best"):
        for lr in (1e-2, 0.0):
            model = normed()
            history = fit(
                model, digits.train, digits.validation, Training(epochs=4, lr=lr, keep=keep, average=0.5)
            )
            found[keep, lr] = evaluate(model, digits.validation).rank
            best = max(row.validation_score for row in history.epochs)
            assert keep == "last" or found[keep, lr][0] >= best
    assert found["best", 1e-2] >= found["last", 1e-2]


def test_a_killed_run_averages_the_same_epochs(digits, tmp_path):
    whole = normed()
    fit(whole, digits.train, digits.validation, AVERAGED, seed=1)
    for stop_after in (1, 2, 3, 4):
        path = tmp_path / f"{stop_after}.safetensors"

        def on_epoch(row, stop_after=stop_after):
            if row.epoch == stop_after:
                raise Stop

        with pytest.raises(Stop):
            fit(
                normed(),
                digits.train,
                digits.validation,
                AVERAGED,
                seed=1,
                checkpoint=path,
                on_epoch=on_epoch,
            )
        model = normed()
        fit(model, digits.train, digits.validation, AVERAGED, seed=1, checkpoint=path)
        assert same(weights_of(whole), weights_of(model))


@pytest.mark.parametrize(
    ("epochs", "share", "first"), [(10, 0.0, 11), (10, 0.3, 8), (10, 1.0, 1), (3, 0.5, 2), (1, 0.1, 1)]
)
def test_the_first_epoch_that_is_averaged(epochs, share, first):
    assert Training(epochs=epochs, average=share).averaged_from == first
