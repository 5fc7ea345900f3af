"""One YAML file for each experiment."""
