"""Errors that no other test reads."""

from __future__ import annotations

import subprocess
import sys

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from steps import attached, train

import tfkfac
from tfkfac.blocks.block import Kept
from tfkfac.blocks.rows import RowsByExample
from tfkfac.builders.embedding import reversible_embedding
from tfkfac.distribution.workers import Alone
from tfkfac.registry import NotCoveredError, require_plain_variables


def test_another_backend_is_refused() -> None:
    code = "import keras; keras.config.backend = lambda: 'torch'; import tfkfac"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Keras runs on 'torch'; set the environment variable KERAS_BACKEND" in done.stderr


def test_averages_of_another_worker() -> None:
    block = tfkfac.LayerCollection.scan(models.sequential())["hidden"]
    block.build(lambda **_: None, lambda: 0.1, Kept(averages=False, inverse=False))
    with pytest.raises(ValueError, match=r"'hidden' are kept by another worker.*placement_summary"):
        block.averages()


def test_no_dense_form_without_curvature() -> None:
    collection = tfkfac.LayerCollection.scan(models.sequential(), skip=["hidden"])
    with pytest.raises(ValueError, match=r"hidden.*keeps no curvature, so it has no dense form"):
        collection["hidden"].to_dense()


def test_the_monitor_looks_at_kronecker_blocks_only() -> None:
    model = keras.Sequential(
        [
            keras.Input((models.FEATURES,)),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(models.CLASSES, name="logits"),
        ]
    )
    model.compile(models.kfac(), models.crossentropy())
    monitor = tfkfac.callbacks.CurvatureMonitor(layers=["norm"])
    with pytest.raises(ValueError, match=r"'norm' has no Kronecker block.*logits"):
        model.fit(*models.vectors(), verbose=0, callbacks=[monitor])


def test_exact_fisher_of_outputs_of_unknown_shape() -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile(tfkfac.KFAC(fisher="exact", damping=1.0, learning_rate=0.1), "mse")

    def pieces() -> object:
        for length in (4, 5):
            yield np.ones([2, length, 3], "float32"), np.ones([2, length, 2], "float32")

    with pytest.raises(ValueError, match=r"needs outputs of a known shape.*use fisher='mc'"):
        model.fit(pieces(), verbose=0)


def test_no_second_derivatives() -> None:
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 3, padding="same"),
            keras.layers.Lambda(lambda x: ops.image.resize(x, (6, 6), interpolation="bicubic")),
            keras.layers.Flatten(),
            keras.layers.Dense(models.CLASSES),
        ]
    )
    model.compile(tfkfac.KFAC(), models.crossentropy(), run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 1))
    with pytest.raises(ValueError, match=r"second derivatives.*KFAC\(learning_rate=0\.1"):
        model.fit(x, np.zeros(4), verbose=0)


def test_a_layer_whose_statistics_overflow_again_and_again_is_named() -> None:
    """Its units are dead, so that gradients are fine."""
    model = keras.Sequential(
        [
            keras.Input((models.FEATURES,)),
            keras.layers.Dense(5, activation="relu", kernel_initializer=minus_one, name="dead"),
            keras.layers.Dense(models.CLASSES, name="logits"),
        ]
    )
    model.compile(
        tfkfac.KFAC(factor_update_every=1, max_consecutive_failures=4), models.crossentropy()
    )
    x, y = models.vectors()
    with pytest.raises(
        FloatingPointError, match=r"statistics of layer 'dead' could not be had . times in a row"
    ):
        model.fit(1e25 * np.abs(x), y, epochs=3, batch_size=8, verbose=0, steps_per_epoch=6)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_any_number_of_failures_is_allowed() -> None:
    model = attached(models.kfac(max_consecutive_failures=None))
    x, y = models.vectors()
    for _ in range(12):
        model.train_on_batch(x * np.nan, y)
    model.optimizer.raise_if_failing()
    assert model.optimizer.counts()["skipped"] == 12


def test_loops_of_ones_own_ask() -> None:
    model = attached(models.kfac(max_consecutive_failures=3))
    x, y = models.vectors()
    train(model, 2)
    for _ in range(3):
        model.optimizer.raise_if_failing()
        model.train_on_batch(x * np.nan, y)
    with pytest.raises(FloatingPointError, match=r"last 3 steps were skipped.*hidden/kernel"):
        model.optimizer.raise_if_failing()
    train(model, 1)
    model.optimizer.raise_if_failing()


@keras.saving.register_keras_serializable(package="tests")
class Breaks(keras.optimizers.schedules.LearningRateSchedule):
    """A number in the first steps, then none."""

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.cast(step, tf.int64) < 2, 0.1, np.nan)

    def get_config(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("learning_rate", "steps were skipped.*schedules, whose numbers must be finite"),
        ("momentum", "steps were skipped.*schedules"),
        ("kl_clip", "steps were skipped.*schedules"),
        ("damping", "inverse of layer 'hidden' could not be had"),
        ("factor_decay", "statistics of layer 'hidden' could not be had"),
    ],
)
def test_a_schedule_that_is_no_number_is_told(name: str, words: str) -> None:
    model = attached(
        models.kfac(max_consecutive_failures=3, inverse_update_every=1, **{name: Breaks()})
    )
    train(model, 6)
    variables = [*model.variables, *model.optimizer.variables]
    assert all(np.isfinite(variable.numpy()).all() for variable in variables)
    with pytest.raises(FloatingPointError, match=words):
        model.optimizer.raise_if_failing()


def test_nothing_is_counted_before_training() -> None:
    assert set(attached(models.kfac()).optimizer.counts().values()) == {0.0}


def test_a_layer_outside_of_what_is_recorded() -> None:
    model = attached(models.kfac())
    hidden, logits = model.layers
    x, y = models.vectors()
    with tf.GradientTape() as tape:
        seen = hidden(x)
        with model.optimizer.record() as record:
            loss = record.loss(models.crossentropy(), y, logits(seen))
    gradients = tape.gradient(loss, model.trainable_variables)
    with pytest.raises(ValueError, match=r"'hidden' was not seen in the forward pass.*skip="):
        model.optimizer.apply(gradients, model.trainable_variables)


class NoRows(tfkfac.blocks.DenseBlock):
    """A family of layers whose author has left something out."""

    input_rows = RowsByExample.input_rows


def test_a_block_that_lacks_what_ekfac_needs() -> None:
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    with pytest.raises(NotImplementedError, match="NoRows has no rows of its inputs"):
        NoRows(layer, layer.kernel, layer.bias).input_rows(tf.zeros([1, 3]))


def test_an_inverse_without_bases() -> None:
    """Of an author's own kind of inverse, as a method needs that measures eigenvalues."""
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    block = tfkfac.blocks.DenseBlock(layer, layer.kernel, layer.bias)
    with pytest.raises(NotImplementedError, match="CholeskyInverse has no bases"):
        block.inverse.bases()


def test_workers_that_keep_all_alike_have_no_owners() -> None:
    with pytest.raises(NotImplementedError, match="Alone keep everything alike"):
        Alone().to_owners([], [])


def test_a_layer_that_was_not_built() -> None:
    with pytest.raises(NotCoveredError, match="not built"):
        require_plain_variables(keras.layers.Dense(2))


class Scaled(keras.layers.LayerNormalization):
    """What the builder knows of it is frozen; something else trains."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes one weight more."""
        super().build(input_shape)
        self.gamma.trainable = self.beta.trainable = False
        self.more = self.add_weight(shape=(), name="more")


def test_a_layer_of_which_only_unknown_weights_train() -> None:
    model = keras.Sequential([keras.Input((3,)), Scaled(name="odd"), keras.layers.Dense(2)])
    assert tfkfac.LayerCollection.scan(model)["odd"].reason == "nothing to train"


def test_embeddings_that_are_frozen() -> None:
    reversible = getattr(keras.layers, "ReversibleEmbedding", None)
    if reversible is None:
        pytest.skip("this Keras has no ReversibleEmbedding")
    layer = reversible(6, 4, tie_weights=False)
    layer.build()
    layer.embeddings.trainable = layer.reverse_embeddings.trainable = False
    with pytest.raises(NotCoveredError, match="its embeddings are frozen"):
        reversible_embedding(layer)


def test_what_was_switched_off_cannot_be_assigned() -> None:
    optimizer = tfkfac.KFAC(kl_clip=None)
    with pytest.raises(ValueError, match=r"with kl_clip=None, which switches it off for good"):
        optimizer.kl_clip = 0.1


def test_a_gradient_that_bursts_is_left_out_until_it_stays() -> None:
    """An accident is; what goes on is not."""
    model = keras.Sequential([keras.Input((models.FEATURES,)), keras.layers.Dense(2)])
    model.compile(tfkfac.KFAC(learning_rate=1e-3, damping=1.0, kl_clip=None), "mse")
    x = models.vectors()[0]
    y = np.ones([len(x), 2], "float32")
    for _ in range(3):
        model.train_on_batch(x, y)
    before = model.get_weights()
    skipped = []
    for _ in range(5):
        model.train_on_batch(x, 1e10 * y)
        skipped.append(model.optimizer.counts()["skipped"])
    assert skipped[:2] == [1, 2]
    assert skipped[-1] == skipped[-2] < 5
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert np.abs(model.get_weights()[0] - before[0]).max() > 0


def minus_one(shape: tuple[int, ...], dtype: object = None) -> object:
    return -ops.ones(shape, dtype=dtype)
