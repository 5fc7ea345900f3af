"""Pruned networks outside training: files, programs and layers that run them."""
