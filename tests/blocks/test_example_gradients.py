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
from tfkfac.blocks.block import UseWeights
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
    block: KroneckerBlock, uses: Any, mode: str = "eager", of_examples: bool | None = None
) -> np.ndarray:
    """s as the block measures it; in graphs N is not known."""
    one = tf.ones([], tf.float64)

    def s(batch: tf.Tensor, *tensors: tf.Tensor) -> tf.Tensor:
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        weights = [UseWeights(None, one, one, of_examples) for _ in pairs]
        recorded = [Use(x, g) for x, g in pairs]
        return block.pass_statistics(recorded, [g for _, g in pairs], weights, batch)["s"]

    tensors = [tensor for _, *pair in uses for tensor in pair]
    if mode != "eager":
        unknown = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in tensors]
        signature = [tf.TensorSpec([], tf.int32), *unknown]
        s = tf.function(s, input_signature=signature, jit_compile=mode == "jit", autograph=False)
    found = s(tf.constant(N), *tensors).numpy()
    return found.reshape(block.groups, block.input_dim, block.output_dim)


@every_layer
@pytest.mark.parametrize("chunk", [1, 2000, 10**9])
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
