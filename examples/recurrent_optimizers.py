"""The optimizers that the examples of recurrent networks compare.

KFAC takes the steps of a sequence for independent, or models the correlation of neighbouring steps
in one of two ways (`recurrent=`); Adam and SGD have their gradients clipped.
"""

from collections.abc import Callable
from typing import Any

import keras

import tfkfac


def recurrent_optimizers(
    **options: Any,
) -> dict[str, Callable[[float, int], keras.optimizers.Optimizer]]:
    """Returns a name → a function of a learning rate and a seed.

    Args:
        **options: Further arguments of KFAC.
    """

    def kfac(recurrent: str) -> Callable[[float, int], keras.optimizers.Optimizer]:
        return lambda rate, seed: tfkfac.KFAC(
            rate,
            damping=1e-3,
            recurrent=recurrent,
            factor_update_every=5,
            inverse_update_every=20,
            seed=seed,
            **options,
        )

    return {
        "KFAC": kfac("independent"),
        "KFAC lggm_symmetric": kfac("lggm_symmetric"),
        "KFAC lggm_limit": kfac("lggm_limit"),
        "Adam": lambda rate, seed: keras.optimizers.Adam(rate, global_clipnorm=1.0),
        "SGD": lambda rate, seed: keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=1.0),
    }
