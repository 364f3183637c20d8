"""The benchmarks of tools/bench: one module for each figure, or family of figures."""
