import threading
import time

import pytest
import torch
from torch import nn

from secateur.copying import copied
from secateur.errors import ModelError
from secateur.measure.latency import time_inference
from secateur.measure.macs import count_macs
from secateur.measure.memory import measure_average_memory, measure_peak_memory
from secateur.measure.size import bytes_dense, bytes_sparse, count_nonzero, tensor_bytes_sparse
from secateur.measure.summary import profile


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.Flatten(), nn.Linear(3 * 4, 5))


def test_macs_by_hand():
    # conv: 9 -> 4 pixels a side, 3 outputs x (2 x 3 x 3) inputs each; linear: 5 x 12... of a batch of 2
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.Flatten(), nn.Linear(3 * 16, 5))
    macs = count_macs(net, torch.zeros(2, 2, 9, 9))
    assert macs.layers == {"0": 2 * 16 * 3 * 18, "2": 2 * 48 * 5}
    assert macs.dense == macs.effective == sum(macs.layers.values())


def test_effective_macs_skip_zero_weights():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[:3] = 0
    macs = count_macs(net, torch.zeros(1, 4))
    assert (macs.dense, macs.effective) == (24 + 12, 12 + 12)


def test_attention_products_count():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    macs = count_macs(layer, torch.zeros(1, 5, 8))
    projections = 5 * (8 * 24 + 8 * 8 + 8 * 16 + 16 * 8)
    assert macs.dense == projections + 2 * 5 * 5 * 8


def test_modes_and_weights_are_left_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    profile(net, torch.randn(3, 4), seconds=0.01)
    assert [m.training for m in net] == [True, False, True]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_sparse_bytes_take_the_smallest_form():
    dense = torch.ones(10, 100)
    assert tensor_bytes_sparse(dense) == 4000
    half = dense.clone()
    half[:, ::2] = 0
    assert tensor_bytes_sparse(half) == 500 * 4 + 125  # a bit an entry
    few = torch.zeros(10, 100)
    few[:, 0] = 1
    assert tensor_bytes_sparse(few) == 10 * (4 + 2) + 4 * 11  # by rows, two bytes a column index
    assert tensor_bytes_sparse(torch.zeros(50)) == 200  # a bias stays dense


def test_bytes_count_buffers_and_shared_parameters_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    net.append(net[0])
    assert bytes_dense(net) == 4 * (16 + 4 + 4 + 4 + 4) + 8
    assert bytes_sparse(net) == bytes_dense(net)
    assert count_nonzero(net) == 16 + 4  # the norm's bias is zero


def test_latency_of_two_networks_is_interleaved_and_restores_threads():
    before = torch.get_num_threads()
    nets = {"small": nn.Linear(4, 4), "large": nn.Sequential(*[nn.Linear(512, 512) for _ in range(4)])}
    with pytest.raises(ModelError, match=r"Sequential does not run on example inputs \(1, 4\) of float32"):
        time_inference(nets, torch.zeros(1, 4))
    assert torch.get_num_threads() == before
    both = time_inference(
        {"a": nets["large"], "b": nets["large"]}, torch.zeros(1, 512), seconds=0.05, threads=1
    )
    assert both["a"].runs == both["b"].runs >= 5
    assert both["a"].threads == 1
    assert 0 < both["a"].low <= both["a"].median <= both["a"].high
    assert torch.get_num_threads() == before


def test_peak_memory_is_weights_plus_what_one_pass_adds():
    class Wide(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

        def forward(self, x):
            return self.down(self.up(x))

    net = Wide(1000)
    weights = bytes_dense(net)
    activations = 4096 * 1000 * 4
    peak = measure_peak_memory(net, torch.zeros(4096, 8))
    assert peak is not None
    assert weights + activations * 0.95 <= peak <= weights + activations * 1.5
    few = measure_peak_memory(net, torch.zeros(1, 8))
    assert few is not None
    assert few <= weights + 1e6


def test_average_memory_counts_tensors_for_as_long_as_they_live():
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(10))

        def forward(self, x):
            long = x + 1  # 4 MB, and as much again for the second half
            _wait(0.1)
            both = torch.cat([long.flatten(), self.weight])
            _wait(0.1)
            return both.sum() + long.view(-1)[0]  # a view takes no memory

    def _wait(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    x = torch.zeros(1000, 1000)
    assert measure_average_memory(Slow(), x) == pytest.approx(40 + 6e6, rel=0.15)


def test_profile_rows_and_text():
    net = small_net()
    with torch.no_grad():
        net[2].weight.zero_()
    found = profile(net, torch.zeros(1, 2, 6, 6), dense=small_net(), seconds=0.02)
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["2.weight"].sparsity == 1.0
    assert by_name["0.weight"].macs == 4 * 3 * 18
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.nonzero == found.parameters - 60
    assert found.latency_dense_ms is not None
    text = repr(found)
    assert "2.weight" in text
    assert "100.00%" in text


def test_wrong_inputs_are_one_clear_error():
    with pytest.raises(ModelError, match=r"Linear does not run on example inputs \(1, 7\) of float32: "):
        profile(nn.Linear(4, 2), torch.zeros(1, 7))


def test_a_lazy_network_is_told_to_run_first():
    with pytest.raises(ModelError, match="LazyLinear has lazy parameters; run it once"):
        profile(nn.LazyLinear(3), torch.zeros(1, 4))


def test_what_cannot_be_copied_is_one_clear_error():
    net = nn.Linear(4, 2)
    net.lock = threading.Lock()
    for measure in (
        count_macs,
        profile,
        measure_peak_memory,
        measure_average_memory,
        lambda m, x: time_inference({"m": m}, x),
    ):
        with pytest.raises(ModelError, match=r"Linear cannot be copied: cannot pickle '_thread.lock'"):
            measure(net, torch.zeros(1, 4))


@pytest.mark.parametrize("measure", [count_macs, profile, measure_peak_memory, measure_average_memory])
def test_inputs_that_a_forward_writes_into_stay(measure):
    x = -torch.ones(2, 4)
    measure(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), x)
    assert torch.equal(x, -torch.ones(2, 4))


def test_results_with_a_history_are_copied_wherever_a_module_keeps_them():
    class Box:
        pass

    net = nn.Linear(4, 2)
    net.box, net.outputs, net.last = Box(), [], {}
    net.box.value = net(torch.ones(1, 4))
    net.outputs.append(net.box.value * 2)
    net.last["key"] = (net.box.value,)
    made = copied(net)
    assert torch.equal(made.box.value, net.box.value)
    assert made.last["key"][0] is made.box.value  # shared as before
    assert made.outputs[0].is_leaf
    assert net.outputs[0].requires_grad


def test_nothing_that_inference_mode_made_is_left_in_a_cache_for_training():
    cache = {}

    class Net(nn.Module):
        def forward(self, x):
            if x.shape not in cache:
                cache[x.shape] = torch.arange(x.shape[1]) * 1.0
            return x * cache[x.shape]

    time_inference({"net": Net()}, torch.ones(2, 3), seconds=0.01)
    assert not any(tensor.is_inference() for tensor in cache.values())


def test_functions_that_close_over_the_network_are_copied_with_it():
    net, seen = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 2)}), []
    net["a"].register_forward_hook(lambda module, inputs, output: seen.append(output))
    last = net["b"]

    def head(x):
        return last(x)

    net.forward = lambda x, scale=2.0: head(net["a"](x).relu()) * scale
    made = copied(net)
    with torch.no_grad():
        made["b"].bias.add_(1)
        assert torch.allclose(made(torch.ones(2, 3)), net(torch.ones(2, 3)) + 2)
    assert len(seen) == 1  # the copy's hook fills a list of its own
    assert made.forward.__defaults__ == (2.0,)


def test_an_empty_cell_of_a_closure_is_copied_as_it_is():
    net = small_net()

    def forward(x):
        return later(x)

    net[0].extra = forward
    copied(net)

    def later(x):
        return x

    assert net[0].extra(1) == 1
