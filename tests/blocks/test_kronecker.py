"""Preconditioning against the dense inverse of the damped block, and invariance without damping."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from convolutions import Case, Convolution
from reference import add_variable, damped_block, dense_block, fill, positive, relative_error

from tfkfac.blocks import DenseBlock, KroneckerBlock, Use
from tfkfac.blocks.use import UseWeights
from tfkfac.factors import METHODS

methods = pytest.mark.parametrize("method", METHODS)
of_factors_alone = pytest.mark.parametrize("method", ["cholesky", "eigen"])


def dense(
    inputs: int,
    outputs: int,
    *,
    bias: bool = True,
    method: str = "cholesky",
    dtype: str = "float64",
) -> DenseBlock:
    layer = keras.layers.Dense(outputs, use_bias=bias, dtype=dtype, name="layer")
    layer.build((None, inputs))
    return DenseBlock(layer, layer.kernel, layer.bias, method=method)


def conv(*, groups: int = 1, bias: bool = True, method: str = "cholesky") -> KroneckerBlock:
    geometry = Convolution((2, 1), groups=groups)
    return Case(geometry, channels=2 * groups, filters=3 * groups, bias=bias).block(method)


BLOCKS = {
    "dense": lambda method: dense(4, 3, method=method),
    "dense-no-bias": lambda method: dense(4, 3, bias=False, method=method),
    "conv": lambda method: conv(method=method),
    "conv-no-bias": lambda method: conv(bias=False, method=method),
    "conv-groups": lambda method: conv(groups=2, method=method),
    "conv-groups-no-bias": lambda method: conv(groups=3, bias=False, method=method),
}
kinds = pytest.mark.parametrize("kind", BLOCKS)


def filled(kind: str, method: str = "cholesky", uses: float = 6.5, damping: float = 1.0) -> Any:
    """A block with factors, and the factors."""
    block, rng = BLOCKS[kind](method), np.random.default_rng(0)
    stack = () if block.groups == 1 else (block.groups,)
    A = positive(rng, *stack, block.input_dim)
    G = 50 * positive(rng, *stack, block.output_dim)
    return fill(block, np.tril(A), np.tril(G), uses, damping), A, G


def gradients_of(block: KroneckerBlock) -> list[tf.Tensor]:
    rng = np.random.default_rng(1)
    return [tf.constant(rng.normal(size=v.shape), v.dtype) for v in block.variables]


def entries(block: KroneckerBlock, gradients: list[tf.Tensor]) -> np.ndarray:
    """Gradients in the order of the rows of `to_dense`."""
    return block.to_matrix(gradients).numpy().reshape(-1)


@kinds
@methods
@pytest.mark.parametrize("damping", [0.0, 0.3, 40.0])
def test_precondition_is_the_inverse_of_the_damped_block(
    kind: str, method: str, damping: float
) -> None:
    block, A, G = filled(kind, method)
    gradients = gradients_of(block)
    directions = block.precondition(gradients, damping=damping)
    assert [d.shape for d in directions] == [v.shape for v in block.variables]
    expected = np.linalg.solve(damped_block(A, G, 6.5, damping, method), entries(block, gradients))
    assert relative_error(entries(block, directions), expected) < 1e-12


@kinds
def test_exact_damping_is_added_to_the_dense_form(kind: str) -> None:
    """``method="eigen"``: (to_dense() + λI)⁻¹ g."""
    block, _, _ = filled(kind, "eigen")
    gradients, dense_form = gradients_of(block), block.to_dense().numpy()
    expected = np.linalg.solve(
        dense_form + 0.2 * np.eye(len(dense_form)), entries(block, gradients)
    )
    found = entries(block, block.precondition(gradients, damping=tf.constant(0.2)))
    assert relative_error(found, expected) < 1e-7  # λ was given in single precision
    found = entries(block, block.precondition(gradients, damping=0.2))
    assert relative_error(found, expected) < 1e-12


@kinds
@of_factors_alone
def test_training_uses_the_inverse_of_the_last_refresh(kind: str, method: str) -> None:
    """`precondition` without λ is that with the λ in force, when nothing changed since."""
    block, A, G = filled(kind, method, damping=0.3)
    gradients = gradients_of(block)
    block.refresh(tf.constant(0.3, tf.float64))
    fresh = entries(block, block.precondition(gradients))
    again = entries(block, block.precondition(gradients, damping=0.3))
    assert relative_error(fresh, again) < 1e-14
    changed = {"A": tf.constant(9 * A), "G": tf.constant(G), "uses": tf.constant(1.0, tf.float64)}
    block.update(changed, tf.constant(0.0), tf.constant(1.0))
    assert np.array_equal(entries(block, block.precondition(gradients)), fresh)
    assert not np.allclose(entries(block, block.precondition(gradients, damping=0.3)), fresh)


@kinds
def test_dense_form_and_factors(kind: str) -> None:
    block, A, G = filled(kind)
    assert relative_error(block.factors["A"], A) < 1e-14
    assert relative_error(block.factors["G"], G) < 1e-14
    assert block.uses == 6.5
    assert relative_error(block.to_dense(), dense_block(A, G, 6.5)) < 1e-14


@kinds
@methods
def test_shapes_and_sizes(kind: str, method: str) -> None:
    block, A, G = filled(kind, method)
    assert block.factor_shapes == {"A": A.shape, "G": G.shape}
    assert block.parameters == sum(v.numpy().size for v in block.variables)
    made = []
    block.build(lambda **kwargs: made.append(add_variable(**kwargs)), lambda: tf.constant(1.0))
    assert block.state_size == sum(v.numpy().size for v in made)


@kinds
def test_matrices_and_gradients_convert_into_each_other(kind: str) -> None:
    block = BLOCKS[kind]("cholesky")
    gradients = gradients_of(block)
    matrix = block.to_matrix(gradients)
    stack = [] if block.groups == 1 else [block.groups]
    assert matrix.shape == [*stack, block.input_dim, block.output_dim]
    for back, gradient in zip(block.from_matrix(matrix), gradients, strict=True):
        assert np.array_equal(back, gradient)


def test_golden_one_use() -> None:
    block = fill(dense(2, 2, bias=False), np.eye(2), np.eye(2), 1.0)
    (found,) = block.precondition([tf.constant([[2.0, 3], [4, 5]])], damping=0.5)
    assert np.allclose(found, [[0.686291, 1.029437], [1.372583, 1.715729]], atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_golden_four_uses(bias: bool) -> None:
    """A 2×2 image, SAME padding: |T| = 4."""
    case = Case(Convolution((1, 1), padding="same"), image=(2, 2), channels=1, bias=bias)
    dim = 1 + bias
    block = fill(case.block(), np.eye(dim), np.eye(2), float(np.prod(case.places)))
    gradients = [tf.constant([[[[1.0, 2.0]]]]), tf.constant([1.0, 2.0])][: 1 + bias]
    for found in block.precondition(gradients, damping=0.5):
        assert np.allclose(tf.squeeze(found), [0.136455, 0.272910], atol=1e-6)
        assert np.allclose(tf.squeeze(found), np.array([1, 2]) / (4 * (1 + 0.125**0.5) ** 2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_state_is_double_only_for_double_variables(dtype: str) -> None:
    block = fill(dense(2, 2, dtype=dtype), np.eye(3), np.eye(2), 1.0)
    expected = "float64" if dtype == "float64" else "float32"
    assert block.dtype == expected
    assert {value.dtype for value in block.factors.values()} == {tf.as_dtype(expected)}
    assert {d.dtype for d in block.precondition(gradients_of(block), 0.1)} == {
        tf.as_dtype(expected)
    }


@pytest.mark.parametrize(
    "ask",
    [
        lambda block: block.factors,
        lambda block: block.uses,
        lambda block: block.to_dense(),
        lambda block: block.precondition(gradients_of(block)),
        lambda block: block.precondition(gradients_of(block), damping=0.1),
    ],
    ids=["factors", "uses", "to_dense", "precondition", "precondition-damped"],
)
def test_a_block_that_was_only_scanned_says_so(ask: Any) -> None:
    with pytest.raises(ValueError, match=r"'layer' has no statistics.*Train with the optimizer"):
        ask(dense(2, 2))


# --- invariance --------------------------------------------------------------------------------

X = np.random.default_rng(2).normal(size=(40, 3))
SIZES = [3, 4, 2]


def near_identity(dim: int, seed: int) -> np.ndarray:
    """An invertible matrix that keeps single steps of the test well conditioned."""
    return np.eye(dim) + 0.3 * np.random.default_rng(seed).uniform(-1, 1, size=(dim, dim))


class Network:
    """x → tanh → outputs, whose layers see their inputs and outputs in bases of their own.

    Layer i receives ``[a, 1]·Pᵢ`` and returns the pre-activations times Qᵢ, which is undone after.
    """

    def __init__(self, P: list[np.ndarray], Q: list[np.ndarray]) -> None:
        self.P, self.Q = P, Q
        rng = np.random.default_rng(3)
        matrices = [rng.normal(size=(i + 1, o)) for i, o in itertools.pairwise(SIZES)]
        self.weights = [
            np.linalg.solve(p, matrix @ q) for p, q, matrix in zip(P, Q, matrices, strict=True)
        ]

    def __call__(self, weights: list[Any]) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """Outputs, and what every layer receives (without the 1) and returns."""
        a, inputs, preactivations = tf.constant(X), [], []
        for i, (p, q) in enumerate(zip(self.P, self.Q, strict=True)):
            rows = tf.concat([a, tf.ones([len(X), 1], tf.float64)], axis=1) @ p
            inputs.append(rows[:, :-1])
            preactivations.append(rows @ weights[i])
            s = preactivations[-1] @ np.linalg.inv(q)
            a = s if i == len(self.P) - 1 else tf.tanh(s)
        return a, inputs, preactivations

    def outputs_after_a_step(self, method: str, damping: float) -> np.ndarray:
        """The network's function after a step of K-FAC with the exact Fisher of a squared loss."""
        weights = [tf.constant(w) for w in self.weights]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(weights)
            outputs, inputs, s = self(weights)
            loss = tf.reduce_mean(tf.reduce_sum((outputs - np.sin(X[:, :2])) ** 2, axis=1))
            scalars = [2**0.5 * outputs[:, k] for k in range(2)]
        gradients = tape.gradient(loss, weights)
        g = [tape.gradient(scalar, s) for scalar in scalars]
        moved = []
        for i, weight in enumerate(weights):
            block = learn(inputs[i], [columns[i] for columns in g], method)
            direction = block.precondition([gradients[i][:-1], gradients[i][-1]], damping=damping)
            moved.append(weight - 0.5 * block.to_matrix(direction))
        return self(moved)[0].numpy()


def learn(inputs: tf.Tensor, columns: list[tf.Tensor], method: str) -> DenseBlock:
    """A dense block whose G is the sum over backward passes, one for each output."""
    block = dense(inputs.shape[1], columns[0].shape[1], method=method)
    block.build(add_variable, lambda: tf.constant(0.1))
    count = tf.constant(np.float64(len(X)))
    weights = [UseWeights(None, count, count)]
    passes = [block.output_statistics([g], weights)["G"] for g in columns]
    statistics = block.input_statistics([Use(inputs, inputs)], weights, tf.constant(len(X)))
    block.update(statistics | {"G": tf.add_n(passes)}, tf.constant(0.0), tf.constant(1.0))
    return block


def networks() -> tuple[Network, Network]:
    """One network in two parameterisations; P keeps the 1 of the bias what it is."""
    plain = Network([np.eye(4), np.eye(5)], [np.eye(4), np.eye(2)])
    P = [near_identity(4, 4), near_identity(5, 5)]
    for p in P:
        p[:, -1] = np.eye(len(p))[-1]
    return plain, Network(P, [near_identity(4, 6), near_identity(2, 7)])


@of_factors_alone
def test_the_undamped_step_does_not_depend_on_the_parameterisation(method: str) -> None:
    plain, other = networks()
    before = plain([tf.constant(w) for w in plain.weights])[0].numpy()
    step = plain.outputs_after_a_step(method, 0.0)
    assert relative_error(before, other([tf.constant(w) for w in other.weights])[0]) < 1e-13
    assert relative_error(before, step) > 0.1
    assert relative_error(other.outputs_after_a_step(method, 0.0), step) < 1e-12


@of_factors_alone
def test_any_damping_breaks_the_invariance(method: str) -> None:
    plain, other = networks()
    steps = [network.outputs_after_a_step(method, 1e-3) for network in (plain, other)]
    assert relative_error(*steps) > 1e-6
