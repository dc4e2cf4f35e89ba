"""Benchmarks of tfkfac; each module runs by itself (``python -m benchmarks.step_cost --help``)."""
