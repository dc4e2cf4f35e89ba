"""Micro-batches: an update of several small batches is that of the one large batch."""

from __future__ import annotations

from typing import Any

import keras
import models
import numpy as np
import pytest

import tfkfac

layers = keras.layers


def _convolutional() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(models.IMAGE),
            layers.Conv2D(3, 2, activation="tanh"),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(models.CLASSES),
        ]
    )


def _recurrent() -> keras.Model:
    tokens = keras.Input((4,), dtype="int32")
    hidden = layers.Embedding(6, 3, mask_zero=True)(tokens)
    hidden = layers.LSTM(4, return_sequences=True)(hidden)
    return keras.Model(tokens, layers.Dense(models.CLASSES)(hidden))


def _tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 6, size=(count, 4))
    return tokens, rng.integers(models.CLASSES, size=(count, 4))


CASES = {
    "dense": (models.sequential, models.vectors, {}),
    "images": (_convolutional, models.images, {}),
    "LSTM": (_recurrent, _tokens, {}),
    "lags": (_recurrent, _tokens, {"recurrent": "lggm_limit"}),
    "eigen": (models.sequential, models.vectors, {"method": "eigen"}),
    "ekfac": (models.sequential, models.vectors, {"method": "ekfac", "inverse_update_every": 4}),
    "clipped": (models.sequential, models.vectors, {"kl_clip": 1e-4, "clipnorm": 0.3}),
    "decayed": (models.sequential, models.vectors, {"weight_decay": 0.1, "momentum": 0.9}),
    "averaged": (
        models.sequential,
        models.vectors,
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    ),
    "rare": (
        models.sequential,
        models.vectors,
        {"factor_update_every": 3, "inverse_update_every": 4, "burn_in": 2},
    ),
}


def _trained(case: str, batch: int, steps: int | None, *, updates: int = 5, **how: Any) -> Any:
    factory, data, arguments = CASES[case]
    x, y = data(24 * updates)
    keras.utils.set_random_seed(0)
    model = factory()
    optimizer = models.kfac(**arguments, gradient_accumulation_steps=steps)
    model.compile(optimizer, models.crossentropy(**how.pop("loss", {})), **how)
    model.fit(x, y, batch_size=batch, epochs=1, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize("case", CASES)
def test_four_micro_batches_are_one_batch(case: str) -> None:
    """Fixed hyper-parameters, no batch statistics: to 1e-5."""
    whole, parts = _trained(case, 24, None), _trained(case, 6, 4)
    assert int(parts.optimizer.iterations) == int(whole.optimizer.iterations) == 5
    for ours, expected in zip(parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    blocks = (model.optimizer.layer_collection.kronecker_blocks for model in (parts, whole))
    for ours, expected in zip(*blocks, strict=True):
        for key, factor in ours.factors.items():
            np.testing.assert_allclose(factor, expected.factors[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"jit_compile": True}, id="compiled", marks=pytest.mark.slow),
        pytest.param({"loss": {"reduction": "sum"}}, id="sum"),
    ],
)
def test_in_every_mode(how: dict[str, Any]) -> None:
    whole, parts = (_trained("dense", n, k, **how) for n, k in ((24, None), (6, 4)))
    for ours, expected in zip(parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_what_adapts_looks_at_the_last_micro_batch() -> None:
    """If all micro-batches are the same, so is the update."""
    x, y = models.vectors(8)

    def trained(copies: int, steps: int | None) -> list[np.ndarray]:
        keras.utils.set_random_seed(0)
        model = models.sequential()
        optimizer = tfkfac.KFAC(
            momentum="auto", fisher="exact", seed=0, gradient_accumulation_steps=steps
        )
        model.compile(optimizer, models.crossentropy())
        x_all, y_all = np.concatenate([x] * copies), np.concatenate([y] * copies)
        model.fit(x_all, y_all, batch_size=8, epochs=1, shuffle=False, verbose=0)
        assert int(optimizer.iterations) == 6
        return model.get_weights()

    for ours, expected in zip(trained(18, 3), trained(6, None), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_nothing_moves_before_the_last_micro_batch() -> None:
    x, y = models.vectors(6)
    model = models.sequential()
    model.compile(models.kfac(gradient_accumulation_steps=3), models.crossentropy())
    before = model.get_weights()
    for _ in range(2):
        model.train_on_batch(x, y)
        for ours, expected in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, expected)
    model.train_on_batch(x, y)
    assert not np.allclose(model.get_weights()[0], before[0])
    assert all(not np.any(total.numpy()) for total in model.optimizer._accumulated_gradients)


def test_a_micro_batch_that_is_not_finite_skips_the_update_and_no_other() -> None:
    x, y = models.vectors(6)
    model = models.sequential()
    model.compile(models.kfac(gradient_accumulation_steps=2), models.crossentropy())
    before = model.get_weights()
    model.train_on_batch(np.full_like(x, np.nan), y)
    model.train_on_batch(x, y)
    for ours, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, expected)
    for _ in range(2):
        model.train_on_batch(x, y)
    assert not np.allclose(model.get_weights()[0], before[0])
    assert all(np.all(np.isfinite(each)) for each in model.get_weights())


def test_the_file_holds_what_was_gathered(tmp_path: Any) -> None:
    """Stopped between two micro-batches, and gone on."""
    x, y = models.vectors(36)

    def start() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = models.sequential()
        model.compile(models.kfac(gradient_accumulation_steps=3), models.crossentropy())
        return model

    whole = start()
    whole.fit(x, y, batch_size=6, shuffle=False, verbose=0)
    stopped = start()
    stopped.fit(x[:24], y[:24], batch_size=6, shuffle=False, verbose=0)
    stopped.save(tmp_path / "stopped.keras")
    loaded = keras.models.load_model(tmp_path / "stopped.keras")
    assert loaded.optimizer.get_config()["gradient_accumulation_steps"] == 3
    loaded.fit(x[24:], y[24:], batch_size=6, shuffle=False, verbose=0)
    for ours, expected in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)
