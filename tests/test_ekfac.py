"""``method="ekfac"``: against the exact Fisher, from refresh to refresh, and in training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference import add_variable, fill, ggn_of_variables, positive, relative_error

import tfkfac
from tfkfac.blocks import DenseBlock, KroneckerBlock, RecurrentBlock
from tfkfac.factors import EigenInverse, EigenvalueCorrectedInverse

double = pytest.mark.usefixtures("float64")

# --- the optimal diagonal ----------------------------------------------------------------------


def stack_of(*stack: Any, shape: tuple[int, ...]) -> keras.Model:
    model = keras.Sequential([keras.Input(shape), *stack, layers.Flatten(), layers.Dense(2)])
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(0.7 * rng.normal(size=variable.shape))
    return model


def siamese() -> keras.Model:
    """One layer, used twice by every example, and sequences of it."""
    inputs, shared = keras.Input((3, 4)), layers.Dense(2, "tanh", name="seen")
    both = layers.Concatenate()([shared(inputs), shared(layers.Lambda(lambda x: -(x**2))(inputs))])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(both)))


def masked() -> keras.Model:
    inputs = keras.Input((3, 4))
    hidden = layers.Dense(3, "tanh", name="seen")(layers.Masking()(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(hidden)))


def attention() -> keras.Model:
    inputs = keras.Input((3, 4))
    attended = layers.MultiHeadAttention(2, 3, name="seen")(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(attended)))


MODELS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "dense": (lambda: stack_of(layers.Dense(3, "tanh", name="seen"), shape=(4,)), (4,)),
    "sequences": (lambda: stack_of(layers.Dense(3, "tanh", name="seen"), shape=(3, 4)), (3, 4)),
    "masked": (masked, (3, 4)),
    "used-twice": (siamese, (3, 4)),
    "convolution": (
        lambda: stack_of(
            layers.Conv2D(2, 2, strides=(2, 1), activation="tanh", name="seen"), shape=(4, 3, 2)
        ),
        (4, 3, 2),
    ),
    "attention": (attention, (3, 4)),
    "lstm": (lambda: stack_of(layers.LSTM(2, name="seen"), shape=(3, 4)), (3, 4)),
}
every_model = pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS)


def measured_twice(
    model: keras.Model, x: Any, y: Any, weights: Any, **options: Any
) -> list[KroneckerBlock]:
    """The blocks of "seen" after a step with a refresh and one without; neither moves anything."""
    options = {"damping": 1e-3, "factor_update_every": 1, **options}
    optimizer = tfkfac.KFAC(0.0, factor_decay=0.0, method="ekfac", seed=0, **options)
    model.compile(optimizer, keras.losses.MeanSquaredError(), run_eagerly=True)
    model.train_on_batch(x, y, sample_weight=weights)
    for block in optimizer.layer_collection.curvature_blocks:
        block.keep = lambda fresh: None
    model.train_on_batch(x, y, sample_weight=weights)
    return [block for block in optimizer.layer_collection if "seen" in block.layers[0].path]


@double
@every_model
@pytest.mark.parametrize("weighted", [False, True])
def test_s_is_the_diagonal_of_the_exact_fisher_in_the_eigenbases(
    make: Any, shape: Any, weighted: bool
) -> None:
    """So no other diagonal is nearer to it, that of K-FAC least of all (George et al. 2018)."""
    rng = np.random.default_rng(1)
    model, x, y = make(), rng.normal(size=(5, *shape)), rng.normal(size=(5, 2))
    x[0, 1:] *= not isinstance(model.layers[1], layers.Masking)
    weights = np.array([0.5, 3.0, 0.0, 1.0, 2.0]) if weighted else None
    loss = keras.losses.MeanSquaredError()
    blocks = measured_twice(model, x, y, weights, fisher="exact")
    assert blocks and all(block.inverse.takes_examples for block in blocks)
    for block in blocks:
        fisher = ggn_of_variables(model, block.variables, x, y, loss, weights)
        assert np.abs(fisher).max() > 1e-4
        named = dict(zip(block.inverse.shapes(), block.inverse.kept(), strict=True))
        assert block.groups == 1 and named["weight"] == 1
        Q = np.kron(named["input_vectors"], named["output_vectors"])
        s = np.diag(Q.T @ fisher @ Q)
        assert relative_error(tf.reshape(named["scales"], [-1]), s) < 1e-10
        assert relative_error(block.to_dense(), Q @ np.diag(s) @ Q.T) < 1e-10
        A, G = block.factors["A"].numpy(), block.factors["G"].numpy()
        factored = np.linalg.norm(fisher - block.uses.numpy() * np.kron(A, G))
        assert np.linalg.norm(fisher - block.to_dense()) <= factored


@double
def test_sampled_targets_measure_the_same_on_average() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3000, 4)), rng.normal(size=(3000, 2))
    s = [
        measured_twice(stack_of(layers.Dense(3, "tanh", name="seen"), shape=(4,)), x, y, None, **o)
        for o in ({"fisher": "mc"}, {"fisher": "exact"})
    ]
    sampled, exact = (blocks[0].to_dense() for blocks in s)
    assert 1e-6 < relative_error(sampled, exact) < 0.1


# --- from refresh to refresh -------------------------------------------------------------------


def dense() -> DenseBlock:
    """A block whose s is square, as a factor is."""
    layer = layers.Dense(4, dtype="float64")
    layer.build((None, 3))
    return DenseBlock(layer, layer.kernel, layer.bias, method="ekfac")


def statistics(seed: int, **given: Any) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(seed)
    made = {"A": positive(rng, 4), "G": positive(rng, 4), "uses": np.float64(2.0)}
    made |= {"s": rng.uniform(size=(4, 4))} | given
    return {key: tf.constant(value) for key, value in made.items()}


def enter(block: DenseBlock, batch: dict[str, tf.Tensor], weight: float = 1.0) -> None:
    block.update(batch, tf.constant(0.9), tf.constant(weight))


def scales_of(block: DenseBlock) -> np.ndarray:
    inverse = block.inverse
    assert isinstance(inverse, EigenvalueCorrectedInverse)
    return inverse.eigenvalues(dict(zip(inverse.shapes(), inverse.kept(), strict=True))).numpy()


def filled(seed: int = 0) -> DenseBlock:
    batch = statistics(seed)
    return fill(dense(), batch["A"].numpy(), batch["G"].numpy(), 2.0)


def test_s_starts_from_the_factors_at_every_refresh_and_averages_in_between() -> None:
    block = filled()
    for first in (1, 3):
        block.refresh(tf.constant(0.1))
        d_A, d_G = (np.linalg.eigvalsh(block.factors[key]) for key in "AG")
        start = 2.0 * np.outer(d_A, d_G)
        assert relative_error(scales_of(block), start) < 1e-12
        one, two = statistics(first), statistics(first + 1)
        enter(block, one)
        enter(block, two, weight=0.5)
        expected = 0.9 * (0.9 * start + one["s"]) + 0.5 * two["s"]
        assert relative_error(scales_of(block), expected / (0.9 * 1.9 + 0.5)) < 1e-7


def test_nothing_is_measured_before_there_are_bases() -> None:
    block = filled()
    enter(block, statistics(1))
    assert np.array_equal(scales_of(block), np.ones((4, 4)))
    gradients = [tf.random.normal(v.shape, dtype="float64") for v in block.variables]
    block._damping = lambda: tf.constant(1e-12, tf.float64)
    for direction, gradient in zip(block.precondition(gradients), gradients, strict=True):
        assert relative_error(direction, gradient) < 1e-11


@pytest.mark.parametrize("damping", [None, 0.0, 0.3])
def test_precondition_is_the_inverse_of_the_damped_block(damping: float | None) -> None:
    """``(Q diag(s) Qᵀ + λI)⁻¹``, with s and the bases as they stand, whatever λ."""
    block = filled()
    block.refresh(tf.constant(7.0))
    enter(block, statistics(1))
    inverse = block.inverse
    Q = np.kron(*(basis.numpy() for basis in inverse.bases()))
    matrix = Q @ np.diag(scales_of(block).reshape(-1)) @ Q.T
    assert relative_error(block.to_dense(), matrix) < 1e-12
    gradients = [tf.random.normal(v.shape, dtype="float64") for v in block.variables]
    found = block.to_matrix(block.precondition(gradients, damping=damping)).numpy()
    damped = matrix + (1.0 if damping is None else damping) * np.eye(16)
    expected = np.linalg.solve(damped, block.to_matrix(gradients).numpy().reshape(-1))
    assert relative_error(found.reshape(-1), expected) < 1e-10


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["A", "G", "s"])
def test_a_batch_that_is_not_finite_is_left_out(bad: float, key: str) -> None:
    block = filled()
    block.refresh(tf.constant(0.1))
    enter(block, statistics(1))
    before = [variable.numpy() for variable in block.inverse.variables]
    batch = statistics(2)
    where = 1 if key == "s" else 5  # of matrices that are positive definite the diagonal says all
    entry = tf.reshape(tf.one_hot(where, 16, on_value=bad, off_value=0.0, dtype="float64"), (4, 4))
    enter(block, batch | {key: batch[key] + entry})
    for variable, expected in zip(block.inverse.variables, before, strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_all_state_is_listed() -> None:
    made: list[Any] = []

    def note(**arguments: Any) -> Any:
        made.append(add_variable(**arguments))
        return made[-1]

    block = dense()
    block.build(note, lambda: tf.constant(0.1))
    assert [id(variable) for variable in block.state] == [id(variable) for variable in made]


# --- training ----------------------------------------------------------------------------------


def everything() -> tuple[keras.Model, np.ndarray]:
    """Tokens through most families of layers, of one place and of several."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, name="embedding")(tokens)
    x = layers.Conv1D(4, 3, padding="same", activation="tanh", groups=2)(x)
    x = layers.EinsumDense("abc,cd->abd", (6, 3), bias_axes="d", activation="tanh")(x)
    model = keras.Model(tokens, layers.Dense(models.CLASSES)(layers.GlobalAveragePooling1D()(x)))
    return model, np.random.default_rng(0).integers(9, size=(24, 6))


@functools.cache
def trained(**arguments: Any) -> list[np.ndarray]:
    """The weights after two epochs, in which inverses are renewed."""
    model, x = everything()
    optimizer = models.kfac(method="ekfac", inverse_update_every=3)
    model.compile(optimizer, models.crossentropy(), **arguments)
    model.fit(x, x[:, 0] % models.CLASSES, batch_size=8, shuffle=False, verbose=0, epochs=2)
    return model.get_weights()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="graph"),
        pytest.param({"jit_compile": True}, id="jit_compile", marks=pytest.mark.slow),
    ],
)
def test_update_does_not_depend_on_how_a_batch_is_presented(arguments: dict[str, Any]) -> None:
    before = everything()[0].get_weights()
    pairs = zip(trained(**arguments), trained(run_eagerly=True), before, strict=True)
    for ours, expected, untrained in pairs:
        np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=0)
        assert np.abs(expected - untrained).max() > 1e-4


def test_a_loaded_model_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, x = everything()
    y = x[:, 0] % models.CLASSES
    model.compile(models.kfac(method="ekfac", inverse_update_every=7), models.crossentropy())
    model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.method == "ekfac"
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    for ours, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_method_matters() -> None:
    """Guards the tests above against s that is never entered."""
    optimizers = [models.kfac(method=m, inverse_update_every=50) for m in ("ekfac", "eigen")]
    weights = []
    for optimizer in optimizers:
        model, x = everything()
        model.compile(optimizer, models.crossentropy())
        model.fit(x, x[:, 0] % models.CLASSES, batch_size=8, shuffle=False, verbose=0, epochs=2)
        weights.append(np.concatenate([weight.ravel() for weight in model.get_weights()]))
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


# --- who cannot tell examples apart ------------------------------------------------------------


class Scaled(KroneckerBlock):
    """A family that says nothing of its rows: ``s = a·K``."""

    def __init__(self, layer: Any, kernel: Any, **options: Any) -> None:
        super().__init__(layer, kernel, None, input_dim=4, output_dim=3, **options)

    def input_moment(self, inputs: tf.Tensor, weights: Any) -> tf.Tensor:
        return self.moment_of_rows(inputs, weights.omega, weights.total)

    def output_rows(self, gradients: tf.Tensor) -> tf.Tensor:
        return gradients

    kernel_to_matrix = matrix_to_kernel = output_rows


def test_families_without_rows_take_the_eigenvalues_of_the_factors() -> None:
    layer = layers.Dense(3, use_bias=False)
    layer.build((None, 4))
    block = Scaled(layer, layer.kernel, method="ekfac")
    assert type(block.inverse) is EigenInverse and block.without_examples
    assert not Scaled(layer, layer.kernel, method="eigen").without_examples


@pytest.mark.skipif(not hasattr(layers, "ReversibleEmbedding"), reason="not in this Keras")
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_say_so(tied: bool) -> None:
    words = layers.ReversibleEmbedding(9, 4, tie_weights=tied, name="words")
    tokens = keras.Input((5,), dtype="int32")
    model = keras.Model(tokens, words(layers.Dense(4)(words(tokens)), reverse=True))
    collection = tfkfac.LayerCollection.scan(model, method="ekfac")
    assert any(block.without_examples for block in collection) == tied
    lines: list[str] = []
    collection.summary(print_fn=lines.append)
    assert ('told apart, "eigen" for "ekfac": words' in lines[0]) == tied
    model.compile(models.kfac(method="ekfac"), models.crossentropy())
    x = np.random.default_rng(0).integers(9, size=(8, 5))
    losses = model.fit(x, x, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_chains_keep_their_own_inverse() -> None:
    model = stack_of(layers.GRU(3), shape=(4, 2))
    collection = tfkfac.LayerCollection.scan(model, method="ekfac", recurrent="lggm_limit")
    chains = [block for block in collection if isinstance(block, RecurrentBlock)]
    assert chains and not any(b.inverse.takes_examples or b.without_examples for b in chains)
