"""tfkfac: K-FAC, the natural-gradient optimizer, for Keras models on TensorFlow."""

import keras as _keras

if _keras.config.backend() != "tensorflow":
    raise ImportError(
        "tfkfac needs Keras on the TensorFlow backend, but Keras runs on "
        f"{_keras.config.backend()!r}; set the environment variable KERAS_BACKEND=tensorflow "
        "before Keras is imported."
    )

from tfkfac import blocks, callbacks, losses
from tfkfac import builders as _builders  # noqa: F401  (registers the Keras layers)
from tfkfac import courtesy as _courtesy
from tfkfac.damping import LevenbergMarquardt
from tfkfac.fisher_product import fisher_vector_product
from tfkfac.layer_collection import LayerCollection
from tfkfac.optimizer import KFAC
from tfkfac.registry import register

_courtesy.install()

__version__ = "0.1.0"

__all__ = [
    "KFAC",
    "LayerCollection",
    "LevenbergMarquardt",
    "blocks",
    "callbacks",
    "fisher_vector_product",
    "losses",
    "register",
]
