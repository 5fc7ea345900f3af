"""Algorithms that are more than a criterion; training comes in as the caller's functions."""
