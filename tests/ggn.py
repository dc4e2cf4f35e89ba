"""Ground truth: the generalised Gauss-Newton matrix by automatic differentiation.

``G = Jᵀ H J``: J is the Jacobian of the logits in the parameters, H the Hessian of the loss *as
Keras reduces it* in the logits. Nothing of tfkfac takes part in that. `full_fisher` is its
counterpart: the whole Fisher matrix (no Kronecker approximation) as an estimator of tfkfac sees it.

The problems' network is x → z (the logits) → `link` → y_pred, so that z is known even where a model
hides it behind a softmax. Small and float64 throughout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.fisher import Estimator
from tfkfac.losses import LossCall, Observation, observe

Link = Callable[[tf.Tensor], tf.Tensor]

BATCH = 3


def identity(logits: tf.Tensor) -> tf.Tensor:
    """The model returns logits (or means)."""
    return logits


def softmax(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities behind which Keras finds the logits."""
    return keras.activations.softmax(logits)


def sigmoid(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities behind which Keras finds the logits."""
    return keras.activations.sigmoid(logits)


def hidden_softmax(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities behind which nobody finds the logits."""
    return tf.identity(tf.nn.softmax(logits))


def hidden_sigmoid(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities behind which nobody finds the logits."""
    return tf.identity(tf.sigmoid(logits))


def unnormalised_softmax(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities up to a factor of each example: Keras divides by their sum."""
    return tf.nn.softmax(logits) * tf.reshape(
        tf.range(1.0, BATCH + 1, dtype=logits.dtype), [-1] + [1] * (logits.shape.rank - 1)
    )


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss, the outputs that it judges and all that may weight it.

    Attributes:
        loss: A Keras loss object.
        shape: Shape of the logits without the batch axis.
        labels: y_true.
        link: From logits to y_pred.
        sample_weight: As a user passes it, or None.
        mask: The Keras mask of y_pred, or None.
    """

    loss: Any
    shape: tuple[int, ...]
    labels: Any
    link: Link = identity
    sample_weight: Any = None
    mask: Any = None

    def value(self, logits: tf.Tensor) -> tf.Tensor:
        """h, scalar: what Keras makes of the logits; divided by N where Keras sums."""
        outputs = with_mask(self.link(logits), self.mask)
        reduced = tf.reduce_sum(self.loss(self.labels, outputs, self.sample_weight))
        summed = self.loss.reduction in ("sum", "none", None)
        return reduced / BATCH if summed else reduced

    def call(self, logits: tf.Tensor) -> LossCall:
        """What tfkfac notes of one call of the loss."""
        outputs = with_mask(self.link(logits), self.mask)
        return LossCall(self.loss, self.labels, outputs, self.sample_weight)


def with_mask(outputs: tf.Tensor, mask: Any) -> tf.Tensor:
    """`outputs`, with a Keras mask that travels with them."""
    if mask is not None:
        outputs._keras_mask = tf.constant(mask)
    return outputs


def network(shape: tuple[int, ...]) -> keras.Model:
    """A nonlinear network from two features to logits of the given shape."""
    sizes = int(np.prod(shape, dtype=int))
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2, activation="tanh", bias_initializer="random_normal"),
            keras.layers.Dense(sizes, bias_initializer="random_normal"),
            keras.layers.Reshape(shape),
        ]
    )


def inputs() -> np.ndarray:
    """A batch of inputs, the same each time."""
    return np.random.default_rng(0).normal(size=(BATCH, 2))


def ggn_of(problem: Problem, model: keras.Model) -> np.ndarray:
    """G of one problem, in the order of the model's trainable variables."""
    return gauss_newton(
        lambda: [model(inputs())],
        lambda logits: problem.value(logits[0]),
        model.trainable_variables,
    )


def fisher_of(
    problem: Problem, model: keras.Model, estimator: Estimator, noise: Any = None
) -> np.ndarray:
    """What an estimator of tfkfac makes of the same problem."""
    with tf.GradientTape(persistent=True) as tape:
        observations = [observe(problem.call(model(inputs())))]
    return full_fisher(estimator, observations, tape, model.trainable_variables, noise)


def gauss_newton(
    forward: Callable[[], list[tf.Tensor]],
    loss: Callable[[list[tf.Tensor]], tf.Tensor],
    variables: Sequence[Any],
) -> np.ndarray:
    """``Jᵀ H J`` at the logits.

    Args:
        forward: Computes the logits, one tensor for each output of the model.
        loss: From these logits to h, scalar.
        variables: The parameters.

    Returns:
        ``[parameters, parameters]``, the variables flattened one after the other.
    """
    with tf.GradientTape(persistent=True) as tape:
        logits = forward()
    jacobian = np.concatenate([_rows(tape, z, variables) for z in logits])
    points = [tf.constant(z.numpy()) for z in logits]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(points)
        with tf.GradientTape() as inner:
            inner.watch(points)
            value = loss(points)
        slopes = inner.gradient(value, points)
    hessian = np.concatenate([_rows(outer, slope, points) for slope in slopes])
    return jacobian.T @ hessian @ jacobian


def full_fisher(
    estimator: Estimator,
    observations: Sequence[Observation],
    tape: tf.GradientTape,
    variables: Sequence[Any],
    noise: Any = None,
) -> np.ndarray:
    """``F = (1/N) Σ_passes Σ_n g_n g_nᵀ`` over examples n, g_n the gradient that pass sends back.

    Args:
        estimator: Of tfkfac.
        observations: What tfkfac sees of the losses.
        tape: Persistent; leads from the observations' targets back to the variables.
        variables: The parameters.
        noise: For estimators that sample.
    """
    targets = [observation.predictive.target for observation in observations]
    jacobians = [
        tf.reshape(_rows(tape, t, variables), [BATCH, -1, _parameters(variables)]) for t in targets
    ]

    def backward(injected: list[tf.Tensor]) -> tf.Tensor:
        assert [g.shape for g in injected] == [t.shape for t in targets]
        gradients = tf.add_n(
            [
                tf.einsum("no,nop->np", tf.reshape(g, [BATCH, -1]), jacobian)
                for g, jacobian in zip(injected, jacobians, strict=True)
            ]
        )
        return tf.matmul(gradients, gradients, transpose_a=True) / BATCH

    return estimator.sum(observations, noise, backward).numpy()


def calls_of(
    model: keras.Model, x: Any, y: Any, sample_weight: Any = None, link: Link = identity
) -> list[LossCall]:
    """The calls of a compiled model's losses, as tfkfac notes them in a training step."""
    calls: list[LossCall] = []

    def note(loss: Any, weight: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> None:
        calls.append(LossCall(loss, y_true, y_pred, sample_weight, weight))

    outputs = tf.nest.map_structure(link, model(x))
    with keras_internals.watching_losses(model._compile_loss, note):
        model.compute_loss(x, y, outputs, sample_weight)
    return calls


def _rows(tape: tf.GradientTape, outputs: tf.Tensor, sources: Sequence[Any]) -> np.ndarray:
    """The Jacobian of `outputs` as a matrix, row by row."""
    sources = [getattr(source, "value", source) for source in sources]
    rows = []
    for one in np.eye(int(tf.size(outputs))):
        seed = tf.reshape(tf.constant(one, outputs.dtype), outputs.shape)
        gradients = tape.gradient(
            outputs, sources, output_gradients=seed, unconnected_gradients="zero"
        )
        rows.append(np.concatenate([np.ravel(gradient) for gradient in gradients]))
    return np.stack(rows)


def _parameters(variables: Sequence[Any]) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)
