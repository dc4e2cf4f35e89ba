"""Bad input is a ValueError that names the argument, the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import tfkfac


def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tfkfac.KFAC(max_factor_size="8"), r"`max_factor_size` must be an integer.*'8'"),
        (lambda: tfkfac.KFAC(max_factor_size=True), r"`max_factor_size` must be an integer.*True"),
        (lambda: tfkfac.KFAC(max_exact_outputs=0), r"`max_exact_outputs` must be an integer >= 1"),
        (lambda: tfkfac.KFAC(max_exact_outputs="q"), r"`max_exact_outputs` must be.*'q'"),
        (lambda: tfkfac.KFAC(skip=5), r"`skip` must be a sequence of regular expressions, got 5"),
        (lambda: tfkfac.KFAC(skip=("(",)), r"`skip`: '\(' is no regular expression.*re\.escape"),
        (lambda: tfkfac.KFAC(seed="a"), r"`seed` must be an integer.*'a'"),
        (lambda: tfkfac.KFAC(model=3), r"`model` must be a keras\.Model, got 3"),
        (lambda: tfkfac.KFAC(recurrent=3), r"`recurrent` must be one of 'independent'"),
        (lambda: tfkfac.LayerCollection.scan(3), r"`model` must be a keras\.Model, got 3"),
        (
            lambda: tfkfac.LayerCollection.scan(model(), skip="dense"),
            r"`skip` must be a sequence.*write skip=\('dense',\)",
        ),
        (
            lambda: tfkfac.LayerCollection.scan(model(), max_factor_size=-3),
            r"`max_factor_size` must be an integer >= 1",
        ),
        (lambda: tfkfac.LayerCollection.scan(model(), method="x"), r"`method` must be one of"),
        (lambda: tfkfac.register(3), r"`layer_class` must be a class derived from.*got 3"),
        (lambda: tfkfac.register("x"), r"`layer_class` must be a class derived from.*got 'x'"),
    ],
)
def test_bad_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_builder_that_returns_no_block() -> None:
    class Mine(keras.layers.Dense):
        """A layer of the user's."""

    tfkfac.register(Mine)(lambda layer, **options: None)
    scanned = keras.Sequential([keras.Input((3,)), Mine(2, name="mine")])
    with pytest.raises(ValueError, match=r"registered for Mine returned None for layer 'mine'"):
        tfkfac.LayerCollection.scan(scanned)


@pytest.fixture(name="registry")
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    known = dict(tfkfac.losses._DISTRIBUTIONS)
    monkeypatch.setattr(tfkfac.losses, "_DISTRIBUTIONS", known)


@pytest.mark.usefixtures("registry")
def test_a_distribution_that_is_none() -> None:
    def own_loss(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    tfkfac.losses.register(own_loss, lambda y_pred: y_pred)
    trained = model()
    trained.compile(tfkfac.KFAC(), own_loss)
    with pytest.raises(ValueError, match=r"must be a function from y_pred to a tfp"):
        trained.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)


@pytest.mark.usefixtures("registry")
def test_a_loss_class_registered_once_is_known_by_all_its_names() -> None:
    import tensorflow_probability as tfp

    def poisson(y_pred: Any) -> Any:
        return tfp.distributions.Poisson(rate=keras.ops.exp(y_pred))

    tfkfac.losses.register(keras.losses.Poisson, poisson)
    for loss in ("poisson", "Poisson", keras.losses.Poisson(), keras.losses.poisson):
        model().compile(tfkfac.KFAC(), loss)


def test_the_summary_says_what_was_too_large() -> None:
    lines: list[str] = []
    scanned = tfkfac.LayerCollection.scan(model(), max_factor_size=3)
    scanned.summary(print_fn=lines.append)
    assert "Larger than max_factor_size, only the diagonal is kept: dense (A)" in lines[0]
