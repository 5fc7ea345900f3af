"""What a network costs: size, multiply-adds, latency and memory, counted or measured."""
