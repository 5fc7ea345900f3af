"""A ViT of timm at half of its multiply-adds: saved, loaded into ``timm.create_model``, and used on.

Needs timm (which needs torchvision). The weights are random, for nothing is downloaded: give
``timm.create_model`` ``pretrained=True`` for those that are not, and train on afterwards.
"""

import sys

try:
    import timm
except ImportError:
    sys.exit("this example needs timm: pip install timm")
import torch

import secateur as sc

NAME, OPTIONS = "vit_tiny_patch16_224", {"img_size": 64, "num_classes": 10, "depth": 4}

torch.manual_seed(0)
model = timm.create_model(NAME, **OPTIONS).eval()
images = torch.randn(2, 3, 64, 64)

small, proof = sc.prune_to(model, images, macs=0.5)
print(f"{proof.macs[0]:,} -> {proof.macs[1]:,} MACs, equal to the masked network to {proof.max_error:.0e}")

sc.save(small, "vit_half.safetensors")
again = sc.load(timm.create_model(NAME, **OPTIONS).eval(), "vit_half.safetensors")
with torch.no_grad():
    print("loaded, the same:", torch.equal(again(images), small(images)))
    maps = again.forward_intermediates(images, intermediates_only=True)
print("features of the first and the last block:", tuple(maps[0].shape), tuple(maps[-1].shape))

again.reset_classifier(7)
print("a new classifier:", tuple(again(images).shape))
