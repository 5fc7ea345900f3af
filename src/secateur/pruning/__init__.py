"""What is zeroed, how much of it, and held: targets, criteria, budgets, shrinkages, schedules, masks."""
