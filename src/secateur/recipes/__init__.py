"""The recipes of the package: one YAML file for each experiment."""
