"""Networks of torchvision, timm, Ultralytics, PyTorch Geometric and transformers, as these build them.

Each package is imported when one of its networks is built. Detectors return their boxes whatever the scores.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import hf
from .zoo import Arguments, Inputs, Network, Unavailable, floats

Build = Callable[[], nn.Module]
NETWORKS: list[Network] = []


def imported(module: str) -> Any:
    """Return a module of another package, or raise Unavailable."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError without its operators
        raise Unavailable(f"{module}: {str(error).strip().splitlines()[0]}") from error


def add(name: str, build: Build, inputs: Inputs) -> None:
    NETWORKS.append(Network(name, build, inputs))


# -- torchvision -----------------------------------------------------------------------------------


def images(*sizes: tuple[int, int]) -> Inputs:
    """A list of images of these sizes, as torchvision's detectors take them."""

    def draw() -> Arguments:
        return ([torch.rand(3, *size) for size in sizes],), {}

    return draw


def detector(name: str, **options: Any) -> Build:
    """One of torchvision's, fresh; every box is returned, whatever its score."""

    def build() -> nn.Module:
        found = getattr(imported("torchvision.models.detection"), name)
        return found(weights=None, weights_backbone=None, num_classes=5, **options)

    return build


_LOW = {"min_size": 96, "max_size": 128}
_BOXES = {**_LOW, "box_score_thresh": 0.0, "box_detections_per_img": 8, "rpn_post_nms_top_n_test": 16}
_SCORES = {"score_thresh": 0.0, "detections_per_img": 8}
_PAIR = images((96, 96), (80, 112))
add("tv_ssdlite", detector("ssdlite320_mobilenet_v3_large", **_SCORES), images((320, 320)))
add("tv_ssd", detector("ssd300_vgg16", **_SCORES), images((300, 300)))
add("tv_retinanet", detector("retinanet_resnet50_fpn", **_LOW, **_SCORES), _PAIR)
add("tv_fcos", detector("fcos_resnet50_fpn", **_LOW, **_SCORES), _PAIR)
add("tv_faster_rcnn", detector("fasterrcnn_mobilenet_v3_large_320_fpn", **_BOXES), _PAIR)
add("tv_mask_rcnn", detector("maskrcnn_resnet50_fpn", **_BOXES), _PAIR)
add("tv_keypoint_rcnn", detector("keypointrcnn_resnet50_fpn", **_BOXES), _PAIR)


def vision(name: str, **options: Any) -> Build:
    return lambda: getattr(imported("torchvision.models"), name)(weights=None, num_classes=10, **options)


add("tv_resnet50", vision("resnet50"), floats((2, 3, 64, 64)))
add("tv_swin_t", vision("swin_t"), floats((1, 3, 64, 64)))
add("tv_swin_v2_t", vision("swin_v2_t"), floats((1, 3, 64, 64)))
add("tv_vit_b_16", vision("vit_b_16", image_size=64), floats((1, 3, 64, 64)))
add("tv_maxvit_t", vision("maxvit_t", input_size=(224, 224)), floats((1, 3, 224, 224)))
add("tv_googlenet", vision("googlenet", aux_logits=False, init_weights=False), floats((2, 3, 64, 64)))
add("tv_densenet201", vision("densenet201"), floats((1, 3, 64, 64)))


# -- transformers ----------------------------------------------------------------------------------


def _detr(kind: str, **options: Any) -> Build:
    """A DETR with a small ResNet of transformers before it."""

    def build() -> nn.Module:
        transformers = imported("transformers")
        backbone = transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage2", "stage3", "stage4"] if kind == "DeformableDetr" else ["stage4"],
        )  # fmt: skip
        config = getattr(transformers, f"{kind}Config")(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=56, decoder_ffn_dim=72, num_queries=10, num_labels=5,
            **options,
        )  # fmt: skip
        return getattr(transformers, f"{kind}ForObjectDetection")(config)

    return build


_PIXELS = hf.given(pixel_values=hf.normal(1, 3, 128, 128))
add("hf_detr", _detr("Detr"), _PIXELS)
add("hf_conditional_detr", _detr("ConditionalDetr"), _PIXELS)
add("hf_deformable_detr", _detr("DeformableDetr", disable_custom_kernels=True), _PIXELS)


# -- timm ------------------------------------------------------------------------------------------


def timm(name: str, **options: Any) -> Build:
    return lambda: imported("timm").create_model(name, num_classes=10, **options)


for _name, _options in (
    ("beit_base_patch16_224", {"img_size": 64}),
    ("swin_tiny_patch4_window7_224", {"img_size": 112}),
    ("nf_resnet50", {}),
    ("resnetv2_50x1_bit", {}),
    ("convnextv2_tiny", {}),
    ("efficientnet_b0", {}),
    ("maxvit_nano_rw_256", {"img_size": 64}),
    ("coat_lite_tiny", {"img_size": 64}),
):
    _side = _options.get("img_size", 64)
    add(f"timm_{_name}", timm(_name, **_options), floats((1, 3, _side, _side)))


# -- Ultralytics -----------------------------------------------------------------------------------


def yolo(name: str, task: str = "DetectionModel") -> Build:
    """A network of Ultralytics fresh from its YAML."""
    return lambda: getattr(imported("ultralytics.nn.tasks"), task)(f"{name}.yaml", verbose=False)


for _name in ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n"):
    add(f"ul_{_name}", yolo(_name), floats((1, 3, 64, 64)))
add("ul_yolov8n-seg", yolo("yolov8n-seg", "SegmentationModel"), floats((1, 3, 64, 64)))
add("ul_yolo11n-pose", yolo("yolo11n-pose", "PoseModel"), floats((1, 3, 64, 64)))


# -- PyTorch Geometric -----------------------------------------------------------------------------


def graphs(nodes: int = 20, edges: int = 60, features: int = 12) -> Inputs:
    def draw() -> Arguments:
        return (torch.randn(nodes, features), torch.randint(nodes, (2, edges))), {}

    return draw


def geometric(name: str, **options: Any) -> Build:
    return lambda: getattr(imported("torch_geometric.nn"), name)(12, 32, 3, 5, **options)


for _name in ("GCN", "GraphSAGE", "GIN", "GAT", "PNA", "EdgeCNN"):
    _degrees = (
        {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.ones(9, dtype=torch.long)}
        if _name == "PNA"
        else {}
    )
    add(f"pyg_{_name.lower()}", geometric(_name, **_degrees), graphs())
