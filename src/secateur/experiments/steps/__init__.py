"""The steps of a recipe: what a step is (``base``), the table of kinds, and a file for each kind."""
