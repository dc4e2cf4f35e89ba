"""Which block each Keras layer gets, a file for each layer family.

Importing this package registers them all.
"""

from tfkfac.builders import (
    convolutions,
    dense,
    einsum,
    embedding,
    normalization,
    recurrent,
)

__all__ = ["convolutions", "dense", "einsum", "embedding", "normalization", "recurrent"]
