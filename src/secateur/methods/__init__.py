"""Searches that prune and train by turns, and refitting; training comes in as the caller's functions."""
