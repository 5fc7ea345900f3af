"""Which neurons, filters and heads can only go together, their physical removal, and its proof."""
