"""Small trainings that must come out alike, however many workers share them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfkfac

UPDATES = 20
"""Of each training, at least."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        model: Makes the network.
        data: Makes inputs, labels and, if there are any, sample weights.
        loss: Makes the loss, or a list of them.
        arguments: Of KFAC.
        batch: Size of all batches but the last.
        loss_weights: As for `compile`.
    """

    model: Callable[[], keras.Model]
    data: Callable[[], tuple[Any, ...]]
    loss: Callable[[], Any]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch: int = 8
    loss_weights: list[float] | None = None

    def arrays(self) -> list[Any]:
        """The data, in the order of ``tf.data.Dataset.from_tensor_slices``."""
        return list(self.data())

    def compiled(self) -> keras.Model:
        """The model, ready to be trained; call it within the scope of a strategy."""
        keras.utils.set_random_seed(0)
        model = self.model()
        optimizer = tfkfac.KFAC(seed=1, **self.arguments)
        model.compile(
            optimizer=optimizer,
            loss=self.loss(),
            loss_weights=self.loss_weights,
            jit_compile=False,
        )
        return model

    def epochs(self, steps: int) -> int:
        """Enough for the updates.

        Args:
            steps: Batches in an epoch.
        """
        return -(-UPDATES * self.arguments.get("gradient_accumulation_steps", 1) // steps)


def weights_of(model: keras.Model) -> np.ndarray:
    """All trained weights in one vector."""
    return np.concatenate([np.ravel(v.numpy()) for v in model.trainable_variables])


def train(case: Case) -> tuple[np.ndarray, Any]:
    """Trains with `fit`, in the strategy whose scope this is called in.

    Returns:
        The weights at the end, and the optimizer.
    """
    model = case.compiled()
    data = tf.data.Dataset.from_tensor_slices(tuple(case.arrays())).batch(case.batch)
    model.fit(data, epochs=case.epochs(len(data)), verbose=0)
    return weights_of(model), model.optimizer


def _numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(keras.config.floatx())


def _classes(*shape: int, below: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, size=shape)


def _weights(*shape: int, seed: int = 2) -> np.ndarray:
    weights = np.random.default_rng(seed).uniform(size=shape)
    return np.where(weights < 0.3, 0.0, weights).astype(keras.config.floatx())


def _dense() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(7, activation="tanh", kernel_regularizer="l2"),
            keras.layers.Dense(4),
        ]
    )


def _examples(count: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (_numbers(count, 6), _classes(count))


def _weighted(count: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (_numbers(count, 6), _classes(count), _weights(count))


def _classify(**arguments: Any) -> Callable[[], Any]:
    return lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def _convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 3, activation="tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.DepthwiseConv2D(2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )


def _convolutional_alone() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 3, activation="tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )


def _sequences() -> tuple[Any, ...]:
    lengths = _classes(24, below=4)[:, None] + 1
    tokens = _classes(24, 5, below=6, seed=3) + 1
    return np.where(np.arange(5) < lengths, tokens, 0), _classes(24, 5)


def _recurrent() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 3, mask_zero=True),
            keras.layers.LSTM(4, return_sequences=True),
            keras.layers.Dense(4),
        ]
    )


def _attentive() -> keras.Model:
    tokens = keras.Input((5,), dtype="int32")
    embedded = keras.layers.Embedding(7, 4)(tokens)
    mixed = keras.layers.MultiHeadAttention(2, 3)(embedded, embedded)
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(mixed))
    return keras.Model(tokens, keras.layers.Dense(4)(pooled))


def _two_headed() -> keras.Model:
    tokens = keras.Input((5,), dtype="int32")
    masked = keras.layers.Embedding(7, 3, mask_zero=True)(tokens)
    states = keras.layers.GRU(4, return_sequences=True)(masked)
    labels = keras.layers.Dense(4)(states)
    number = keras.layers.Dense(1)(keras.layers.GRU(3)(states))
    return keras.Model(tokens, [labels, number])


def _two_targets() -> tuple[Any, ...]:
    tokens, labels = _sequences()
    return tokens, (labels, _numbers(24, 1))


_NUMBERS = {"learning_rate": 0.05, "momentum": 0.9, "damping": 1e-2}

_STEADY = {"damping": 0.1}
"""With "auto" these networks learn random labels by heart, and magnify rounding a millionfold."""
_CAREFUL = {"damping": tfkfac.LevenbergMarquardt(initial=10.0)}
"""With so much of it they do not."""
_BOTH = {"learning_rate": "auto", "momentum": "auto"}

CASES = {
    "automatic": Case(_dense, _examples(24), _classify()),
    "automatic-momentum": Case(_dense, _examples(24), _classify(), _BOTH),
    "numbers": Case(_dense, _examples(24), _classify(), _NUMBERS),
    "uneven": Case(_dense, _examples(27), _classify()),
    "one-example": Case(_dense, _examples(25), _classify()),
    "weights": Case(_dense, _weighted(27), _classify()),
    "mean-by-weights": Case(_dense, _weighted(27), _classify(reduction="mean_with_sample_weight")),
    "sum": Case(_dense, _examples(27), _classify(reduction="sum")),
    "clipnorm": Case(_dense, _examples(27), _classify(), {**_NUMBERS, "clipnorm": 0.05}),
    "global-clipnorm": Case(_dense, _examples(27), _classify(), {"global_clipnorm": 0.05}),
    "accumulation": Case(
        _dense, _examples(24), _classify(), {**_NUMBERS, "gradient_accumulation_steps": 3}
    ),
    "accumulation-exact": Case(
        _dense,
        _examples(24),
        _classify(),
        {**_NUMBERS, "gradient_accumulation_steps": 3, "fisher": "exact"},
    ),
    "accumulation-automatic": Case(
        _dense, _examples(27), _classify(), {"gradient_accumulation_steps": 2}
    ),
    "exact": Case(_dense, _examples(27), _classify(), {"fisher": "exact"}),
    "exact-numbers": Case(_dense, _examples(24), _classify(), {**_NUMBERS, "fisher": "exact"}),
    "empirical": Case(_dense, _examples(27), _classify(), {"fisher": "empirical"}),
    "eigen": Case(_dense, _examples(27), _classify(), {"method": "eigen"}),
    "ekfac": Case(_dense, _examples(27), _classify(), {"method": "ekfac"}),
    "averages-and-decay": Case(
        _dense,
        _examples(24),
        _classify(),
        {"use_ema": True, "ema_overwrite_frequency": 5, "weight_decay": 0.01},
    ),
    "convolutions": Case(
        # No worker of four is without examples: TensorFlow's gradient of a depthwise kernel is
        # whatever was in memory then.
        _convolutional,
        lambda: (_numbers(31, 6, 6, 2), _classes(31)),
        _classify(),
        _STEADY,
    ),
    "convolutions-one-example": Case(
        _convolutional_alone,
        lambda: (_numbers(25, 6, 6, 2), _classes(25)),
        _classify(),
        _STEADY,
    ),
    "masks": Case(_recurrent, _sequences, _classify(), _STEADY),
    "recurrent-automatic": Case(_recurrent, _sequences, _classify(), _CAREFUL),
    "chains": Case(_recurrent, _sequences, _classify(), {**_STEADY, "recurrent": "lggm_symmetric"}),
    "attention": Case(_attentive, lambda: (_sequences()[0], _classes(24)), _classify()),
    "two-losses": Case(
        _two_headed, _two_targets, lambda: [_classify()(), "mse"], _STEADY, loss_weights=[1.0, 0.3]
    ),
}
"""Name → training."""
