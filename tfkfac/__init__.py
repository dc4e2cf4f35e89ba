"""tfkfac: K-FAC, the natural-gradient optimizer, for Keras models on TensorFlow."""

import keras as _keras

if _keras.config.backend() != "tensorflow":
    raise ImportError(
        "tfkfac needs Keras on the TensorFlow backend, but Keras runs on "
        f"{_keras.config.backend()!r}; set the environment variable KERAS_BACKEND=tensorflow "
        "before Keras is imported."
    )

from tfkfac import courtesy as _courtesy
from tfkfac import losses
from tfkfac.layer_collection import LayerCollection, register
from tfkfac.optimizer import KFAC

_courtesy.install()

__version__ = "0.1.0"

__all__ = ["KFAC", "LayerCollection", "losses", "register"]
