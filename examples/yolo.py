"""YOLO11 at 30 % fewer channels: saved, loaded into a fresh one, trained on, and exported to ONNX.

Needs ultralytics. The weights are random, and one image is the data set: name your own file in ``data=``.
Ultralytics' trainer builds a model anew from its YAML, at full size: ``Small`` hands it the smaller one.
"""

import sys
from copy import deepcopy
from pathlib import Path

try:
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer
except ImportError:
    sys.exit("this example needs ultralytics: pip install ultralytics")
import numpy as np
import torch
from PIL import Image

import secateur as sc


class Small(DetectionTrainer):
    def get_model(self, cfg=None, weights=None, verbose=True):
        return deepcopy(yolo.model)


for folder in ("data/images", "data/labels"):
    Path(folder).mkdir(parents=True, exist_ok=True)
picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
Image.fromarray(picture).save("data/images/0.jpg")
Path("data/labels/0.txt").write_text("0 0.5 0.5 0.4 0.4\n")
Path("data.yaml").write_text(
    f"path: {Path('data').resolve()}\ntrain: images\nval: images\nnames: {{0: thing}}\n"
)

model, images = YOLO("yolo11n.yaml").model.eval(), torch.randn(1, 3, 64, 64)
structure = sc.trace(model, images)
sc.prune(model, sc.L2Norm(), sc.Uniform(0.3), structure=structure)
small, proof = sc.compact(model, images, structure=structure)
sc.save(small, "small.safetensors")
print(f"{proof.parameters[0]:,} -> {proof.parameters[1]:,} parameters")

yolo = YOLO("yolo11n.yaml")
sc.load(yolo.model, "small.safetensors")
options = {
    "workers": 0,
    "device": "cpu",
    "plots": False,
    "verbose": False,
    "project": str(Path("runs").resolve()),
}
yolo.train(trainer=Small, data="data.yaml", epochs=1, imgsz=64, batch=1, **options)
print(f"trained: {sum(p.numel() for p in yolo.model.parameters()):,} parameters")
print("boxes in the picture:", len(yolo.predict(picture, imgsz=64, verbose=False)[0].boxes))
print("exported:", Path(yolo.export(format="onnx", imgsz=64, simplify=False)).name)
