"""Functions that a graph holds once for each shape, and what they leave of a step's graph."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from tfkfac.graph_functions import once_per_shape


@once_per_shape
def _scaled_gram(parts: dict[str, tf.Tensor], shift: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
    gram = tf.matmul(parts["left"], parts["right"], transpose_a=True)
    return (gram, 2.0 * gram if shift is None else gram + shift)


def _parts(rows: int) -> dict[str, tf.Tensor]:
    return {"left": tf.ones([rows, 3]), "right": 2.0 * tf.ones([rows, 3])}


def test_a_graph_holds_the_operations_once_for_each_shape() -> None:
    @tf.function
    def step() -> list[tf.Tensor]:
        grams = [_scaled_gram(_parts(rows), tf.ones([])) for rows in (4, 5, 4, 4, 5)]
        return [shifted for _, shifted in grams]

    graph = step.get_concrete_function().graph.as_graph_def()
    operations = [node.op for node in graph.node]
    assert operations.count("PartitionedCall") == 5
    assert "MatMul" not in operations
    bodies = [{node.op for node in function.node_def} for function in graph.library.function]
    assert sum("MatMul" in body for body in bodies) == 2
    assert [float(shifted[0, 0]) for shifted in step()] == [9, 11, 9, 9, 11]


@pytest.mark.parametrize("shift", [None, 3.0])
@pytest.mark.parametrize("jit", [False, True])
def test_arguments_may_be_structures_and_none(shift: float | None, jit: bool) -> None:
    given = None if shift is None else tf.constant(shift)
    function = tf.function(lambda: _scaled_gram(_parts(2), given), jit_compile=jit)
    for gram, other in (_scaled_gram(_parts(2), given), function()):
        assert np.array_equal(gram, np.full((3, 3), 4.0))
        assert np.array_equal(other, np.full((3, 3), 8.0 if shift is None else 7.0))


def test_many_shapes_are_no_reason_to_warn(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow warns of functions that are traced in most of their calls."""
    monkeypatch.setattr(tf.get_logger(), "propagate", True)

    @tf.function
    def step() -> list[Any]:
        return [_scaled_gram(_parts(rows), None) for rows in range(1, 12)]

    with caplog.at_level(logging.WARNING):
        step()
    assert not [record for record in caplog.records if "retracing" in record.getMessage()]


def test_functions_end_with_their_graph() -> None:
    traced = []

    @once_per_shape
    def doubled(matrix: tf.Tensor) -> tf.Tensor:
        traced.append(weakref.ref(tf.compat.v1.get_default_graph()))
        return 2.0 * matrix

    def step(matrix: tf.Tensor) -> tf.Tensor:
        chosen = tf.cond(matrix[0, 0] > 0.0, lambda: doubled(matrix), lambda: -doubled(matrix))
        return doubled(matrix) + chosen

    compiled = tf.function(step)
    assert float(compiled(tf.ones([1, 1]))[0, 0]) == 4.0
    assert len(traced) == 1
    del compiled
    gc.collect()
    assert traced[0]() is None


def _operations(depth: int) -> tuple[int, int]:
    """Of the graph of a step with `depth` equal layers: all of them, and Cholesky's."""
    hidden = [keras.layers.Dense(7, activation="tanh") for _ in range(depth)]
    model = keras.Sequential([keras.Input((7,)), *hidden, keras.layers.Dense(2)])
    model.compile(optimizer=tfkfac.KFAC(seed=0), loss="mse")
    x, y = tf.ones([4, 7]), tf.ones([4, 2])
    model.train_on_batch(x, y)  # makes the state
    step = tf.function(lambda: model.train_step((x, y))["loss"])
    graph = step.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(n for function in graph.library.function for n in function.node_def)]
    return len(nodes), sum(node.op == "Cholesky" for node in nodes)


def test_operations_of_a_step_are_linear_in_depth_and_inverses_are_held_once() -> None:
    (few, few_cholesky), (some, some_cholesky), (many, many_cholesky) = map(_operations, (2, 6, 14))
    assert many - some == pytest.approx(2 * (some - few), rel=0.02)
    assert few_cholesky == some_cholesky == many_cholesky
