"""The experiments of K-FAC's papers, as far as they fit a desk: a file each.

``python -m benchmarks.reproduce --help``
"""
