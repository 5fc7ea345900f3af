"""Loss, predictions and scores of classification, by hand."""

import math

import pytest
import torch

from secateur.errors import ModelError
from secateur.task.classifying import cross_entropy, judged, logits_of, predictions

TWO = torch.tensor([[2.0, 0.0], [0.0, 1.0]])


def test_logits_and_one_logit_of_two_classes():
    labels = torch.tensor([0, 0])
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert float(cross_entropy(TWO, labels)) == pytest.approx(wanted)
    one = torch.tensor([[2.0], [-1.0]])  # the same two networks' odds
    assert float(cross_entropy(one, torch.tensor([1, 1]))) == pytest.approx(wanted)
    assert predictions(TWO).tolist() == [0, 1]
    assert predictions(one).tolist() == [1, 0]


def test_label_smoothing_raises_the_loss_of_a_certain_network():
    outputs, labels = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    assert cross_entropy(outputs, labels) < 1e-6
    assert cross_entropy(outputs, labels, 0.1) == pytest.approx(1.0, rel=1e-4)  # 0.05 x 20
    assert cross_entropy(torch.tensor([[20.0]]), torch.tensor([1]), 0.1) == pytest.approx(1.0, rel=1e-4)


def test_positions_with_the_classes_last_or_second():
    last = torch.randn(3, 5, 4)
    labels = torch.randint(0, 4, (3, 5))
    assert torch.equal(cross_entropy(last, labels), cross_entropy(last.movedim(-1, 1), labels))
    right, loss = judged(last, labels)
    assert right.shape == loss.shape == (3,)
    assert torch.allclose(right, (last.argmax(-1) == labels).double().mean(1))


def test_what_has_logits_is_read_by_them():
    class Output:
        logits = TWO

    assert torch.equal(logits_of(Output(), torch.tensor([0, 1])), TWO)


@pytest.mark.parametrize(
    ("outputs", "labels", "wrong"),
    [
        (torch.randn(4), torch.zeros(4, dtype=torch.long), "are no classification"),
        (torch.randn(4, 3), torch.zeros(5, dtype=torch.long), "are no classification"),
        (torch.randn(4, 1), torch.randn(4), "are no classification"),
        ({"a": 1}, torch.zeros(4, dtype=torch.long), "are no classification"),
        (torch.randn(2, 1), torch.tensor([0, 7]), "one logit is for two classes; the labels go up to 7"),
    ],
)
def test_what_is_no_classification_is_said(outputs, labels, wrong):
    with pytest.raises(ModelError, match=wrong):
        cross_entropy(outputs, labels)
