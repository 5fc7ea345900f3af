"""Recipes, trials and studies: what to run, one point with one seed, the whole sweep."""
