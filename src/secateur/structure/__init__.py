"""Coupled channels: which neurons, filters, heads can only go together, and their physical removal."""
