"""The networks that tests and benchmarks share, by idea, and how they are drawn, trained and compared."""
