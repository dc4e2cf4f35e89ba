"""KFAC without arguments against tuned first-order optimizers, on ten problems with real data.

``python -m benchmarks.zoo --help``
"""
