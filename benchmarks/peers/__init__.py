"""KFAC against kfac-jax, kfac-pytorch and Keras' own optimizers: same network, weights, batches.

``python -m benchmarks.peers --help``
"""
