"""Pruned networks outside training: files and kernels that run them."""
