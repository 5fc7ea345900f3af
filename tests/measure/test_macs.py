"""Multiply-adds, each against a count by hand: every module of torch.nn, every operator that multiplies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, rnn

from secateur.measure.macs import count_macs
from secateur.measure.summary import profile

r = torch.randn
INT8 = torch.ones(32, 32, dtype=torch.int8)

# Written out here, so that a module that a new torch brings is in neither list and fails the test.
MULTIPLY_NOTHING = """
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
    AdaptiveMaxPool3d AlphaDropout AvgPool1d AvgPool2d AvgPool3d BCELoss BCEWithLogitsLoss
    BatchNorm1d BatchNorm2d BatchNorm3d CELU CTCLoss ChannelShuffle CircularPad1d CircularPad2d
    CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d CosineEmbeddingLoss CosineSimilarity
    CrossEntropyLoss CrossMapLRN2d Dropout Dropout1d Dropout2d Dropout3d ELU Embedding
    FeatureAlphaDropout Flatten Fold FractionalMaxPool2d FractionalMaxPool3d GELU GLU
    GaussianNLLLoss GroupNorm Hardshrink Hardsigmoid Hardswish Hardtanh HingeEmbeddingLoss HuberLoss
    Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d KLDivLoss L1Loss LPPool1d LPPool2d
    LPPool3d LayerNorm LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d LazyInstanceNorm1d
    LazyInstanceNorm2d LazyInstanceNorm3d LeakyReLU LocalResponseNorm LogSigmoid LogSoftmax MSELoss
    MarginRankingLoss MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d Mish
    MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PReLU
    PairwiseDistance PixelShuffle PixelUnshuffle PoissonNLLLoss RMSNorm RReLU ReLU ReLU6
    ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d
    ReplicationPad3d SELU SiLU Sigmoid SmoothL1Loss SoftMarginLoss Softmax Softmax2d Softmin
    Softplus Softshrink Softsign SyncBatchNorm Tanh Tanhshrink Threshold TripletMarginLoss
    TripletMarginWithDistanceLoss Unflatten Unfold Upsample UpsamplingBilinear2d UpsamplingNearest2d
    ZeroPad1d ZeroPad2d ZeroPad3d
"""
HOLD_OTHERS = "Container DataParallel Module ModuleDict ModuleList ParameterDict ParameterList Sequential"
ABSTRACT = "RNNBase RNNCellBase"


class Case:
    """A module, what it is called on, and what it takes by hand."""

    def __init__(self, build: Callable[[], nn.Module], inputs: Any, macs: int, **kwargs: Any) -> None:
        self.build, self.inputs, self.macs, self.kwargs = build, inputs, macs, kwargs


def encoder_layer(length: int, width: int, inner: int) -> int:
    """Four projections, two products with every other position, two linear layers."""
    return length * (4 * width**2 + 2 * length * width + 2 * width * inner)


def decoder_layer(length: int, memory: int, width: int, inner: int) -> int:
    cross = (length + memory) * 2 * width**2 + 2 * length * memory * width
    return encoder_layer(length, width, inner) + cross


TRANSFORMER = {"nhead": 2, "dim_feedforward": 16, "batch_first": True}
PACKED = rnn.pack_padded_sequence(r(5, 3, 4), [5, 3, 2])  # 10 steps
TARGET = torch.tensor([0, 1, 4])
MULTIPLY = {
    "Linear": [
        Case(lambda: nn.Linear(4, 6), r(2, 4), 2 * 24),
        Case(lambda: nn.Linear(4, 6, bias=False), r(4), 24),
        Case(lambda: nn.Linear(4, 6), r(2, 3, 5, 4), 30 * 24),
    ],
    "LazyLinear": [Case(lambda: nn.LazyLinear(6), r(2, 4), 2 * 24)],
    "Bilinear": [Case(lambda: nn.Bilinear(3, 4, 5), (r(2, 7, 3), r(2, 7, 4)), 14 * 60)],
    "Conv1d": [
        Case(lambda: nn.Conv1d(4, 6, 3, stride=2), r(2, 4, 9), 2 * 4 * 6 * 4 * 3),
        Case(lambda: nn.Conv1d(4, 6, 3, dilation=2, groups=2), r(2, 4, 9), 2 * 5 * 6 * 2 * 3),
    ],
    "Conv2d": [
        Case(lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), r(4, 5, 5), 25 * 6 * 4 * 9),  # no batch
        Case(lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), r(1, 4, 5, 5), 25 * 4 * 9),
        Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), r(1, 4, 5, 5), 25 * 6 * 4 * 9),
    ],
    "Conv3d": [Case(lambda: nn.Conv3d(2, 3, 2), r(1, 2, 4, 4, 4), 27 * 3 * 2 * 8)],
    "LazyConv1d": [Case(lambda: nn.LazyConv1d(6, 3), r(1, 4, 5), 3 * 6 * 4 * 3)],
    "LazyConv2d": [Case(lambda: nn.LazyConv2d(6, 3), r(1, 4, 5, 5), 9 * 6 * 4 * 9)],
    "LazyConv3d": [Case(lambda: nn.LazyConv3d(3, 2), r(1, 2, 4, 4, 4), 27 * 3 * 2 * 8)],
    "ConvTranspose1d": [Case(lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), r(2, 4, 5), 2 * 5 * 4 * 6 * 3)],
    "ConvTranspose2d": [
        Case(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), r(1, 4, 5, 5), 25 * 4 * 3 * 9),
        Case(lambda: nn.ConvTranspose2d(4, 6, 3, padding=1, dilation=2), r(4, 5, 5), 25 * 4 * 6 * 9),
    ],
    "ConvTranspose3d": [Case(lambda: nn.ConvTranspose3d(2, 3, 2), r(1, 2, 3, 3, 3), 27 * 2 * 3 * 8)],
    "LazyConvTranspose1d": [Case(lambda: nn.LazyConvTranspose1d(6, 3), r(1, 4, 5), 5 * 4 * 6 * 3)],
    "LazyConvTranspose2d": [Case(lambda: nn.LazyConvTranspose2d(6, 3), r(1, 4, 5, 5), 25 * 4 * 6 * 9)],
    "LazyConvTranspose3d": [Case(lambda: nn.LazyConvTranspose3d(3, 2), r(1, 2, 3, 3, 3), 27 * 2 * 3 * 8)],
    "RNN": [
        Case(lambda: nn.RNN(4, 6), r(5, 3, 4), 15 * (24 + 36)),
        Case(lambda: nn.RNN(4, 6, 2, "relu", bidirectional=True), r(5, 4), 5 * 2 * (24 + 36 + 72 + 36)),
        Case(lambda: nn.RNN(4, 6), (PACKED,), 10 * (24 + 36)),
    ],
    "GRU": [
        Case(lambda: nn.GRU(4, 6, batch_first=True), r(3, 5, 4), 15 * 3 * (24 + 36)),
        Case(lambda: nn.GRU(4, 6, 2, bidirectional=True), r(5, 3, 4), 15 * 2 * 3 * (24 + 36 + 72 + 36)),
        Case(lambda: nn.GRU(4, 6, 2), (PACKED,), 10 * 3 * (24 + 36 + 36 + 36)),
    ],
    "LSTM": [
        Case(lambda: nn.LSTM(4, 6), r(5, 3, 4), 15 * 4 * (24 + 36)),
        Case(lambda: nn.LSTM(4, 6, batch_first=True, bias=False), r(3, 5, 4), 15 * 4 * (24 + 36)),
        Case(lambda: nn.LSTM(4, 6, 2, bidirectional=True), r(5, 3, 4), 15 * 2 * 4 * (24 + 36 + 72 + 36)),
        Case(lambda: nn.LSTM(4, 6, 2, dropout=0.5), r(5, 4), 5 * 4 * (24 + 36 + 36 + 36)),
        # what recurs is the projection: 2 numbers, not 6
        Case(lambda: nn.LSTM(4, 6, proj_size=2), r(5, 3, 4), 15 * (4 * (24 + 12) + 12)),
        Case(lambda: nn.LSTM(4, 6), PACKED, 10 * 4 * (24 + 36)),
        Case(lambda: nn.LSTM(4, 6, bidirectional=True), (PACKED,), 10 * 2 * 4 * (24 + 36)),
        Case(lambda: nn.LSTM(4, 6), (r(5, 3, 4), (r(1, 3, 6), r(1, 3, 6))), 15 * 4 * (24 + 36)),
    ],
    "RNNCell": [Case(lambda: nn.RNNCell(4, 6), r(3, 4), 3 * (24 + 36))],
    "GRUCell": [Case(lambda: nn.GRUCell(4, 6), r(3, 4), 3 * 3 * (24 + 36))],
    "LSTMCell": [Case(lambda: nn.LSTMCell(4, 6), r(4), 4 * (24 + 36))],
    "EmbeddingBag": [
        Case(lambda: nn.EmbeddingBag(7, 3), torch.tensor([[0, 1], [2, 2]]), 0),  # sums of rows
        Case(
            lambda: nn.EmbeddingBag(7, 3, mode="sum"),
            {"input": torch.tensor([[0, 1], [2, 2]]), "per_sample_weights": r(2, 2)},
            4 * 3,
        ),
    ],
    "MultiheadAttention": [
        Case(lambda: nn.MultiheadAttention(8, 2), (r(5, 3, 8),) * 3, 3 * 5 * (4 * 64 + 2 * 5 * 8)),
        Case(
            lambda: nn.MultiheadAttention(8, 2, kdim=3, vdim=6, batch_first=True),
            (r(1, 5, 8), r(1, 4, 3), r(1, 4, 6)),
            5 * 2 * 64 + 4 * (8 * 3 + 8 * 6) + 2 * 5 * 4 * 8,
            need_weights=False,
        ),
        Case(
            lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True),
            (r(5, 8),) * 3,
            5 * (4 * 64 + 2 * (5 + 2) * 8),  # two more keys and values, not projected
            need_weights=False,
        ),
    ],
    "TransformerEncoderLayer": [
        Case(lambda: nn.TransformerEncoderLayer(8, **TRANSFORMER), r(2, 5, 8), 2 * encoder_layer(5, 8, 16)),
        Case(
            lambda: nn.TransformerEncoderLayer(8, **TRANSFORMER, norm_first=True),
            r(1, 5, 8),
            encoder_layer(5, 8, 16),  # a causal mask saves nothing
            src_mask=nn.Transformer.generate_square_subsequent_mask(5),
            is_causal=True,
        ),
    ],
    "TransformerEncoder": [
        Case(
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, **TRANSFORMER), 3),
            r(2, 5, 8),
            6 * encoder_layer(5, 8, 16),
            src_key_padding_mask=torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
        )
    ],
    "TransformerDecoderLayer": [
        Case(
            lambda: nn.TransformerDecoderLayer(8, **TRANSFORMER),
            (r(1, 5, 8), r(1, 4, 8)),
            decoder_layer(5, 4, 8, 16),
        )
    ],
    "TransformerDecoder": [
        Case(
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, **TRANSFORMER), 2),
            (r(1, 5, 8), r(1, 4, 8)),
            2 * decoder_layer(5, 4, 8, 16),
        )
    ],
    "Transformer": [
        Case(
            lambda: nn.Transformer(8, num_encoder_layers=2, num_decoder_layers=1, **TRANSFORMER),
            (r(1, 4, 8), r(1, 5, 8)),
            2 * encoder_layer(4, 8, 16) + decoder_layer(5, 4, 8, 16),
        )
    ],
    "AdaptiveLogSoftmaxWithLoss": [
        # the head for all three, the one tail for the third: 4 -> 4 / 2 -> 3
        Case(lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2], div_value=2.0), (r(3, 4), TARGET), 36 + 8 + 6)
    ],
    "LinearCrossEntropyLoss": [Case(lambda: nn.LinearCrossEntropyLoss(4, 5), (r(3, 4), TARGET), 3 * 20)],
}


def test_every_module_of_torch_is_here():
    known = {
        name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)
    }
    # LinearCrossEntropyLoss is younger than the oldest torch that is taken.
    listed = [*f"{MULTIPLY_NOTHING} {HOLD_OTHERS} {ABSTRACT}".split(), *MULTIPLY]
    assert known - set(listed) == set(), "a new module of torch.nn: count it by hand"
    assert len(listed) == len(set(listed))


CASES = [(name, case) for name, cases in MULTIPLY.items() if hasattr(nn, name) for case in cases]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_a_module_by_hand(name, case, dtype):
    def cast(value: Any) -> Any:
        if isinstance(value, rnn.PackedSequence):
            return value.to(dtype)
        if isinstance(value, (tuple, list)):
            return type(value)(map(cast, value))
        if isinstance(value, dict):
            return {key: cast(part) for key, part in value.items()}
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules that are still lazy say so, and packed ones are in beta
        model = case.build().to(dtype)
        inputs, kwargs = cast(case.inputs), cast(case.kwargs)
        if isinstance(inputs, Tensor) and kwargs:
            inputs = (inputs,)
        if type(model).__name__.startswith("Lazy"):
            with torch.no_grad():
                model(inputs)
        macs = count_macs(model, inputs, kwargs)
    assert macs.dense == macs.effective == case.macs


@pytest.mark.parametrize("name", [name for name in MULTIPLY if hasattr(nn, name)])
def test_zeros_of_every_weight_are_skipped(name):
    """Each weight is halved in turn: half of what is counted for it is saved."""
    case = MULTIPLY[name][-1]
    model = case.build()
    inputs = (case.inputs,) if isinstance(case.inputs, Tensor) else case.inputs
    if name.startswith("Lazy"):
        with torch.no_grad():
            model(*inputs)
    full = count_macs(model, inputs, case.kwargs)
    assert sum(full.weights.values()) == sum(full.layers.values()) <= full.dense
    for weight_name in full.weights:
        values = model.get_parameter(weight_name).detach()
        before = values.clone()
        values.view(-1)[::2] = 0
        found = count_macs(model, inputs, case.kwargs)
        kept = int(values.count_nonzero()) / values.numel()
        assert found.dense == full.dense
        assert found.effective == full.dense - round(full.weights[weight_name] * (1 - kept))
        values.copy_(before)


class Op(nn.Module):
    """A forward written in operators, over a parameter ``w``."""

    def __init__(
        self, op: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.op = op
        self.w = nn.Parameter(torch.randn(shape, dtype=dtype))

    def forward(self, *args: Tensor) -> Any:
        return self.op(self.w, *args)


OPERATORS = {
    "matmul": (lambda w, x: x @ w, (4, 6), [r(2, 3, 4)], 6 * 24),
    "matmul, weight left": (lambda w, x: w @ x, (6, 4), [r(2, 4, 3)], 6 * 24),
    "matrix, vector": (lambda w, x: w @ x, (6, 4), [r(4)], 24),
    "vector, matrix": (lambda w, x: x @ w, (4, 6), [r(4)], 24),
    "vector, vector": (lambda w, x: x @ w, (4,), [r(4)], 4),
    "mv": (lambda w, x: torch.mv(w, x), (6, 4), [r(4)], 24),
    "dot": (lambda w, x: torch.dot(w, x), (4,), [r(4)], 4),
    "vdot": (lambda w, x: torch.vdot(w, x), (4,), [r(4)], 4),
    "inner": (lambda w, x: torch.inner(x, w), (6, 4), [r(3, 4)], 3 * 24),
    "tensordot": (lambda w, x: torch.tensordot(x, w, 2), (4, 5, 6), [r(3, 4, 5)], 3 * 120),
    "einsum": (lambda w, x: torch.einsum("bi,oi->bo", x, w), (6, 4), [r(3, 4)], 3 * 24),
    "einsum, batched": (lambda w, x: torch.einsum("gbi,gio->gbo", x, w), (2, 4, 6), [r(2, 3, 4)], 2 * 3 * 24),
    "bmm": (lambda w, x: torch.bmm(x, w), (2, 4, 6), [r(2, 3, 4)], 2 * 3 * 24),
    "baddbmm": (lambda w, x: torch.baddbmm(r(2, 3, 6), x, w), (2, 4, 6), [r(2, 3, 4)], 2 * 3 * 24),
    "addbmm": (lambda w, x: torch.addbmm(r(3, 6), x, w), (2, 4, 6), [r(2, 3, 4)], 2 * 3 * 24),
    "addmm": (lambda w, x: torch.addmm(r(6), x, w), (4, 6), [r(3, 4)], 3 * 24),
    "addmv": (lambda w, x: torch.addmv(r(6), w, x), (6, 4), [r(4)], 24),
    "multi_dot": (lambda w, x: torch.linalg.multi_dot([x, w, w.T]), (4, 6), [r(3, 4)], 2 * 3 * 24),
    "conv_tbc": (lambda w, x: torch.conv_tbc(x, w, r(6)), (3, 4, 6), [r(5, 2, 4)], 3 * 2 * 72),
    "in inference mode": (torch.inference_mode()(lambda w, x: F.linear(x, w)), (6, 4), [r(3, 4)], 3 * 24),
    "elementwise": (lambda w, x: (w * x).sum(-1) + torch.outer(w, w).sum(), (4,), [r(3, 4)], 0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_by_hand(name):
    op, shape, inputs, expected = OPERATORS[name]
    model = Op(op, shape)
    assert count_macs(model, inputs).dense == expected
    with torch.no_grad():
        model.w.flatten()[::2] = 0
    assert count_macs(model, inputs).effective == expected // 2


def test_attention_by_hand():
    def macs(heads: int, kv: int, **options: Any) -> int:
        q, k = r(2, heads, 5, 8), r(2, kv, 7, 8)
        return count_macs(
            Op(lambda w, q, k: F.scaled_dot_product_attention(q, k, k, **options), (1,)), [q, k]
        ).dense

    both = 2 * 4 * 5 * 7 * 8 * 2
    assert macs(4, 4) == both
    assert macs(4, 2, enable_gqa=True) == both
    assert macs(4, 4, attn_mask=torch.zeros(5, 7)) == both
    assert macs(4, 4, is_causal=True) == both  # nothing is skipped


def test_complex_numbers():
    """One a complex multiply-add in a product; a convolution is made of three real ones."""
    x = torch.randn(3, 4, dtype=torch.complex64)
    assert count_macs(nn.Linear(4, 6, dtype=torch.complex64), x).dense == 3 * 24
    images = torch.randn(1, 2, 5, 5, dtype=torch.complex64)
    assert count_macs(nn.Conv2d(2, 3, 3, dtype=torch.complex64), images).dense == 3 * 9 * 3 * 2 * 9


@pytest.mark.parametrize("form", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_a_sparse_weight_is_dense_in_one_count_and_its_values_in_the_other(form):
    weight = torch.zeros(6, 4)
    weight[0, :3] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in beta
        model = Op(lambda w, x: w @ x, (1,))
        model.w = nn.Parameter(form(weight))
        macs = count_macs(model, r(4, 5))
    assert (macs.dense, macs.effective, macs.weights) == (24 * 5, 3 * 5, {"w": 24 * 5})


def test_integers_count():
    assert count_macs(Op(lambda w, x: torch._int_mm(x, x), (1,)), [INT8]).dense == 32**3


def test_a_weight_that_is_computed_counts_its_zeros():
    """Masks of torch's own pruning, weight_norm and casts are weights too."""
    layer = nn.Linear(4, 6)
    prune.l1_unstructured(layer, "weight", 0.5)
    assert count_macs(layer, r(3, 4)).effective == 3 * 12
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)))
    with torch.no_grad():
        normed[0].parametrizations.weight.original1[:, :2] = 0
    macs = count_macs(normed, r(3, 4))
    assert (macs.dense, macs.effective, macs.layers) == (72, 36, {"0": 72})
    cast = Op(lambda w, x: F.linear(x.half(), w.half()), (6, 4))
    with torch.no_grad():
        cast.w[0] = 0
    assert count_macs(cast, r(3, 4)).effective == 3 * 20


def test_a_tied_weight_counts_each_time_and_under_its_first_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.head(self.embed(ids)) @ self.embed.weight)

    macs = count_macs(Tied(), torch.tensor([[1, 2, 3]]))
    assert macs.layers == {"embed": 3 * 3 * 28}


def test_rows_of_a_profile_add_up():
    net = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, **TRANSFORMER), nn.Linear(8, 2))
    table = profile(net, r(1, 5, 4), seconds=0.01)
    by_name = {row.name: row.macs for row in table.layers}
    assert by_name["1.self_attn.in_proj_weight"] == 5 * 3 * 64
    assert table.macs - sum(by_name.values()) == 2 * 5 * 5 * 8  # of attention, which no weight has


def test_an_lstm_gets_cheaper_with_its_units():
    big, small = (nn.LSTM(4, hidden, batch_first=True) for hidden in (16, 8))
    counts = [count_macs(model, r(2, 5, 4)).dense for model in (big, small)]
    assert counts == [10 * 4 * (64 + 256), 10 * 4 * (32 + 64)]


def test_a_tensor_and_arguments_by_name():
    class Gated(nn.Linear):
        def forward(self, x, gate=1.0):
            return super().forward(x) * gate

    assert count_macs(Gated(4, 3), r(2, 4), {"gate": 0.5}).dense == 24
    assert count_macs(Gated(4, 3), {"x": r(2, 4)}, {"gate": 0.5}).dense == 24
    packed = rnn.pack_sequence([r(3, 4), r(2, 4)])
    assert count_macs(nn.LSTM(4, 3), packed, {"hx": None}).dense == count_macs(nn.LSTM(4, 3), packed).dense
