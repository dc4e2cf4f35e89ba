"""What may go wrong with numbers, one case each: a training that meets the fault and goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

FEATURES, CLASSES, SIZE = 6, 3, 8

Batch = tuple[Any, ...]
"""Inputs, targets and, it may be, weights of examples."""

TRAINS, SKIPPED, KEPT = "trains", "step skipped", "last good curvature kept"
"""What may happen in a step."""


def classified(size: int = SIZE, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, FEATURES)).astype("float32"), rng.integers(CLASSES, size=size)


def measured(size: int = SIZE, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, FEATURES)).astype("float32")
    return x, x[:, :CLASSES] + 0.1 * rng.normal(size=(size, CLASSES)).astype("float32")


def sentences(size: int = SIZE, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 7, size=(size, 5)), rng.integers(CLASSES, size=size)


def perceptron(**of_hidden: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="relu", name="hidden", **of_hidden),
            keras.layers.Dense(CLASSES, name="out"),
        ]
    )


def normalised() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, use_bias=False, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Activation("relu"),
            keras.layers.Dense(CLASSES, name="out"),
        ]
    )


def recurrent() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 4, mask_zero=True, name="embedding"),
            keras.layers.LSTM(6, name="lstm"),
            keras.layers.Dense(CLASSES, name="out"),
        ]
    )


def dead() -> keras.Model:
    return perceptron(bias_initializer=keras.initializers.Constant(-1e3))


def all_zero() -> keras.Model:
    model = perceptron()
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    return model


def steep() -> keras.Model:
    """In float16 its outputs are zero; what is sampled around them overflows on the way back."""
    large = keras.initializers.Constant(6e4)
    return keras.Sequential(
        [
            keras.Input((FEATURES,), dtype="float32"),
            keras.layers.Rescaling(1e-12, dtype="float32"),
            keras.layers.Dense(64, name="hidden"),
            keras.layers.Dense(CLASSES, kernel_initializer=large, name="out"),
        ]
    )


def with_first(value: float, of: Callable[..., Batch], at: int = 0) -> Batch:
    """A batch with one number replaced: of the inputs (``at=0``) or of the targets (1)."""
    parts = [np.array(part) for part in of()]
    parts[at].flat[0] = value
    return tuple(parts)


def with_features(change: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Batch:
    x, y = classified(seed=seed)
    return change(x).astype("float32"), y


@dataclasses.dataclass(frozen=True)
class Fault:
    """One of them.

    Attributes:
        name: A row of the table.
        faulty: The batch.
        must: What may happen to steps with it.
        model: Makes the model.
        usual: The batches before and after.
        loss: Of the model; by default one that fits `usual`.
        policy: Of dtypes.
        arguments: Of KFAC.
    """

    name: str
    faulty: Callable[[], Batch]
    must: Sequence[str] = (TRAINS,)
    model: Callable[[], keras.Model] = perceptron
    usual: Callable[..., Batch] = classified
    loss: Any = None
    policy: str = "float32"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def compiled_loss(self) -> Any:
        if self.loss or self.usual is measured:
            return self.loss or "mse"
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def constant_column(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, :-1], np.ones_like(x[:, :1])], axis=1)


FIXED = {"learning_rate": 0.05, "damping": 0.1, "kl_clip": None, "momentum": 0.5}
"""Nothing that bounds a step by itself."""

FAULTS = [
    Fault("NaN in the inputs", lambda: with_first(np.nan, classified), (SKIPPED,)),
    Fault("infinity in the inputs", lambda: with_first(np.inf, classified), (SKIPPED,)),
    Fault(
        "NaN in the targets", lambda: with_first(np.nan, measured, 1), (SKIPPED,), usual=measured
    ),
    Fault(
        "NaN in the weights of the examples",
        lambda: (*classified(), np.where(np.arange(SIZE) == 0, np.nan, 1.0)),
        (SKIPPED,),
    ),
    Fault(
        "NaN with BatchNormalization",
        lambda: with_first(np.nan, classified),
        (SKIPPED,),
        model=normalised,
    ),
    Fault("a loss of 1e30", lambda: with_first(1e15, measured, 1), (SKIPPED,), usual=measured),
    Fault(
        "a loss of 1e30, fixed learning rate, no clip",
        lambda: with_first(1e15, measured, 1),
        (SKIPPED,),
        usual=measured,
        arguments=FIXED,
    ),
    Fault("an input of 1e15", lambda: with_first(1e15, measured), (SKIPPED,), usual=measured),
    Fault(
        "an input of 1e25, whose square overflows",
        lambda: with_first(1e25, classified),
        (SKIPPED, KEPT),
    ),
    Fault(
        "inputs of 1e30 with BatchNormalization",
        lambda: with_features(lambda x: 1e30 * x),
        (SKIPPED,),
        model=normalised,
    ),
    Fault(
        "NaN in all micro-batches, BatchNormalization",
        lambda: with_first(np.nan, classified),
        (SKIPPED,),
        model=normalised,
        arguments={"gradient_accumulation_steps": 2},
    ),
    Fault("features that are all zero", lambda: with_features(np.zeros_like)),
    Fault("a constant feature", lambda: with_features(constant_column)),
    Fault("duplicate columns", lambda: with_features(lambda x: np.repeat(x[:, :3], 2, axis=1))),
    Fault(
        "factors of rank one", lambda: tuple(np.repeat(part[:1], SIZE, 0) for part in classified())
    ),
    Fault(
        "features from 1e-15 to 1: a condition of 1e30",
        lambda: with_features(lambda x: x * np.logspace(-15, 0, FEATURES)),
    ),
    Fault(
        "the same, hardly damped",
        lambda: with_features(lambda x: x * np.logspace(-15, 0, FEATURES)),
        (TRAINS, KEPT),
        arguments=FIXED | {"damping": 1e-30, "learning_rate": 1e-3, "inverse_update_every": 1},
    ),
    Fault(
        "features from 1e-15 to 1, eigenvectors",
        lambda: with_features(lambda x: x * np.logspace(-15, 0, FEATURES)),
        arguments={"method": "ekfac"},
    ),
    Fault("dead ReLUs", classified, model=dead),
    Fault("weights that are all zero", classified, model=all_zero),
    Fault("examples that all weigh nothing", lambda: (*classified(), np.zeros(SIZE, "float32"))),
    Fault("a batch of one", lambda: classified(1)),
    Fault("a batch of one with BatchNormalization", lambda: classified(1), model=normalised),
    Fault("an empty batch", lambda: classified(0), (TRAINS, SKIPPED, KEPT)),
    Fault(
        "sequences that are all masked",
        lambda: (np.zeros([SIZE, 5], int), sentences()[1]),
        model=recurrent,
        usual=sentences,
    ),
    Fault(
        "float16: sampled gradients overflow",
        lambda: (classified()[0], np.zeros([SIZE, CLASSES])),
        (KEPT,),
        model=steep,
        usual=lambda seed=0: (classified(seed=seed)[0], np.zeros([SIZE, CLASSES])),
        loss="mse",
        policy="mixed_float16",
    ),
    Fault(
        "float16: NaN in the inputs, BatchNormalization",
        lambda: with_first(np.nan, classified),
        (SKIPPED,),
        model=normalised,
        policy="mixed_float16",
    ),
]

MODES = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
    "2 replicas": {},
}
"""Name → what `compile` is given."""
