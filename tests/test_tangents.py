"""In which order a graph makes Jacobian-vector products: what decides about its peak memory."""

from __future__ import annotations

import tensorflow as tf

from tfkfac.tangents import push_forward

SHAPES = ((4, 3), (3, 2))


def test_directions_are_pushed_one_after_the_other() -> None:
    """No product of the second direction begins before the first one's tangent is there."""
    placeholder = tf.compat.v1.placeholder
    with tf.Graph().as_default() as graph:
        x = placeholder(tf.float32, (5, 4))
        weights = [placeholder(tf.float32, shape) for shape in SHAPES]
        directions = [[placeholder(tf.float32, shape) for shape in SHAPES] for _ in range(2)]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(weights)
            outputs = tf.tanh(x @ weights[0]) @ weights[1]
        (first,), (second,) = push_forward(tape, [outputs], weights, directions)
    of_second = {vector.op for vector in directions[1]}
    products = [
        operation
        for operation in graph.get_operations()
        if operation.type == "MatMul" and of_second & _before(operation)
    ]
    assert len(products) == 3  # x·V₁, through W₂ of its tangent, and h·V₂
    assert all(first.op in _before(product) for product in products)
    assert of_second.isdisjoint(_before(first.op))
    assert second.op not in _before(first.op)


def _before(operation: tf.Operation) -> set[tf.Operation]:
    """All operations that have to end before this one begins."""
    found: set[tf.Operation] = set()
    pending = [operation]
    while pending:
        current = pending.pop()
        for earlier in [tensor.op for tensor in current.inputs] + current.control_inputs:
            if earlier not in found:
                found.add(earlier)
                pending.append(earlier)
    return found
