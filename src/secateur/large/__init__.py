"""Checkpoints that need not fit into memory: folders in, folders out."""
