"""Statistics of the shares of a batch, pooled, are those of the batch, in double precision.

The shares have very different sizes, and draw their part of the batch's noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference import relative_error

import tfkfac
from tfkfac import pooling
from tfkfac.blocks import CurvatureBlock, DiagonalBlock
from tfkfac.blocks.use import UseWeights
from tfkfac.curvature import batch_statistics
from tfkfac.fisher import ESTIMATORS
from tfkfac.noise import PhiloxNoise
from tfkfac.observation import observe

pytestmark = pytest.mark.usefixtures("float64")

N, CUTS = 9, (0, 1, 6, 9)
T, FEATURES, CLASSES = 5, 4, 3
TOLERANCE = 1e-12
TRIANGLES = ("A", "G", "reverse_G")
"""Statistics of which only the lower triangle is specified, if they are matrices."""

Statistics = list[dict[str, np.ndarray]]
"""For each block: name of a statistic → value."""


# --- problems ----------------------------------------------------------------------------------


class Problem:
    """A model with a loss and a batch.

    Args:
        model: The model.
        loss: The loss.
        x: Inputs.
        y: Labels.
        weights: Sample weights, or None.
        options: Of the optimizer.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: keras.losses.Loss,
        x: np.ndarray,
        y: np.ndarray,
        weights: Any = None,
        **options: Any,
    ) -> None:
        self.model, self.loss, self.x, self.y, self.weights = model, loss, x, y, weights
        rng = np.random.default_rng(0)
        for variable in model.trainable_variables:
            variable.assign(0.7 * rng.normal(size=variable.shape))
        self.optimizer = tfkfac.KFAC(model=model, **options)
        self.optimizer.build(model.trainable_variables)

    @property
    def blocks(self) -> list[CurvatureBlock]:
        return list(self.optimizer.layer_collection.curvature_blocks)

    def statistics(self, start: int = 0, stop: int = N) -> list[tuple[CurvatureBlock, Any]]:
        """Of a share of the batch, as a step of the optimizer takes them."""
        part = slice(start, stop)
        weights = None if self.weights is None else self.weights[part]
        with self.optimizer.record() as record:
            outputs = self.model(self.x[part], training=True)
            record.loss(self.loss, tf.constant(self.y[part]), outputs, weights)
        return batch_statistics(
            self.blocks,
            record,
            [observe(call) for call in record.losses],
            ESTIMATORS[self.optimizer.fisher](64),
            PhiloxNoise(5, tf.constant(3), start),
            self.model.trainable_variables,
        )

    def pooled(self, cuts: Sequence[int] = CUTS) -> Statistics:
        """Of the whole batch, by way of its shares."""
        sums = {
            id(block): {
                key: tf.zeros(shape, block.dtype)
                for key, shape in pooling.contribution_shapes(block).items()
            }
            for block in self.blocks
        }
        for start, stop in itertools.pairwise(cuts):
            for block, statistics in self.statistics(start, stop):
                totals = sums[id(block)]
                added = pooling.contribution(block, statistics, tf.constant(stop - start))
                assert added.keys() == totals.keys()
                for key, value in added.items():
                    assert value.shape == totals[key].shape
                    totals[key] += value
        return specified(
            [(b, pooling.pooled(b, sums[id(b)], tf.constant(cuts[-1]))) for b in self.blocks]
        )


def specified(statistics: Sequence[tuple[CurvatureBlock, Any]]) -> Statistics:
    """What is specified of statistics, as arrays."""

    def array(key: str, value: tf.Tensor) -> np.ndarray:
        cut = key in TRIANGLES and value.shape.rank > 1
        return np.tril(value) if cut else np.asarray(value)

    return [{key: array(key, value) for key, value in of.items()} for _, of in statistics]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


def classes(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(CLASSES, size=shape)


def weights_of(*shape: int) -> np.ndarray:
    """Very different weights, zero among them."""
    weights = np.random.default_rng(3).uniform(0.0, 4.0, size=shape)
    weights.flat[1] = 0.0
    return weights


def padded() -> np.ndarray:
    """Sequences of all lengths; the first two are empty, so the first share is, too."""
    lengths = np.array([0, 0, 3, 5, 1, 2, 5, 4, 2])
    return numbers(N, T, FEATURES) * (np.arange(T) < lengths[:, None])[..., None]


def stacked(shape: tuple[int, ...], *stack: Any) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *stack])


def squared(**arguments: Any) -> keras.losses.Loss:
    return keras.losses.MeanSquaredError(**arguments)


def sparse(**arguments: Any) -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def dense(loss: Any = None, **options: Any) -> Problem:
    """Weights of examples, under a mean over the batch."""
    model = stacked((FEATURES,), layers.Dense(5, activation="tanh"), layers.Dense(CLASSES))
    arguments = {"weights": weights_of(N), **options}
    return Problem(model, loss or squared(), numbers(N, FEATURES), numbers(N, CLASSES), **arguments)


def masked_dense(**options: Any) -> Problem:
    """Weights of steps, under a sum."""
    model = stacked(
        (T, FEATURES),
        layers.Masking(),
        layers.Dense(5, activation="tanh"),
        layers.LayerNormalization(),
        layers.Dense(CLASSES),
    )
    loss, weights = sparse(reduction="sum"), weights_of(N, T)
    return Problem(model, loss, padded(), classes(N, T), weights, **options)


def convolutional(**options: Any) -> Problem:
    """Weights of examples; a kernel with shifted moments, one with patches, and groups."""
    model = stacked(
        (6, 6, 2),
        layers.Conv2D(4, 3, padding="same", activation="tanh"),
        layers.BatchNormalization(trainable=False),
        layers.Conv2D(4, 2, strides=2, groups=2, activation="tanh"),
        layers.Flatten(),
        layers.Dense(CLASSES),
    )
    bits = np.eye(CLASSES)[classes(N)]
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return Problem(model, loss, numbers(N, 6, 6, 2), bits, weights_of(N), **options)


def recurrent(form: str, layer: Any = layers.LSTM, **options: Any) -> Problem:
    """Sequences of all lengths, under a sum."""
    model = stacked(
        (T, FEATURES),
        layers.Masking(),
        layer(3, return_sequences=True),
        layers.Bidirectional(layer(2)),
        layers.Dense(CLASSES),
    )
    loss = sparse(reduction="sum")
    return Problem(model, loss, padded(), classes(N), weights_of(N), recurrent=form, **options)


def tied(**options: Any) -> Problem:
    """Tokens of which some are masked, look-ups and logits from one table."""
    if not hasattr(layers, "ReversibleEmbedding"):
        pytest.skip("this Keras has no ReversibleEmbedding")
    tokens = np.random.default_rng(4).integers(0, 6, size=(N, T))
    tokens[0, 1:3] = 0
    inputs = keras.Input((T,), dtype="int32")
    table = layers.ReversibleEmbedding(6, 4, mask_zero=True)
    hidden = layers.Dense(4, activation="tanh")(table(inputs))
    model = keras.Model(inputs, table(hidden, reverse=True))
    return Problem(model, sparse(reduction="sum"), tokens, tokens, weights_of(N, T), **options)


def siamese(**options: Any) -> Problem:
    """A layer that is used twice, on rows that are halves of examples, without weights."""
    inputs = keras.Input((FEATURES,))
    rows = layers.Reshape((2, FEATURES // 2))(inputs)
    shared = layers.Dense(3, activation="tanh")
    merged = layers.Concatenate()([layers.Flatten()(shared(rows)), shared(rows[:, 0])])
    model = keras.Model(inputs, layers.Dense(CLASSES)(merged))
    return Problem(model, sparse(), numbers(N, FEATURES), classes(N), **options)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "dense": dense,
    "masked dense": masked_dense,
    "convolutions": convolutional,
    "independent": lambda **o: recurrent("independent", **o),
    "symmetric": lambda **o: recurrent("lggm_symmetric", **o),
    "limit": lambda **o: recurrent("lggm_limit", **o),
    "limit, GRU": lambda **o: recurrent("lggm_limit", layers.GRU, **o),
    "tied embeddings": tied,
    "used twice": siamese,
}


# --- the claims --------------------------------------------------------------------------------


def assert_same(found: Statistics, expected: Statistics) -> None:
    """All statistics of all blocks."""
    for index, (values, wanted) in enumerate(zip(found, expected, strict=True)):
        assert values.keys() == wanted.keys()
        for key, value in wanted.items():
            assert np.abs(value).max() > 0, f"{key} of block {index} shows nothing"
            error = relative_error(values[key], value)
            assert error < TOLERANCE, f"{key} of block {index}: {error}"


@pytest.mark.parametrize("name", PROBLEMS)
def test_shares_pooled_are_the_batch(name: str) -> None:
    problem = PROBLEMS[name]()
    assert_same(problem.pooled(), specified(problem.statistics()))


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("name", ["masked dense", "limit"])
def test_whatever_the_estimator(name: str, fisher: str) -> None:
    problem = PROBLEMS[name](fisher=fisher)
    assert_same(problem.pooled(), specified(problem.statistics()))


def test_diagonal_factors() -> None:
    problem = convolutional(max_factor_size=3)
    assert problem.blocks[0].cut_to_diagonal == ["A", "G"]
    assert_same(problem.pooled(), specified(problem.statistics()))


@pytest.mark.parametrize("name", ["masked dense", "tied embeddings"])
def test_any_cut_will_do(name: str) -> None:
    """One share is the batch; so are as many as there are examples."""
    problem = PROBLEMS[name]()
    assert_same(problem.pooled((0, N)), specified(problem.statistics()))
    assert_same(problem.pooled(range(N + 1)), specified(problem.statistics()))


def test_accumulators_are_known_before_the_first_step() -> None:
    """From the model alone, for every statistic that an update of the averages takes."""
    for problem in (recurrent("lggm_limit"), tied()):
        for block in problem.blocks:
            shapes = pooling.contribution_shapes(block)
            assert shapes.keys() > block.factors.keys()
            zeros = {key: tf.zeros(shape, block.dtype) for key, shape in shapes.items()}
            nothing = pooling.pooled(block, zeros, tf.constant(0))
            assert all(not np.any(value) for value in nothing.values())
            assert block.update(nothing, tf.constant(0.0), tf.constant(1.0))


def test_what_is_not_finite_stays_so() -> None:
    """The averages leave the batch out, as they do if it is seen at once."""
    problem = dense()
    problem.x[4, 2] = np.inf
    ((block, statistics), *_) = problem.statistics()
    assert not np.isfinite(statistics["A"]).all()
    sums = pooling.contribution(block, statistics, tf.constant(N))
    values = pooling.pooled(block, sums, tf.constant(N))
    assert not block.update(values, tf.constant(0.0), tf.constant(1.0))


def test_each_share_has_the_normaliser_of_its_own_loss() -> None:
    """A weighted mean: what comes out is the curvature of the mean of the shares' losses."""
    problem = dense(squared(reduction="mean_with_sample_weight"))
    weights = np.concatenate(
        [
            problem.weights[start:stop] * (stop - start) / problem.weights[start:stop].sum()
            for start, stop in itertools.pairwise(CUTS)
        ]
    )
    expected = dense(squared(reduction="sum"), weights=weights)
    found = problem.pooled()
    assert_same(found, specified(expected.statistics()))
    whole = specified(problem.statistics())
    assert relative_error(found[0]["A"], whole[0]["A"]) > 0.01


def test_diagonals_pool_in_expectation() -> None:
    """The mean over all signs of the gradients of examples is that of their squares, both ways."""
    layer = layers.Dense(2, use_bias=False)
    layer.build((None, 2))
    block = DiagonalBlock([layer], [layer.kernel], "for the test")
    gradients = tf.constant(numbers(5, 2, 2))
    expected = {"F0": np.mean(np.square(gradients), axis=0).ravel()}
    for cuts in ((0, 5), (0, 1, 3, 5)):
        means = []
        for signs in itertools.product([-1.0, 1.0], repeat=5):
            sums: dict[str, Any] = {"F0": 0.0}
            for start, stop in itertools.pairwise(cuts):
                total = np.tensordot(signs[start:stop], gradients[start:stop], 1)
                count = tf.constant(stop - start)
                statistics = block.pass_statistics([], [tf.constant(total)], NO_WEIGHTS, count)
                sums["F0"] += pooling.contribution(block, statistics, count)["F0"]
            means.append(pooling.pooled(block, sums, tf.constant(5))["F0"])
        np.testing.assert_allclose(np.mean(means, axis=0), expected["F0"], rtol=TOLERANCE)


NO_WEIGHTS: list[UseWeights] = []
