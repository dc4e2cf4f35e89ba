"""Recurrent networks: KFAC with the forms of recurrent curvature, against Adam and SGD.

``python -m benchmarks.recurrent --help``
"""
