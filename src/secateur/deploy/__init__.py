"""Pruned networks outside training: packed files, ONNX, sparse layers, and programs that need no PyTorch."""
