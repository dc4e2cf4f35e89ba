"""Which block each Keras layer gets, a file for each layer family.

Importing this package registers them all.
"""

from tfkfac.builders import convolutions, dense, embedding, normalization

__all__ = ["convolutions", "dense", "embedding", "normalization"]
