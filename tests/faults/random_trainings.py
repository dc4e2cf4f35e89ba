"""Random small trainings: architecture, dtype, loss, hyper-parameters, for property tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from hypothesis import strategies as st

import tfkfac

BATCH, OUTPUTS = 6, 3

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "gelu", "softplus")
POLICIES = ("float32", "float32", "float64", "mixed_bfloat16", "mixed_float16")
LOSSES = {
    "mse": lambda reduction: keras.losses.MeanSquaredError(reduction=reduction),
    "sparse": lambda reduction: keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    ),
    "categorical": lambda reduction: keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1, reduction=reduction
    ),
    "binary": lambda reduction: keras.losses.BinaryCrossentropy(
        from_logits=True, reduction=reduction
    ),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """One of them.

    Attributes:
        kind: Of the inputs.
        layers: Between inputs and outputs: the name of a class and its arguments.
        policy: Of dtypes.
        loss: A key of `LOSSES`.
        reduction: Of the loss.
        arguments: Of KFAC.
        scale: Of the inputs.
        mode: What `compile` is given.
        seed: Of weights and data.
    """

    kind: str
    layers: tuple[tuple[str, dict[str, Any]], ...]
    policy: str
    loss: str
    reduction: str
    arguments: dict[str, Any]
    scale: float
    mode: str
    seed: int

    @property
    def is_noisy(self) -> bool:
        """Whether two passes over a batch differ."""
        return any(name == "Dropout" for name, _ in self.layers)

    def compiled(self) -> keras.Model:
        keras.utils.set_random_seed(self.seed)
        keras.config.set_dtype_policy(self.policy)
        try:
            model = keras.Sequential(
                [keras.Input(SHAPES[self.kind], dtype="int32" if self.kind == "tokens" else None)]
            )
            for name, arguments in self.layers:
                model.add(getattr(keras.layers, name)(**arguments))
            model.add(keras.layers.Flatten())
            model.add(keras.layers.Dense(OUTPUTS, name="outputs"))
            optimizer = tfkfac.KFAC(seed=self.seed, **self.arguments)
            how = {"eager": {"run_eagerly": True}, "jit": {"jit_compile": True}, "graph": {}}
            model.compile(optimizer, LOSSES[self.loss](self.reduction), **how[self.mode])
        finally:
            keras.config.set_dtype_policy("float32")
        return model

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, number])
        shape = (BATCH, *SHAPES[self.kind])
        if self.kind == "tokens":
            x = rng.integers(7, size=shape)
        else:
            x = (self.scale * rng.normal(size=shape)).astype("float32")
        labels = rng.integers(OUTPUTS, size=BATCH)
        targets = {
            "mse": rng.normal(size=(BATCH, OUTPUTS)),
            "sparse": labels,
            "categorical": np.eye(OUTPUTS)[labels],
            "binary": rng.integers(2, size=(BATCH, OUTPUTS)),
        }
        return x, targets[self.loss]


SHAPES = {"vector": (5,), "image": (6, 6, 2), "series": (4, 3), "tokens": (4,)}

_units = st.integers(1, 6)
_activation = st.sampled_from(ACTIVATIONS)
_flag = st.booleans()


def _layer(name: str, **arguments: Any) -> st.SearchStrategy:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


_ANYWHERE = [
    _layer("Dense", units=_units, activation=_activation, use_bias=_flag),
    _layer("BatchNormalization", scale=_flag),
    _layer("LayerNormalization", center=_flag),
    _layer("Dropout", rate=st.just(0.3), seed=st.just(0)),
    _layer("Activation", activation=_activation),
]
_IMAGES = [
    _layer(
        "Conv2D",
        filters=_units,
        kernel_size=st.integers(1, 3),
        strides=st.integers(1, 2),
        padding=st.just("same"),
        activation=_activation,
        use_bias=_flag,
    ),
    _layer("DepthwiseConv2D", kernel_size=st.just(2), padding=st.just("same"), use_bias=_flag),
    _layer("MaxPooling2D", padding=st.just("same")),
]
_SERIES = [
    _layer("LSTM", units=_units, return_sequences=st.just(True)),
    _layer("GRU", units=_units, return_sequences=st.just(True), reset_after=_flag),
    _layer("SimpleRNN", units=_units, return_sequences=st.just(True)),
    _layer("Conv1D", filters=_units, kernel_size=st.just(2), padding=st.just("same")),
]
_LAYERS = {
    "vector": st.lists(st.one_of(_ANYWHERE), max_size=3),
    "image": st.lists(st.one_of(_IMAGES + _ANYWHERE), max_size=3),
    "series": st.lists(st.one_of(_SERIES + _ANYWHERE), max_size=2),
    "tokens": st.tuples(
        _layer("Embedding", input_dim=st.just(7), output_dim=_units, mask_zero=_flag)
    ).flatmap(
        lambda first: st.lists(st.one_of(_SERIES[:3] + _ANYWHERE), max_size=2).map(
            lambda rest: [*first, *rest]
        )
    ),
}


def _scheduled(low: float, high: float) -> st.SearchStrategy:
    number = st.floats(np.log(low), np.log(high)).map(lambda e: float(np.exp(e)))
    return st.one_of(
        number,
        number.map(lambda n: keras.optimizers.schedules.ExponentialDecay(n, 2, 0.9)),
    )


_ARGUMENTS = st.fixed_dictionaries(
    {
        "learning_rate": st.one_of(st.just("auto"), _scheduled(1e-3, 1.0)),
        "damping": st.one_of(st.just("auto"), _scheduled(1e-6, 1e2)),
        "momentum": st.one_of(st.just("auto"), st.just(0.0), st.just(0.0), st.just(0.9)),
        "method": st.sampled_from(["cholesky", "eigen", "ekfac"]),
        "fisher": st.sampled_from(["mc", "exact", "empirical"]),
        "kl_clip": st.sampled_from(["auto", None, 1e-3]),
        "factor_decay": st.sampled_from([0.0, 0.5, 0.95]),
        "factor_update_every": st.integers(1, 3),
        "inverse_update_every": st.integers(1, 3),
        "recurrent": st.sampled_from(["independent", "lggm_symmetric", "lggm_limit"]),
    },
    optional={
        "clipnorm": st.just(0.1),
        "weight_decay": st.just(1e-3),
        "use_ema": st.just(True),
        "gradient_accumulation_steps": st.just(2),
        "burn_in": st.just(2),
        "max_factor_size": st.just(4),
    },
)


def trainings(modes: tuple[str, ...] = ("eager",)) -> st.SearchStrategy:
    """Of all kinds."""
    return st.sampled_from(sorted(SHAPES)).flatmap(
        lambda kind: st.builds(
            Training,
            kind=st.just(kind),
            layers=_LAYERS[kind].map(tuple),
            policy=st.sampled_from(POLICIES),
            loss=st.sampled_from(sorted(LOSSES)),
            reduction=st.sampled_from(["sum_over_batch_size", "sum"]),
            arguments=_ARGUMENTS,
            scale=st.sampled_from([1e-4, 1.0, 1.0, 1e3]),
            mode=st.sampled_from(modes),
            seed=st.integers(0, 99),
        )
    )
