"""A network's graph: captured, read and run; nothing here knows of pruning."""
