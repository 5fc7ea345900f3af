"""Networks of Ultralytics: made smaller, saved, loaded into a fresh one from its YAML, and used on there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import secateur as sc
from networks.packages import imported
from networks.zoo import Unavailable
from secateur.graph.compare import difference
from secateur.running import run_once

PICTURE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def yolo(tmp_path, monkeypatch) -> Any:
    """Ultralytics' own class; what it writes of itself goes to the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    try:
        imported("torchvision")  # which it imports when it first sorts boxes
        return imported("ultralytics.models.yolo").YOLO
    except Unavailable as error:
        pytest.skip(str(error))


def boxes(model: Any) -> torch.Tensor:
    """All that it finds in a picture, however unlikely: of random weights nothing is likely."""
    return model.predict(PICTURE, imgsz=64, conf=0.0, verbose=False)[0].boxes.data


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo12n"])
def test_a_smaller_network_is_saved_loaded_and_predicts(yolo, name, tmp_path):
    torch.manual_seed(0)
    whole, x = yolo(f"{name}.yaml"), torch.randn(1, 3, 64, 64)
    model = whole.model.eval()
    structure = sc.trace(model, x)
    sc.prune(model, sc.L2Norm(), sc.Uniform(0.3), structure=structure)
    small, proof = sc.compact(model, x, structure=structure)
    assert proof.parameters[1] < 0.65 * proof.parameters[0]
    sc.save(small, tmp_path / "small.safetensors")
    again = yolo(f"{name}.yaml")
    sc.load(again.model, tmp_path / "small.safetensors")
    assert sum(p.numel() for p in again.model.parameters()) == proof.parameters[1]
    assert difference(run_once(small, x), run_once(again.model.eval(), x)) == 0
    found = boxes(again)
    assert len(found)
    whole.model = small
    assert torch.equal(found, boxes(whole))
    assert sum(p.numel() for p in again.model.parameters()) == proof.parameters[1]
