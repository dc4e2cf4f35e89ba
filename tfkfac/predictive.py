"""The distributions that a model's outputs predict, and the gradients that sample its Fisher.

Targets are sampled by own transforms of counter-based noise, so that graph, eager and XLA see the
same bits; each distribution is a ``tfp.distributions`` object through `Predictive.distribution`.
"""

from __future__ import annotations

import abc
from typing import Any, Protocol

import tensorflow as tf

from tfkfac.inversion import drawn


class Noise(Protocol):
    """A source of counter-based random numbers.

    The first axis of every shape runs over the examples: a share of a batch draws its rows of what
    the whole batch draws.
    """

    def uniform(self, shape: Any, dtype: Any) -> tf.Tensor:
        """Numbers in [0, 1)."""

    def normal(self, shape: Any, dtype: Any) -> tf.Tensor:
        """Standard normal numbers."""

    def seed(self) -> tf.Tensor:
        """A stateless seed, ``int32 [2]``, for samplers that are not ours.

        Shares of a batch have different ones, so what they draw is no part of one common draw.
        """


class Predictive(abc.ABC):
    """The distribution that one output of the model predicts, unit by unit.

    Gradients are of −log p with respect to `target`, the tensor of the forward pass at which the
    backward pass starts. The GGN is taken at the natural parameters ("logits"); where the model
    returns probabilities and the logits cannot be found, `chain` maps there.

    Attributes:
        target: The tensor to backpropagate from.
        chain: d(logits)/d(target), elementwise, or None where they are the same.
        axis: The axis of `target` that makes up one unit, or None where every scalar is one.
        mean_axis: Where every scalar is a unit: the axis that the loss takes its mean over.
    """

    mean_axis = -1

    def __init__(
        self, target: tf.Tensor, chain: tf.Tensor | None = None, axis: int | None = None
    ) -> None:
        self.target = target
        self.chain = chain
        self.axis = axis

    @property
    def scalars(self) -> int | None:
        """Scalars in one unit (None where that is not known)."""
        return 1 if self.axis is None else self.target.shape[self.axis]

    def units(self) -> tf.Tensor:
        """The number of units in the batch, scalar."""
        return tf.size(self.target) // (self.scalars or 1)

    @property
    @abc.abstractmethod
    def distribution(self) -> Any:
        """The same as a ``tfp.distributions.Distribution`` over targets."""

    @abc.abstractmethod
    def sampled_gradient(self, noise: Noise) -> tf.Tensor:
        """∂(−log p(y))/∂logits for targets y drawn from p."""

    @abc.abstractmethod
    def label_gradient(self, labels: tf.Tensor) -> tf.Tensor:
        """∂(−log p(y))/∂logits for the labels of the data (``fisher="empirical"``)."""

    @abc.abstractmethod
    def root_column(self, index: tf.Tensor) -> tf.Tensor:
        """Column `index` of R with R Rᵀ = the Fisher of a unit at its logits (one a scalar).

        Args:
            index: Position of a scalar in a unit.

        Returns:
            A tensor of the shape of the logits: that column for every unit.
        """

    @abc.abstractmethod
    def fisher_product(self, tangent: tf.Tensor) -> tf.Tensor:
        """``F_u t`` for every unit u, F_u the Fisher of a unit at its logits.

        Args:
            tangent: t, of the shape of the logits.
        """

    def to_target(self, gradient: tf.Tensor) -> tf.Tensor:
        """A gradient at the logits as one at `target`."""
        return gradient if self.chain is None else gradient * self.chain

    def to_logits(self, tangent: tf.Tensor) -> tf.Tensor:
        """A tangent at `target` as one at the logits: an elementwise chain is its own transpose."""
        return self.to_target(tangent)


class Categorical(Predictive):
    """One of K classes along an axis; F = diag p − p pᵀ at the logits.

    Args:
        logits: Unnormalised log-probabilities.
        axis: The class axis.
        target: The tensor to backpropagate from; `logits` itself if None.
        chain: See `Predictive`.
    """

    def __init__(
        self,
        logits: tf.Tensor,
        axis: int = -1,
        target: tf.Tensor | None = None,
        chain: tf.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self._label_smoothing = label_smoothing
        self._classes_axis = axis % logits.shape.rank
        super().__init__(logits if target is None else target, chain, self._classes_axis)
        self.logits = logits

    @property
    def distribution(self) -> Any:
        """``tfp.distributions.Categorical`` with the class axis last."""
        return _tfd().Categorical(logits=_move_last(self.logits, self._classes_axis))

    def sampled_gradient(self, noise: Noise) -> tf.Tensor:
        """``p − onehot(y)``, y by inversion of the cumulative distribution."""
        probabilities = tf.nn.softmax(self.logits, axis=self._classes_axis)
        of_classes = _move_last(probabilities, self._classes_axis)
        classes = drawn(of_classes, noise.uniform(tf.shape(of_classes)[:-1], tf.float32))
        return probabilities - self._one_hot(classes)

    def label_gradient(self, labels: tf.Tensor) -> tf.Tensor:
        """``p − y`` for one-hot, soft or integer labels y, smoothed as Keras smooths them."""
        if labels.shape.rank == self.logits.shape.rank - 1:
            labels = self._one_hot(tf.cast(labels, tf.int32))
        elif labels.shape[self._classes_axis] == 1 and self.logits.shape[self._classes_axis] != 1:
            labels = self._one_hot(tf.cast(tf.squeeze(labels, self._classes_axis), tf.int32))
        labels = tf.cast(labels, self.logits.dtype)
        labels += self._label_smoothing * (1.0 / self.logits.shape[self._classes_axis] - labels)
        return tf.nn.softmax(self.logits, axis=self._classes_axis) - labels

    def root_column(self, index: tf.Tensor) -> tf.Tensor:
        """``√p_k (e_k − p)``."""
        probabilities = tf.nn.softmax(self.logits, axis=self._classes_axis)
        chosen = tf.gather(probabilities, [index], axis=self._classes_axis)
        shape = [1] * self.logits.shape.rank
        shape[self._classes_axis] = -1
        unit = tf.reshape(
            tf.one_hot(index, self.logits.shape[self._classes_axis], dtype=self.logits.dtype), shape
        )
        return tf.sqrt(chosen) * (unit - probabilities)

    def fisher_product(self, tangent: tf.Tensor) -> tf.Tensor:
        """``p∘(t − pᵀt)``."""
        probabilities = tf.nn.softmax(self.logits, axis=self._classes_axis)
        tangent = tf.cast(tangent, probabilities.dtype)
        mean = tf.reduce_sum(probabilities * tangent, self._classes_axis, keepdims=True)
        return probabilities * (tangent - mean)

    def _one_hot(self, classes: tf.Tensor) -> tf.Tensor:
        depth = self.logits.shape[self._classes_axis]
        return tf.one_hot(classes, depth, axis=self._classes_axis, dtype=self.logits.dtype)


class Bernoulli(Predictive):
    """Independent yes-or-no outputs; F = p(1 − p) at the logits.

    Args:
        logits: Log-odds.
        target: The tensor to backpropagate from; `logits` itself if None.
        chain: See `Predictive`.
    """

    def __init__(
        self,
        logits: tf.Tensor,
        target: tf.Tensor | None = None,
        chain: tf.Tensor | None = None,
        mean_axis: int = -1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(logits if target is None else target, chain)
        self.logits = logits
        self.mean_axis = mean_axis
        self._label_smoothing = label_smoothing

    @property
    def distribution(self) -> Any:
        """``tfp.distributions.Bernoulli``."""
        return _tfd().Bernoulli(logits=self.logits)

    def sampled_gradient(self, noise: Noise) -> tf.Tensor:
        """``p − y``."""
        probabilities = tf.sigmoid(self.logits)
        draws = noise.uniform(tf.shape(self.logits), self.logits.dtype)
        return probabilities - tf.cast(draws < probabilities, self.logits.dtype)

    def label_gradient(self, labels: tf.Tensor) -> tf.Tensor:
        """``p − y``, y smoothed towards ½ as Keras smooths it."""
        labels = tf.reshape(tf.cast(labels, self.logits.dtype), tf.shape(self.logits))
        labels += self._label_smoothing * (0.5 - labels)
        return tf.sigmoid(self.logits) - labels

    def root_column(self, index: tf.Tensor) -> tf.Tensor:
        """``√(p(1 − p))``: a unit is one scalar."""
        del index
        return tf.sqrt(tf.sigmoid(self.logits) * tf.sigmoid(-self.logits))

    def fisher_product(self, tangent: tf.Tensor) -> tf.Tensor:
        """``p(1 − p)·t``."""
        variance = tf.sigmoid(self.logits) * tf.sigmoid(-self.logits)
        return variance * tf.cast(tangent, variance.dtype)


class Normal(Predictive):
    """``−log p = (y − f)²``: a Normal with variance ½ around each output; F = 2.

    Args:
        mean: The outputs f.
    """

    def __init__(self, mean: tf.Tensor) -> None:
        super().__init__(mean)

    @property
    def distribution(self) -> Any:
        """``tfp.distributions.Normal``."""
        return _tfd().Normal(self.target, tf.sqrt(tf.cast(0.5, self.target.dtype)))

    def sampled_gradient(self, noise: Noise) -> tf.Tensor:
        """``2(f − y) = −√2 ε``."""
        root = tf.sqrt(tf.constant(2.0, self.target.dtype))
        return -root * noise.normal(tf.shape(self.target), self.target.dtype)

    def label_gradient(self, labels: tf.Tensor) -> tf.Tensor:
        """``2(f − y)``."""
        labels = tf.reshape(tf.cast(labels, self.target.dtype), tf.shape(self.target))
        return 2.0 * (self.target - labels)

    def root_column(self, index: tf.Tensor) -> tf.Tensor:
        """``√2``: a unit is one scalar."""
        del index
        return tf.fill(tf.shape(self.target), tf.sqrt(tf.constant(2.0, self.target.dtype)))

    def fisher_product(self, tangent: tf.Tensor) -> tf.Tensor:
        """``2t``."""
        return 2.0 * tangent


def _move_last(tensor: tf.Tensor, axis: int) -> tf.Tensor:
    order = [i for i in range(tensor.shape.rank) if i != axis]
    return tf.transpose(tensor, [*order, axis])


def _tfd() -> Any:
    """``tfp.distributions``, imported when first used: it costs seconds."""
    import tensorflow_probability as tfp

    return tfp.distributions
