"""Estimators of the Fisher matrix: what is sent backwards from the outputs (mathematics.md §1).

Each estimator runs one or more backward passes of Σ_u √(N·c_u)·(−log p_u), and sums what the
caller makes of the gradients that arrive at the pre-activations.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac.observation import Observation
from tfkfac.predictive import Noise

Backward = Callable[[list[tf.Tensor]], Any]
"""Gradients at the observations' targets → whatever is summed over backward passes."""


class Estimator(abc.ABC):
    """A way to estimate the Fisher matrix by backward passes."""

    @abc.abstractmethod
    def sum(self, observations: Sequence[Observation], noise: Noise, backward: Backward) -> Any:
        """The sum of `backward` over the backward passes that the estimate takes."""


class MonteCarlo(Estimator):
    """One backward pass from targets drawn from the model's own predictions."""

    def sum(self, observations: Sequence[Observation], noise: Noise, backward: Backward) -> Any:
        """One pass."""
        return backward([o.inject(o.predictive.sampled_gradient(noise)) for o in observations])


class Empirical(Estimator):
    """One backward pass from the labels of the data: the "empirical Fisher", not the GGN."""

    def sum(self, observations: Sequence[Observation], noise: Noise, backward: Backward) -> Any:
        """One pass. The outputs of an example share its sign: their gradients are added."""
        signs = _signs(observations[0].predictive.target, noise)
        return backward(
            [
                _with_signs(
                    o.inject(o.predictive.label_gradient(tf.convert_to_tensor(o.labels))), signs
                )
                for o in observations
            ]
        )


class Exact(Estimator):
    """One backward pass for each scalar of an example's output; no sampling.

    Exact for models whose examples do not influence each other (no BatchNormalization in training
    mode).

    Args:
        max_outputs: Refuse models with more scalars an example.
    """

    def __init__(self, max_outputs: int) -> None:
        self._max_outputs = max_outputs

    def sum(self, observations: Sequence[Observation], noise: Noise, backward: Backward) -> Any:
        """A pass for each scalar of each output in turn, the other outputs sending nothing."""
        counts = [_scalars_of_an_example(o.predictive.target) for o in observations]
        if sum(counts) > self._max_outputs:
            raise ValueError(
                f"fisher='exact' runs one backward pass for each scalar of an example's output: "
                f"{sum(counts)} here, more than max_exact_outputs={self._max_outputs}. Use "
                "fisher='mc', or raise max_exact_outputs."
            )
        silent = [tf.zeros_like(o.predictive.target) for o in observations]
        signs = _signs(silent[0], noise)
        totals = None
        for position, (observation, count) in enumerate(zip(observations, counts, strict=True)):

            def one(
                index: tf.Tensor, position: int = position, observation: Any = observation
            ) -> Any:
                gradients = list(silent)
                gradients[position] = _with_signs(_root_column(observation, index), signs)
                return backward(gradients)

            total = _sum_over(one, count)
            totals = total if totals is None else tf.nest.map_structure(tf.add, totals, total)
        return totals


ESTIMATORS: dict[str, Callable[[int], Estimator]] = {
    "mc": lambda max_outputs: MonteCarlo(),
    "exact": Exact,
    "empirical": lambda max_outputs: Empirical(),
}
"""The values of ``KFAC(fisher=...)``."""


def _signs(target: tf.Tensor, noise: Noise) -> tf.Tensor:
    """±1 for each example, ``[N]``.

    A random sign where the gradients of examples are not drawn anyway: nothing that is squared
    within an example changes, and sums over examples can be squared as if the examples were
    independent (`tfkfac.blocks.diagonal`).
    """
    half = noise.uniform([tf.shape(target)[0]], tf.float32) < 0.5
    return tf.where(half, 1.0, -1.0)


def _with_signs(gradient: tf.Tensor, signs: tf.Tensor) -> tf.Tensor:
    """The gradients of examples, some of them turned round."""
    shape = [-1] + [1] * (gradient.shape.rank - 1)
    return gradient * tf.reshape(tf.cast(signs, gradient.dtype), shape)


def _scalars_of_an_example(target: tf.Tensor) -> int:
    count = target.shape[1:].num_elements()
    if count is None:
        raise ValueError(
            f"fisher='exact' needs outputs of a known shape, got {target.shape}; fix the shape of "
            "the model's input, or use fisher='mc'."
        )
    return int(count)


def _root_column(observation: Observation, index: tf.Tensor) -> tf.Tensor:
    """The column of the Fisher's root that belongs to one scalar of an example's output.

    The column of a unit is non-zero in that unit only, so units of one example do not mix.
    """
    predictive = observation.predictive
    shape = predictive.target.shape[1:].as_list()
    if predictive.axis is None:
        chosen = tf.reshape(tf.one_hot(index, _product(shape)), shape)
        column = predictive.root_column(tf.constant(0))
    else:
        classes = shape.pop(predictive.axis - 1)
        chosen = tf.reshape(tf.one_hot(index // classes, _product(shape)), shape)
        chosen = tf.expand_dims(chosen, predictive.axis - 1)
        column = predictive.root_column(index % classes)
    return observation.inject(column * tf.cast(chosen, column.dtype))


def _sum_over(of_index: Callable[[tf.Tensor], Any], count: int) -> Any:
    """``Σ_i of_index(i)`` for a nested structure, in a loop that keeps one term at a time."""
    first = of_index(tf.constant(0))
    flat = tf.nest.flatten(first)

    def add(index: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
        terms = tf.nest.flatten(of_index(index))
        return (
            index + 1,
            *(
                tf.ensure_shape(total + term, total.shape)
                for total, term in zip(sums, terms, strict=True)
            ),
        )

    _, *sums = tf.while_loop(
        lambda index, *_: index < count, add, [tf.constant(1), *flat], parallel_iterations=1
    )
    return tf.nest.pack_sequence_as(first, sums)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
