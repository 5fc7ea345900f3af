"""A network's graph as a small program: what :mod:`secateur.runtime` runs without PyTorch."""
