"""Training in half precision: as good as in single precision, with curvature that is the same."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import keras
import models
import numpy as np
import pytest
from sklearn.datasets import load_digits

import tfkfac

HALVES = ("mixed_bfloat16", "mixed_float16")


@pytest.fixture
def policy() -> Iterator[Callable[[str], None]]:
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def _trained(seed: int) -> float:
    """The logarithm of the loss of all digits after some epochs."""
    x, y = load_digits(return_X_y=True)
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10, dtype="float32"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tfkfac.KFAC(seed=seed), loss)
    model.fit(x / 16.0, y, batch_size=128, epochs=6, verbose=0)
    return float(np.log(model.evaluate(x / 16.0, y, verbose=0)))


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES)
def test_half_precision_trains_as_well(half: str, policy: Callable[[str], None]) -> None:
    """The means of five seeds differ by less than three standard errors."""
    found = {}
    for name in ("float32", half):
        policy(name)
        found[name] = np.array([_trained(seed) for seed in range(5)])
    single, mixed = found.values()
    error = np.sqrt(single.var(ddof=1) / 5 + mixed.var(ddof=1) / 5)
    assert abs(single.mean() - mixed.mean()) < 3 * error
    assert mixed.mean() < np.log(0.3)


def test_curvature_does_not_see_the_scale_of_the_loss() -> None:
    def trained(scaled: bool) -> tfkfac.KFAC:
        keras.utils.set_random_seed(0)
        model, inner = models.sequential(), models.kfac()
        scaling = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**12)
        model.compile(scaling if scaled else inner, models.crossentropy(), run_eagerly=True)
        model.fit(*models.vectors(), epochs=3, shuffle=False, verbose=0)
        return inner

    plain, scaled = trained(False), trained(True)
    for ours, expected in zip(scaled.layer_collection, plain.layer_collection, strict=True):
        for key, factor in expected.factors.items():
            np.testing.assert_allclose(np.tril(ours.factors[key]), np.tril(factor), atol=1e-6)


@pytest.mark.parametrize("kind", ["model.keras", "model.weights.h5"])
def test_files_have_everything_once(
    kind: str, tmp_path: pathlib.Path, policy: Callable[[str], None]
) -> None:
    sizes = {}
    for name in ("float32", *HALVES):
        policy(name)
        model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(150)])
        model.compile(tfkfac.KFAC(), "mse", run_eagerly=True)
        model.fit(np.ones([4, 200]), np.ones([4, 150]), verbose=0)
        (model.save if kind == "model.keras" else model.save_weights)(tmp_path / kind)
        sizes[name] = (tmp_path / kind).stat().st_size
    for half in HALVES:
        assert sizes[half] == pytest.approx(sizes["float32"], rel=0.02)


@pytest.mark.parametrize("kind", ["model.keras", "model.weights.h5"])
def test_half_precision_goes_on_from_a_file(
    kind: str, tmp_path: pathlib.Path, policy: Callable[[str], None]
) -> None:
    policy("mixed_float16")

    def made() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = models.sequential()
        model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
        return model

    def fit(model: keras.Model) -> keras.Model:
        model.fit(*models.vectors(), epochs=2, shuffle=False, verbose=0)
        return model

    model = fit(made())
    if kind == "model.keras":
        model.save(tmp_path / kind)
        again = keras.models.load_model(tmp_path / kind)
    else:
        model.save_weights(tmp_path / kind)
        again = made()
        again.load_weights(tmp_path / kind)
    for ours, expected in zip(
        [*fit(again).variables, *again.optimizer.variables],
        [*fit(model).variables, *model.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_array_equal(ours.numpy(), expected.numpy(), err_msg=expected.path)


def test_a_file_with_another_scaling_is_refused(policy: Callable[[str], None]) -> None:
    policy("mixed_float16")
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
    model.fit(*models.vectors(), verbose=0)
    store: dict[str, np.ndarray] = {}
    model.optimizer.save_own_variables(store)
    del store["3"]
    with pytest.raises(ValueError, match=r"LossScaleOptimizer in the file.*compile=False"):
        model.optimizer.load_own_variables(store)


@pytest.mark.parametrize(
    ("written", "read", "words"),
    [
        ("mixed_float16", "float32", r'trained under .*"mixed_float16".*Call that before'),
        ("float32", "mixed_float16", r"has no LossScaleOptimizer.*another dtype policy"),
    ],
)
def test_a_file_of_another_policy_says_so(
    written: str, read: str, words: str, tmp_path: pathlib.Path, policy: Callable[[str], None]
) -> None:
    policy(written)
    model = models.sequential()
    model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
    model.fit(*models.vectors(), verbose=0)
    model.save(tmp_path / "model.keras")
    policy(read)
    with pytest.raises(ValueError, match=words):
        keras.models.load_model(tmp_path / "model.keras")
    policy(written)
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.iterations.numpy() == 1


def test_overflows_in_a_row_are_told(policy: Callable[[str], None]) -> None:
    """What the scale cannot mend is not skipped for ever."""
    policy("mixed_float16")
    model = models.sequential()
    optimizer = models.kfac(max_consecutive_failures=5)
    model.compile(optimizer, models.crossentropy(), run_eagerly=True)
    x, y = models.vectors()
    with pytest.raises(FloatingPointError, match=r"last 6 steps were skipped.*hidden.*float16"):
        model.fit(x * np.nan, y, epochs=9, batch_size=8, steps_per_epoch=2, verbose=0)
