"""Recipes and what runs them: a trial is one point with one seed, a study the whole sweep."""
