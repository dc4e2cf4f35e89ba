"""Predictive distributions that tfkfac does not know itself: the user's own, and unknown ones."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfkfac.predictive import Noise, Predictive


class WithoutClosedForm(Predictive):
    """A distribution whose Fisher matrix is known by samples of scores only, or not at all.

    Attributes:
        refusal: What is said to those who need the matrix.
    """

    refusal: str

    @abc.abstractmethod
    def score(self, labels: tf.Tensor, noise: Noise) -> tf.Tensor:
        """∂(−log p(y))/∂target for the y that stands for the expectation over targets.

        Args:
            labels: Of the data.
            noise: For draws.
        """

    @property
    def scalars(self) -> int | None:
        """Not known: a unit is whatever the distribution, or the loss, makes of the outputs."""
        return None

    def root_column(self, index: tf.Tensor) -> tf.Tensor:
        """Not available.

        Raises:
            ValueError: Always.
        """
        raise ValueError(self.refusal)

    def fisher_product(self, tangent: tf.Tensor) -> tf.Tensor:
        """Not available.

        Raises:
            ValueError: Always.
        """
        raise ValueError(self.refusal)


class Registered(WithoutClosedForm):
    """A user's own ``tfp.distributions`` object.

    Args:
        outputs: What the model returned.
        make: Outputs → distribution, with one unit for each entry of its batch shape.
    """

    refusal = (
        "fisher='exact' and fisher_vector_product need the Fisher matrix of the predictive "
        "distribution in closed form, which a registered tfp distribution does not give; use "
        "fisher='mc'."
    )

    def __init__(self, outputs: tf.Tensor, make: Callable[[tf.Tensor], Any]) -> None:
        super().__init__(outputs)
        self._make = make

    @property
    def distribution(self) -> Any:
        """What the user's function returned."""
        return self._made(self.target)

    def units(self) -> tf.Tensor:
        """The size of the distribution's batch shape."""
        return tf.reduce_prod(self.distribution.batch_shape_tensor())

    def score(self, labels: tf.Tensor, noise: Noise) -> tf.Tensor:
        """At a sample: its outer product is the Fisher in expectation."""
        del labels
        return self.sampled_gradient(noise)

    def sampled_gradient(self, noise: Noise) -> tf.Tensor:
        """By automatic differentiation of ``log_prob`` at a sample."""
        labels = tf.stop_gradient(self.distribution.sample(seed=noise.seed()))
        return self.label_gradient(labels)

    def label_gradient(self, labels: tf.Tensor) -> tf.Tensor:
        """By automatic differentiation of ``log_prob``."""
        with tf.GradientTape() as tape:
            outputs = tf.identity(self.target)
            tape.watch(outputs)
            distribution = self._made(outputs)
            shape = [distribution.batch_shape_tensor(), distribution.event_shape_tensor()]
            labels = tf.reshape(tf.cast(labels, distribution.dtype), tf.concat(shape, axis=0))
            nll = -distribution.log_prob(labels)
        return tape.gradient(nll, outputs, unconnected_gradients="zero")

    def _made(self, outputs: tf.Tensor) -> Any:
        found = self._make(outputs)
        if not hasattr(found, "log_prob"):
            raise ValueError(
                "Argument `distribution` of tfkfac.losses.register must be a function from y_pred "
                f"to a tfp.distributions object; it returned {found!r}."
            )
        return found


class Unknown(WithoutClosedForm):
    """A loss without a known distribution, of which only the labels' gradient exists.

    Args:
        outputs: What the model returned.
        values: (labels, outputs) → loss values.
        message: Why the loss is not known and what to do, for the error.
    """

    def __init__(
        self,
        outputs: tf.Tensor,
        values: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        message: str,
    ) -> None:
        super().__init__(outputs)
        self._values = values
        self.refusal = message

    def score(self, labels: tf.Tensor, noise: Noise) -> tf.Tensor:
        """At the label of the data: nothing else is known."""
        del noise
        return self.label_gradient(labels)

    def units(self) -> tf.Tensor:
        """Not known; the loss values are taken as they are."""
        raise ValueError(self.refusal)

    @property
    def distribution(self) -> Any:
        """Not known."""
        raise ValueError(self.refusal)

    def sampled_gradient(self, noise: Noise) -> tf.Tensor:
        """Not available."""
        raise ValueError(self.refusal)

    def label_gradient(self, labels: tf.Tensor) -> tf.Tensor:
        """By automatic differentiation of the loss values."""
        with tf.GradientTape() as tape:
            outputs = tf.identity(self.target)
            tape.watch(outputs)
            values = self._values(tf.cast(labels, outputs.dtype), outputs)
        return tape.gradient(values, outputs, unconnected_gradients="zero")
