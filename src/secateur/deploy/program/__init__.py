"""A network's graph as a small program: what ``secateur.runtime`` runs without PyTorch."""
