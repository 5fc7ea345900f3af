"""What of a batch are inputs and what labels goes by the forward; what could be either is refused."""

from __future__ import annotations

from collections import UserDict
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import secateur as sc
from secateur.errors import CriterionError
from secateur.pruning.batches import batches

X, Z, Y = torch.randn(6, 8), torch.randn(6, 8), torch.randint(0, 4, (6,))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Two(Net):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + 2 * other)


class Optional(Net):
    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return super().forward(x if scale is None else x * scale)


class Own(Net):
    """Takes the labels and gives its loss, as the models of transformers do."""

    def forward(self, input_ids=None, mask=None, labels=None):  # type: ignore[override]
        logits = super().forward(input_ids)
        loss = None if labels is None else 3 * nn.functional.cross_entropy(logits, labels)
        return type("Output", (), {"logits": logits, "loss": loss})()


class Listed(Net):
    def forward(self, images: list[Tensor], targets: list[Tensor] | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(torch.stack(images))


class Packed(Net):
    def forward(self, sequence: PackedSequence) -> Tensor:  # type: ignore[override]
        return super().forward(sequence.data)


class Anything(Net):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Labelled(Net):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


CASES = [
    (Net, X, X, None),
    (Net, (X,), [X], None),
    (Net, (X, Y), X, Y),
    (Net, [X, Y], X, Y),
    (Net, ((X,), Y), [X], Y),
    (Net, {"x": X}, {"x": X}, None),
    (Net, {"x": X, "labels": Y}, {"x": X}, Y),
    (Net, {"x": X, "y": Y}, {"x": X}, Y),
    (Net, ({"x": X}, Y), {"x": X}, Y),
    (Two, (X, Z), [X, Z], None),
    (Two, (X, Z, Y), [X, Z], Y),
    (Two, ((X, Z), Y), [X, Z], Y),
    (Two, [[X, Z], Y], [X, Z], Y),
    (Two, {"x": X, "other": Z, "target": Y}, {"x": X, "other": Z}, Y),
    (Optional, (X, Y), X, Y),
    (Optional, ((X, Z), Y), [X, Z], Y),
    (Optional, {"x": X, "scale": Z}, {"x": X, "scale": Z}, None),
    (Optional, (X, Z, Z, Y), [X, Z, Z], Y),
    (Own, (X, Y), X, Y),
    (Own, (X, Z, Y), [X, Z, Y], Y),
    (Own, {"input_ids": X, "labels": Y}, {"input_ids": X, "labels": Y}, Y),
    (Own, UserDict({"input_ids": X, "mask": Z}), {"input_ids": X, "mask": Z}, None),
    (Labelled, (X, Y), [X, Y], Y),
    (Listed, (list(X), list(Y)), [list(X)], list(Y)),
    (Listed, (list(X[:2]), list(Y[:2])), [list(X[:2])], list(Y[:2])),
    (Anything, X, X, None),
    (Anything, ((X, Z), Y), [X, Z], Y),
    (Anything, ((X,), Y), [X], Y),
    (Anything, {"x": X, "labels": Y}, {"x": X, "labels": Y}, Y),
]


def same(one, other) -> bool:
    if isinstance(one, Tensor):
        return one is other or (isinstance(other, Tensor) and torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one is other


@pytest.mark.parametrize(("kind", "batch", "inputs", "labels"), CASES, ids=range(len(CASES)))
def test_a_batch_by_the_forward(kind, batch, inputs, labels):
    net = kind()
    for model in (net, torch.optim.swa_utils.AveragedModel(net), torch.compile(net, backend="eager")):
        ((given, target),) = batches([batch], "Wanda", model)
        assert same(inputs, given)
        assert same(labels, target)


AMBIGUOUS = [
    (
        Net,
        (X, Z, Y),
        r"batch 1 of data= is a tuple of 3, and Net.forward takes \(x\): .*write \(\(a, b\), labels",
    ),
    (Optional, (X, Z, Y), r"Optional.forward takes \(x, scale=\.\.\., shift=\.\.\.\)"),
    (Anything, (X, Y), r"Anything.forward takes \(\*, \*\*\)"),
    (Anything, (X, Z, Y), "can only be guessed"),
    (Two, {"x": X}, r"lacks 'other': Two.forward takes \(x, other\)"),
    (Two, {"x": X, "other": Z, "third": Z}, "has 'third', which is none of them"),
    (Net, {"x": X, "labels": Y, "target": Y}, "has both 'labels' and 'target'"),
    (Net, {"input": X}, "has 'input', which is none of them"),
    (Net, ("text", Y), "holds a str; pass a list of tensors"),
    (Net, (), "holds a tuple"),
    (Net, 3, "holds a int"),
]


@pytest.mark.parametrize(("kind", "batch", "message"), AMBIGUOUS, ids=range(len(AMBIGUOUS)))
@pytest.mark.parametrize("criterion", [sc.Wanda(), sc.Taylor()])
def test_what_could_be_either_is_refused(kind, batch, message, criterion):
    net = kind()
    with pytest.raises(CriterionError, match=message):
        sc.prune(net, criterion, sc.Global(0.5), data=[batch])
    assert sc.sparsity(net) == 0


def test_the_second_of_two_inputs_counts():
    hidden = Two().a.weight.detach().abs() * (X + 2 * Z).square().mean(0).sqrt()
    net = Two()
    scores = sc.Wanda()(sc.find_targets(net), [(X, Z)])
    torch.testing.assert_close(scores["a.weight"](slice(None)).detach(), hidden)
    with pytest.raises(CriterionError, match=r"Taylor needs batches of \(inputs, labels\); got inputs alone"):
        sc.prune(net, sc.Taylor(), sc.Global(0.5), data=[(X, Z)])


def test_taylor_takes_the_loss_that_the_model_gives_unless_told():
    net, data = Own(), [{"input_ids": X, "labels": Y}]
    score = partial(sc.Taylor(), sc.find_targets(net))
    own, pair = score(data)["b.weight"](slice(None)), score([(X, Y)])["b.weight"](slice(None))
    torch.testing.assert_close(own, 3 * pair)  # cross-entropy of its logits, for a pair
    given = score(data, lambda outputs, labels: nn.functional.cross_entropy(outputs.logits, labels))
    torch.testing.assert_close(given["b.weight"](slice(None)), pair)


class Endless(IterableDataset):
    def __iter__(self):
        yield from [(X, Y), (Z, Y)]


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(X, Y), batch_size=3),
        DataLoader(Endless(), batch_size=None),
        Endless(),
        ((X[i::2], Y[i::2]) for i in range(2)),
    ],
    ids=["loader", "loader of an iterable", "iterable", "generator"],
)
def test_where_batches_come_from(data):
    assert sc.prune(Net(), sc.Taylor(), sc.Global(0.5), data=data).sparsity == 0.5


def test_a_packed_sequence_is_one_input():
    packed = pack_sequence([X[:4], X[4:]])
    assert sc.prune(Packed(), sc.Taylor(), sc.Global(0.5), data=[(packed, torch.randint(0, 4, (6,)))])


def test_a_data_set_is_no_batches():
    with pytest.raises(CriterionError, match="Wanda was given a TensorDataset as data; pass batches"):
        sc.prune(Net(), sc.Wanda(), sc.Global(0.5), data=TensorDataset(X, Y))


def test_reconstruct_reads_the_same_batches():
    net, dense = Two(), Two()
    structure = sc.trace(net, (X, Z))
    sc.prune(net, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    assert list(sc.reconstruct(net, dense, structure, [(X, Z)]).layers) == ["b"]


def test_transformers_dicts_with_labels_inside():
    import transformers

    torch.manual_seed(0)
    net = transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=20, dim=8, n_heads=2, n_layers=1, hidden_dim=12, num_labels=3
        )
    )
    ids = torch.randint(0, 20, (6, 5))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 3, (6,))}
    encoding = transformers.BatchEncoding(batch)
    by_hand = torch.autograd.grad(net.eval()(**batch).loss, net.classifier.weight)[0] * net.classifier.weight
    scores = sc.Taylor()(sc.find_targets(net), [encoding])["classifier.weight"](slice(None))
    torch.testing.assert_close(scores, by_hand.abs())
    example = {"input_ids": ids, "attention_mask": batch["attention_mask"]}
    _, run = sc.prune_greedily(net, example, [encoding], macs=0.95)
    assert run.removals
