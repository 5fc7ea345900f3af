"""Targets, criteria, budgets, shrinkages, masks and schedules: what is pruned, and how much of it."""
