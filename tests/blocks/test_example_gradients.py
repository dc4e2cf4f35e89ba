"""What EKFAC measures: s is a mean over examples, one after the other, of autodiff's gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from reference import fill, positive, relative_error

from tfkfac.blocks import KroneckerBlock, Use
from tfkfac.blocks import example_gradients as by_example
from tfkfac.blocks.use import UseWeights
from tfkfac.registry import build_blocks

pytestmark = pytest.mark.usefixtures("float64")

N = 5
TOLERANCE = 1e-12

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "dense": (lambda: layers.Dense(3), (4,)),
    "dense-no-bias": (lambda: layers.Dense(3, use_bias=False), (4,)),
    "dense-sequences": (lambda: layers.Dense(3), (6, 4)),
    "dense-long-sequences": (lambda: layers.Dense(3), (2, 7, 4)),
    "conv": (lambda: layers.Conv2D(4, (3, 2), strides=(2, 1), padding="same", groups=2), (5, 3, 4)),
    "conv-one-place": (lambda: layers.Conv2D(3, 2), (2, 2, 2)),
    "conv-causal": (lambda: layers.Conv1D(3, 2, dilation_rate=2, padding="causal"), (6, 2)),
    "transposed": (lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"), (2, 3, 2)),
    "depthwise": (lambda: layers.DepthwiseConv2D(2, depth_multiplier=2), (4, 3, 2)),
    "separable": (lambda: layers.SeparableConv1D(3, 2, depth_multiplier=2), (5, 2)),
    "heads": (lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), (4, 3)),
    "heads-joined": (lambda: layers.EinsumDense("abcd,cde->abe", (None, 3)), (4, 2, 3)),
    "places-last": (lambda: layers.EinsumDense("abc,bd->dac", (None, 5)), (3, 5)),
    "groups": (lambda: layers.EinsumDense("abc,bcd->abd", (3, 2), bias_axes="bd"), (3, 4)),
    "embedding": (lambda: layers.Embedding(4, 3), (6,)),
    "embedding-one-token": (lambda: layers.Embedding(4, 3), ()),
}
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def refreshed(
    layer: Any, max_factor_size: int | None = None
) -> list[tuple[KroneckerBlock, np.ndarray, np.ndarray]]:
    """The blocks of a layer with factors and their eigenbases, which are of NumPy's."""
    found, rng = [], np.random.default_rng(3)
    for block in build_blocks(layer, [layer], method="ekfac", max_factor_size=max_factor_size):
        assert isinstance(block, KroneckerBlock)
        factors, bases = [], []
        for key, dim in (("A", block.input_dim), ("G", block.output_dim)):
            factor = positive(rng, block.groups, dim)
            stack = factor.reshape(*(() if block.groups == 1 else (block.groups,)), dim, dim)
            if block.factor_shapes[key] == stack.shape:
                factors.append(np.tril(stack))
                bases.append(np.linalg.eigh(factor)[1])
            else:
                factors.append(np.diagonal(stack, axis1=-2, axis2=-1))
                bases.append(np.tile(np.eye(dim), (block.groups, 1, 1)))
        fill(block, *factors, 2.0).refresh(tf.constant(0.1))
        found.append((block, *bases))
    return found


def data(layer: Any, shape: Sequence[int], count: int = N, seed: int = 1) -> tuple[Any, Any]:
    """Inputs of a layer, and gradients at its outputs."""
    rng = np.random.default_rng(seed)
    x = tf.constant(rng.normal(size=(count, *shape)))
    if isinstance(layer, layers.Embedding):
        x = tf.constant(rng.integers(layer.input_dim, size=(count, *shape)))
    return x, tf.constant(rng.normal(size=layer(x).shape))


def axis_of_examples(layer: Any) -> int:
    """In the outputs."""
    return layer.equation.split("->")[1].index("a") if hasattr(layer, "equation") else 0


def transcribed(
    block: KroneckerBlock, uses: Any, left: np.ndarray, right: np.ndarray, count: int = N
) -> np.ndarray:
    """``Σ_n (Q_Aᵀ M_n Q_G)²/N``, M_n the gradient of Σ g·s over what example n has of all uses."""
    total = np.zeros((block.groups, block.input_dim, block.output_dim))
    for n in range(count):
        with tf.GradientTape() as tape:
            products = []
            for layer, x, g in uses:
                rows = range(n * len(x) // count, (n + 1) * len(x) // count)
                g = tf.gather(g, rows, axis=axis_of_examples(layer))
                products.append(tf.reduce_sum(layer(tf.gather(x, rows)) * g))
            value = tf.add_n(products)
        gradients = tape.gradient(value, [variable.value for variable in block.variables])
        matrix = block.to_matrix(list(map(tf.convert_to_tensor, gradients))).numpy()
        for group, M in enumerate(matrix.reshape(total.shape)):
            total[group] += np.square(left[group].T @ M @ right[group]) / count
    return total


def measured(
    block: KroneckerBlock,
    uses: Any,
    mode: str = "eager",
    of_examples: bool | None = None,
    known: int = 1,
) -> np.ndarray:
    """s as the block measures it; in graphs nothing is known of the axes before `known`."""
    one = tf.ones([], tf.float64)

    def s(batch: tf.Tensor, *tensors: tf.Tensor) -> tf.Tensor:
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        weights = [UseWeights(None, one, one, of_examples) for _ in pairs]
        recorded = [Use(x, g) for x, g in pairs]
        return block.pass_statistics(recorded, [g for _, g in pairs], weights, batch)["s"]

    tensors = [tensor for _, *pair in uses for tensor in pair]
    if mode != "eager":
        unknown = [tf.TensorSpec([None] * known + t.shape[known:], t.dtype) for t in tensors]
        signature = [tf.TensorSpec([], tf.int32), *unknown]
        s = tf.function(s, input_signature=signature, jit_compile=mode == "jit", autograph=False)
    found = s(tf.constant(N), *tensors).numpy()
    return found.reshape(block.groups, block.input_dim, block.output_dim)


@every_layer
@pytest.mark.parametrize("chunk", [2000, 10**9])
def test_s_is_the_mean_over_examples(
    make: Any, shape: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_example, "CHUNK_BYTES", chunk)
    layer = make()
    uses = [(layer, *data(layer, shape))]
    for block, *bases in refreshed(layer):
        found = measured(block, uses)
        assert relative_error(found, transcribed(block, uses, *bases)) < TOLERANCE


@every_layer
@pytest.mark.parametrize("mode", ["graph", "jit"])
def test_s_of_a_batch_of_unknown_size(
    make: Any, shape: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_example, "CHUNK_BYTES", 2000)
    layer = make()
    uses = [(layer, *data(layer, shape))]
    for block, *bases in refreshed(layer):
        found = measured(block, uses, mode)
        assert relative_error(found, transcribed(block, uses, *bases)) < TOLERANCE


def test_the_mean_over_examples_written_out() -> None:
    """Of a dense layer on sequences, without autodiff: ``Σ_n (Q_Aᵀ Σ_t (a, 1) gᵀ Q_G)∘² / N``."""
    layer = layers.Dense(3)
    x, g = (tensor.numpy() for tensor in data(layer, (6, 4)))
    ((block, left, right),) = refreshed(layer)
    expected = np.zeros((5, 3))
    for n in range(N):
        rotated = sum(
            np.outer(left[0].T @ np.append(x[n, t], 1), right[0].T @ g[n, t]) for t in range(6)
        )
        expected += rotated**2 / N
    found = measured(block, [(layer, tf.constant(x), tf.constant(g))])
    assert relative_error(found[0], expected) < TOLERANCE


modes = pytest.mark.parametrize("mode", ["eager", "graph", "jit"])


@modes
@pytest.mark.parametrize("shapes", [[(4,), (4,)], [(6, 4), (2, 4)]], ids=["rows", "sequences"])
def test_uses_of_a_shared_layer_are_added_before_they_are_squared(shapes: Any, mode: str) -> None:
    layer = layers.Dense(3)
    uses = [(layer, *data(layer, shape, seed=seed)) for seed, shape in enumerate(shapes)]
    ((block, *bases),) = refreshed(layer)
    expected = transcribed(block, uses, *bases)
    assert relative_error(measured(block, uses, mode), expected) < TOLERANCE
    apart = sum(transcribed(block, [use], *bases) for use in uses)
    assert relative_error(apart, expected) > 0.1


@modes
@pytest.mark.parametrize("name", ["dense", "dense-sequences", "conv", "embedding"])
def test_examples_with_several_rows(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of an example are neighbours, as after a reshape of steps to examples."""
    monkeypatch.setattr(by_example, "CHUNK_BYTES", 2000)
    make, shape = LAYERS[name]
    layer = make()
    uses = [(layer, *data(layer, shape, count=3 * N))]
    ((block, *bases),) = refreshed(layer)
    found = measured(block, uses, mode)
    assert relative_error(found, transcribed(block, uses, *bases)) < TOLERANCE


@modes
@pytest.mark.parametrize(("rows", "of_examples"), [(7, None), (7, False), (2 * N, False)])
@pytest.mark.parametrize("name", ["dense", "conv", "embedding"])
def test_rows_of_no_example_are_those_of_one_draw(
    name: str, mode: str, rows: int, of_examples: bool | None
) -> None:
    """``(Σ_t Q_Aᵀ a gᵀ Q_G)∘² / N`` over all rows, as many as they may be."""
    make, shape = LAYERS[name]
    layer = make()
    uses = [(layer, *data(layer, shape, count=rows))]
    ((block, *bases),) = refreshed(layer)
    expected = transcribed(block, uses, *bases, count=1) / N
    assert relative_error(measured(block, uses, mode, of_examples), expected) < TOLERANCE


@pytest.mark.parametrize("mode", ["graph", "jit"])
@pytest.mark.parametrize(("name", "known"), [("dense-sequences", 2), ("conv", 3), ("heads", 2)])
def test_lengths_that_are_known_in_the_step_only(
    name: str, known: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_example, "CHUNK_BYTES", 2000)
    make, shape = LAYERS[name]
    layer = make()
    uses = [(layer, *data(layer, shape))]
    ((block, *bases),) = refreshed(layer)
    found = measured(block, uses, mode, known=known)
    assert relative_error(found, transcribed(block, uses, *bases)) < TOLERANCE


@pytest.mark.parametrize("name", ["dense", "dense-sequences", "conv", "embedding"])
@pytest.mark.parametrize("limit", [3, 4])
def test_eigenvectors_of_diagonal_factors_are_unit_vectors(name: str, limit: int) -> None:
    """A is cut to its diagonal, and with the smaller limit G in the convolution too."""
    make, shape = LAYERS[name]
    layer = make()
    uses = [(layer, *data(layer, shape))]
    ((block, *bases),) = refreshed(layer, limit)
    assert not np.any(bases[0] - np.eye(block.input_dim))
    assert relative_error(measured(block, uses), transcribed(block, uses, *bases)) < TOLERANCE


def test_masked_places_contribute_nothing() -> None:
    """Their g is zero, whatever is in a."""
    layer = layers.Dense(3)
    x, g = data(layer, (6, 4))
    mask = np.arange(6) < [[6], [3], [1], [0], [5]]
    g *= mask[..., None]
    ((block, *bases),) = refreshed(layer)
    found = [
        measured(block, [(layer, tf.where(mask[..., None], x, other), g)]) for other in (0.0, 9.0)
    ]
    assert relative_error(*found) < TOLERANCE
    assert relative_error(found[0], transcribed(block, [(layer, x, g)], *bases)) < TOLERANCE


@pytest.mark.parametrize("budget", [1, 3000, 7000, 10**9])
def test_chunks_keep_within_their_budget(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients and rows of a chunk are within it, but for a single example; nothing is wasted."""
    monkeypatch.setattr(by_example, "CHUNK_BYTES", budget)
    layer = layers.Conv2D(4, 2)
    layer.build((None, 4, 3, 2))
    ((block, *_),) = refreshed(layer)
    chunks: list[int] = []
    to_rows = block.input_rows
    monkeypatch.setattr(block, "input_rows", lambda x: [chunks.append(len(x)), to_rows(x)][1])
    measured(block, [(layer, *data(layer, (4, 3, 2)))])
    bytes_each = 8 * (9 * 4 + 6 * (9 + 4))
    assert max(chunks) == 1 or max(chunks) * bytes_each <= budget
    assert (max(chunks) + 1) * bytes_each > budget or max(chunks) == N
    assert len(set(chunks)) == 1 and N <= sum(chunks) < N + max(chunks)
