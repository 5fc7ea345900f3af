"""The usual tasks: losses and scores by hand, and the same however examples are cut into batches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ModelError, TaskError
from secateur.task import TASKS, build_task
from secateur.task.base import Scale
from secateur.task.built_in import own_loss, smoothed

TWO = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])


def score(task, *batches):
    meter = task.score.meter()
    for outputs, labels in batches:
        meter.update(outputs, labels)
    return meter.compute()


def test_class_weights_and_top_k():
    labels = torch.tensor([0, 0, 1])
    task = build_task("classification", class_weights=[1, 3])
    assert float(task.loss(TWO, labels)) == pytest.approx(
        float(F.cross_entropy(TWO, labels, torch.tensor([1.0, 3.0])))
    )
    assert score(task, (TWO, labels)) == pytest.approx(1 / 3)
    top = build_task("classification", top_k=2)
    assert top.score.name == "top-2 accuracy"
    assert score(top, (TWO, labels)) == 1.0
    with pytest.raises(TaskError, match="top_k is 3, and there are 2 classes"):
        score(build_task("classification", top_k=3), (TWO, labels))
    with pytest.raises(ModelError, match="class_weights has 3 numbers; 2 classes have one each"):
        build_task("classification", class_weights=[1, 1, 1]).loss(TWO, labels)


def test_several_labels_an_example_are_scored_by_f1():
    task = build_task("classification", multi_label=True)
    logits, labels = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[1, 1, 0]])
    assert score(task, (logits, labels)) == pytest.approx(
        2 * 1 / (2 + 2)
    )  # one of two found, one of two there
    assert float(task.loss(logits, labels)) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(logits, labels.float()))
    )


@pytest.mark.parametrize(
    ("kind", "wanted", "unit", "better"),
    [("r2", 1 - 0.5 / 2, "", True), ("rmse", math.sqrt(0.5 / 3), "cm", False), ("mae", 1 / 3, "cm", False)],
)
def test_numbers(kind, wanted, unit, better):
    task = build_task("regression", score=kind, unit="cm")
    outputs, labels = torch.tensor([[1.0], [2.5], [2.5]]), torch.tensor([1.0, 2.0, 3.0])
    assert score(task, (outputs, labels)) == pytest.approx(wanted)
    assert (task.score.unit, task.score.higher_is_better) == (unit, better)
    assert float(task.loss(outputs, labels)) == pytest.approx(0.5 / 3)
    assert task.losses(outputs, labels).tolist() == pytest.approx([0.0, 0.25, 0.25])


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, -1234.567])
def test_r2_of_constant_labels_is_one_where_they_are_met_and_else_zero(value):
    task = build_task("regression", score="r2")
    labels = torch.full((999,), value)
    assert score(task, (labels[:, None].clone(), labels)) == 1.0
    assert score(task, (labels[:, None] + 0.5, labels)) == 0.0
    varied = torch.stack((labels, torch.arange(999.0)), 1)  # one number of two has a variance
    assert score(task, (varied.clone(), varied)) == 1.0
    found = varied + torch.tensor([0.5, 0.0])
    assert score(task, (found, varied)) == 0.5


def test_r2_of_labels_far_from_zero_is_no_constant():
    task = build_task("regression", score="r2")
    labels = 100_000 + torch.arange(9.0)
    assert score(task, (labels[:, None] + 1, labels)) == pytest.approx(1 - 9 / 60)


def test_pixels_and_the_label_that_counts_nowhere():
    task = build_task("segmentation", ignore=255)
    labels = torch.tensor([[[0, 0], [1, 255]]])
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1] = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])  # found: 0 1 / 1 1
    assert score(task, (logits, labels)) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert score(build_task("segmentation", score="dice", ignore=255), (logits, labels)) == pytest.approx(
        (2 / 3 + 2 / 3) / 2
    )
    wanted = F.cross_entropy(logits, labels, ignore_index=255)
    assert float(task.loss(logits, labels)) == pytest.approx(float(wanted))
    assert torch.equal(task.losses({"out": logits}, labels[:, None]), task.losses(logits, labels))


def test_dice_is_zero_for_a_certain_right_map_and_falls_with_training():
    labels = torch.randint(0, 3, (4, 8, 8))
    certain = 50 * F.one_hot(labels, 3).movedim(-1, 1).float()
    task = build_task("segmentation", loss="dice")
    assert float(task.loss(certain, labels)) < 1e-6
    both = build_task("segmentation", loss="both")
    one = torch.randn(4, 3, 8, 8)
    parts = [
        float(build_task("segmentation", loss=name).loss(one, labels)) for name in ("cross_entropy", "dice")
    ]
    assert float(both.loss(one, labels)) == pytest.approx(sum(parts))


def test_one_logit_of_two_classes_is_a_map_too():
    labels = torch.randint(0, 2, (2, 4, 4))
    one = torch.randn(2, 1, 4, 4)
    wanted = F.binary_cross_entropy_with_logits(one[:, 0], labels.float())
    assert float(build_task("segmentation").loss(one, labels)) == pytest.approx(float(wanted))


def test_tokens_and_the_shift_of_transformers():
    logits, tokens = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    tokens[1, 3:] = -100
    after = torch.cat((tokens[:, 1:], torch.full((2, 1), -100)), 1)
    plain, shifted = build_task("language"), build_task("language", shift=True)
    mean = F.cross_entropy(logits.flatten(0, 1), after.flatten(), ignore_index=-100)
    assert float(plain.loss(logits, after)) == pytest.approx(float(mean))
    assert float(shifted.loss(logits, tokens)) == pytest.approx(float(mean))
    assert score(plain, (logits, after)) == pytest.approx(math.exp(mean))
    assert score(shifted, (logits[:1], tokens[:1]), (logits[1:], tokens[1:])) == pytest.approx(math.exp(mean))


@given(st.integers(1, 7), st.sampled_from(sorted(set(TASKS) - {"detection"})))
def test_a_score_is_the_same_however_the_examples_are_cut(size, name):
    torch.manual_seed(size)
    shapes = {
        "classification": ((8, 4), torch.randint(0, 4, (8,))),
        "regression": ((8, 2), torch.randn(8, 2)),
        "reconstruction": ((8, 2), torch.randn(8, 2)),
        "segmentation": ((8, 3, 4, 4), torch.randint(0, 3, (8, 4, 4))),
        "language": ((8, 5, 6), torch.randint(0, 6, (8, 5))),
    }
    shape, labels = shapes[name]
    outputs, task = torch.randn(shape), build_task(name)
    whole = score(task, (outputs, labels))
    parts = score(task, *zip(outputs.split(size), labels.split(size), strict=True))
    assert parts == pytest.approx(whole, rel=1e-9)
    assert task.losses(outputs, labels).shape == (8,)
    torch.testing.assert_close(task.losses(outputs, labels).mean(), task.loss(outputs, labels))
    assert float(task.divergence(outputs, outputs.clone(), 2.0)) < float(
        task.divergence(outputs, -outputs, 2.0)
    )


@pytest.mark.parametrize("outputs", [{"a": torch.tensor(1.0), "b": torch.tensor([2.0])}, torch.tensor([3.0])])
def test_a_loss_of_the_networks_own(outputs):
    assert float(own_loss(outputs)) == 3.0


def test_what_holds_no_loss_is_said():
    with pytest.raises(ModelError, match="hold no loss: `loss`, a dict of losses or one number"):
        own_loss(torch.randn(2, 2))


def test_label_smoothing_where_there_is_none():
    assert smoothed(build_task("regression"), 0.0).name == "regression"
    with pytest.raises(TaskError, match="label_smoothing: the loss of regression has none"):
        smoothed(build_task("regression"), 0.1)
    task = smoothed(build_task("classification"), 0.1)
    assert float(task.loss(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "wrong"),
    [
        ("clasification", {}, "unknown task 'clasification'; did you mean 'classification'"),
        ("regression", {"loss": "mape"}, "loss is 'mape'; it is one of mse, l1, huber"),
        ("regression", {"weights": 1}, "regression has no option 'weights'"),
        ("classification", {"class_weights": [1, -1]}, "each is a finite number from 0"),
        ("classification", {"class_weights": "ab"}, "it is a list of numbers, one a class"),
        ("classification", {"top_k": 0}, "top_k is 0; it counts from 1"),
        ("classification", {"top_k": 5, "multi_label": True}, "with multi_label leave it out"),
        ("collections:Counter", {}, "collections:Counter gave a Counter; a secateur.Task is right"),
    ],
)
def test_what_is_no_task_is_said(name, options, wrong):
    with pytest.raises(TaskError, match=wrong):
        build_task(name, **options)


def test_a_metric_of_another_package_takes_the_place_of_counts():
    class Most:
        def __init__(self):
            self.most = 0.0

        def update(self, outputs, labels):
            self.most = max(self.most, float((outputs - labels).abs().max()))

        def compute(self):
            return torch.tensor(self.most)

    largest = sc.Score("largest error", "m", higher_is_better=False, metric=Most)
    task = sc.Task("fit", nn.MSELoss(), largest)
    found = sc.evaluate(
        nn.Identity(), [(torch.ones(2, 1), torch.zeros(2, 1)), (torch.ones(1, 1), torch.ones(1, 1))], task
    )
    assert repr(found) == "largest error 1 m, loss 0.6667, 3 examples"
    with pytest.raises(TaskError, match="'largest error' is a metric over all examples, without counts"):
        largest.counted(torch.ones(1), torch.ones(1))
    with pytest.raises(TaskError, match="has either counts= or metric="):
        sc.Score("neither")


def test_how_a_score_is_read():
    accuracy, error = Scale("accuracy", "%"), Scale("RMSE", "kg", False)
    assert (accuracy.title, accuracy.text(0.9831), accuracy.points) == (
        "accuracy, %",
        "98.31 %",
        "percentage points",
    )
    assert (error.title, error.text(12.345), error.points) == ("RMSE, kg", "12.35 kg", "kg")
    assert accuracy.drop(0.98, 0.95) == pytest.approx(3.0)
    assert error.drop(2.0, 2.5) == pytest.approx(0.5)
    assert accuracy.lowered(0.98, 3.0) == pytest.approx(0.95)
    assert error.lowered(2.0, 0.5) == pytest.approx(2.5)
    assert (accuracy.number(-0.031, "+"), error.number(0.25, "+")) == ("-3.10", "+0.25")


def test_a_metric_of_torchmetrics_is_a_score():
    torchmetrics = pytest.importorskip("torchmetrics")
    area = sc.Score("AUROC", metric=lambda: torchmetrics.AUROC(task="binary"))
    task = sc.Task("two", lambda outputs, labels: F.binary_cross_entropy(outputs, labels.float()), area)
    data = [
        (torch.tensor([0.2, 0.8]), torch.tensor([0, 1])),
        (torch.tensor([0.5, 0.6]), torch.tensor([1, 0])),
    ]
    assert sc.evaluate(nn.Identity(), data, task).score == pytest.approx(3 / 4)


def test_detection_names_what_its_metric_needs():
    task = build_task("detection")
    try:
        from torchmetrics.detection import MeanAveragePrecision  # noqa: F401
    except ImportError:
        with pytest.raises(TaskError, match=r"pip install 'torchmetrics\[detection\]'"):
            task.score.meter()
    assert (task.in_eval, task.score.unit) == (False, "%")


def judged(task, outputs, labels):
    return sc.evaluate(nn.Identity(), [(outputs[:3], labels[:3]), (outputs[3:], labels[3:])], task)


def test_the_loss_that_is_reported_is_torchs_however_the_examples_are_cut():
    torch.manual_seed(0)
    weights = [1.0, 2.0, 5.0]
    logits, labels = torch.randn(8, 3), torch.randint(0, 3, (8,))
    wanted = F.cross_entropy(logits, labels, torch.tensor(weights))
    task = build_task("classification", class_weights=weights)
    assert judged(task, logits, labels).loss == pytest.approx(float(wanted), rel=1e-6)
    maps, pixels = torch.randn(8, 3, 4, 4), torch.randint(0, 3, (8, 4, 4))
    pixels[2, :3] = 255
    wanted = F.cross_entropy(maps, pixels, torch.tensor(weights), ignore_index=255)
    task = build_task("segmentation", class_weights=weights, ignore=255)
    assert judged(task, maps, pixels).loss == pytest.approx(float(wanted), rel=1e-6)
    assert float(task.loss(maps, pixels)) == pytest.approx(float(wanted), rel=1e-6)
    tokens, after = torch.randn(8, 6, 5), torch.randint(0, 5, (8, 6))
    after[1, 2:] = -100
    found = judged(build_task("language"), tokens, after)
    assert math.exp(found.loss) == pytest.approx(found.score, rel=1e-6)


def test_labels_that_are_padding_count_nowhere():
    logits, labels = torch.randn(6, 5, 4), torch.randint(0, 4, (6, 5))
    labels[0, 3:] = -100
    found = judged(build_task("classification"), logits, labels)
    counted = labels >= 0
    assert found.score == pytest.approx(float((logits.argmax(-1) == labels)[counted].double().mean()))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits[counted], labels[counted])), rel=1e-6)
    assert sum(number for number, _ in found.classes) == int(counted.sum())


def test_which_dim_are_the_classes_is_never_guessed():
    square, labels = torch.randn(4, 5, 5), torch.randint(0, 5, (4, 5))
    with pytest.raises(ModelError, match="have as many classes as positions"):
        judged(build_task("classification"), square, labels)
    last, teacher = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    task, places = build_task("classification"), torch.zeros(4, 6).long()
    wanted = build_task("language").divergence(last, teacher, 2.0)
    torch.testing.assert_close(task.divergence(last, teacher, 2.0, places), wanted)
    second, other = last.movedim(-1, 1), teacher.movedim(-1, 1)
    torch.testing.assert_close(task.divergence(second, other, 2.0, places), wanted)
    with pytest.raises(ModelError, match="which dim are the classes is not known without labels"):
        task.divergence(last, teacher, 2.0)


def test_what_cannot_be_judged_is_one_error():
    with pytest.raises(ModelError, match=r"the task classification cannot judge outputs .* by labels"):
        judged(build_task("classification"), torch.randn(6, 3), torch.full((6,), 7))
    with pytest.raises(TaskError, match="the score of 'x' is None"):
        sc.Task("x", nn.functional.mse_loss, None)
    with pytest.raises(TaskError, match="the loss of 'x' is None"):
        sc.Task("x", None, build_task("regression").score)
