"""Size, multiply-adds, latency and memory of a network, measured."""
