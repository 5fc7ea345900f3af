"""Networks of timm: made smaller, saved, loaded into ``timm.create_model``, and used on as timm uses them."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from networks.packages import imported
from networks.zoo import Unavailable
from secateur.graph.compare import difference
from secateur.running import run_once

try:  # it imports torchvision, which beside another torch is there and does not load
    timm = imported("timm")
    FeatureGetterNet = imported("timm.models._features").FeatureGetterNet
except Unavailable as error:
    pytest.skip(str(error), allow_module_level=True)

SIZES = {
    "resnet18": 64,
    "mobilenetv3_small_100": 64,
    "efficientnet_b0": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "regnetx_002": 64,
    "densenet121": 64,
    "mixer_s32_224": 224,
    "maxvit_rmlp_pico_rw_256": 256,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_smaller_network_is_saved_loaded_and_used_on(name, tmp_path):
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=10).eval(), torch.randn(2, 3, SIZES[name], SIZES[name])
    structure = sc.trace(model, x)
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.5), structure=structure)
    small, proof = sc.compact(model, x, structure=structure)
    assert proof.parameters[1] < 0.7 * proof.parameters[0]
    sc.save(small, tmp_path / "small.safetensors")
    again = sc.load(timm.create_model(name, num_classes=10).eval(), tmp_path / "small.safetensors")
    assert difference(run_once(small, x), run_once(again, x)) == 0
    assert again.pretrained_cfg == model.pretrained_cfg
    with torch.no_grad():
        assert again.forward_head(again.forward_features(x)).shape == (2, 10)
        got = again.forward_intermediates(x, intermediates_only=True)
        widths = [row["num_chs"] for row in again.feature_info]
        assert [part.shape[1] for part in got] == widths
        again.reset_classifier(7)
        assert again(x).shape == (2, 7)
        features = FeatureGetterNet(again)  # it takes what it does not need out of the network
        assert [part.shape[1] for part in features(x)] == features.feature_info.channels()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_100"])
def test_a_network_of_features_alone_too(name, tmp_path):
    torch.manual_seed(0)
    make = lambda: timm.create_model(name, features_only=True).eval()  # noqa: E731
    x = torch.randn(2, 3, 64, 64)
    small, _ = sc.prune_to(make(), x, parameters=0.7)
    sc.save(small, tmp_path / "small.safetensors")
    again = sc.load(make(), tmp_path / "small.safetensors")
    assert [part.shape[1] for part in again(x)] == again.feature_info.channels()
    assert difference(run_once(small, x), run_once(again, x)) == 0
