"""Ground truth: the generalised Gauss-Newton matrix by automatic differentiation.

``G = Jᵀ H J``: J is the Jacobian of the logits in the parameters, H the Hessian of the loss *as
Keras reduces it* in the logits. Nothing of tfkfac takes part in that. `fisher` is its counterpart:
the whole Fisher matrix (no Kronecker approximation) as an estimator of tfkfac sees it.

Models here are x → z (the logits), and a `link` leads from z to y_pred, so that z is known even
where a softmax hides it. All is small and in float64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkfac import watched_losses
from tfkfac.fisher import Estimator
from tfkfac.gauss_newton import OutputCurvature
from tfkfac.noise import PhiloxNoise
from tfkfac.observation import LossCall, observe
from tfkfac.tangents import push_forward

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


def shrunk_softmax(logits: tf.Tensor) -> tf.Tensor:
    """Probabilities that do not sum to one: Keras' losses divide by the sum."""
    return tf.nn.softmax(logits) * _factors(logits)


def stretched_softmax(logits: tf.Tensor) -> tf.Tensor:
    """The same, with "probabilities" beyond one."""
    return tf.nn.softmax(logits) / _factors(logits)


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


@dataclasses.dataclass(frozen=True)
class Linearised:
    """A model at a batch: its logits, and how the parameters move them.

    Attributes:
        logits: One tensor for each output.
        jacobians: ``[N, scalars of an example, parameters]`` each.
        masks: The Keras masks that the model gave to its outputs, or None.
    """

    logits: list[tf.Tensor]
    jacobians: list[np.ndarray]
    masks: list[Any]

    @classmethod
    def of(cls, model: keras.Model, x: Any) -> Linearised:
        """By automatic differentiation, row by row."""
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape(persistent=True) as tape:
            logits = tf.nest.flatten(model(x))
        jacobians = [
            _rows(tape, z, variables).reshape(BATCH, -1, model.count_params()) for z in logits
        ]
        return cls(logits, jacobians, [getattr(z, "_keras_mask", None) for z in logits])

    def points(self) -> list[tf.Tensor]:
        """The logits anew, for a loss to be differentiated in."""
        copies = [tf.constant(z.numpy()) for z in self.logits]
        return [with_mask(z, mask) for z, mask in zip(copies, self.masks, strict=True)]


def gauss_newton(model: Linearised, loss: Callable[[list[tf.Tensor]], tf.Tensor]) -> np.ndarray:
    """``G = Jᵀ H J``.

    Args:
        model: With its J.
        loss: From the logits to h, scalar.

    Returns:
        ``[parameters, parameters]``, the variables flattened one after the other.
    """
    points = model.points()
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(points)
        with tf.GradientTape() as inner:
            inner.watch(points)
            value = loss(points)
        slopes = inner.gradient(value, points)
    hessian = np.concatenate([_rows(outer, slope, points) for slope in slopes])
    jacobian = np.concatenate([np.reshape(J, [-1, J.shape[-1]]) for J in model.jacobians])
    return jacobian.T @ hessian @ jacobian


def fisher(
    model: Linearised,
    calls: Callable[[list[tf.Tensor]], list[LossCall]],
    estimator: Estimator,
    noise: Any = None,
) -> np.ndarray:
    """``F = (1/N) Σ_passes Σ_n g_n g_nᵀ``, g_n what a pass sends back to example n's parameters.

    Args:
        model: With its J.
        calls: From the logits to what tfkfac notes of the losses.
        estimator: Of tfkfac.
        noise: For what is drawn; some by default.
    """
    points = model.points()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(points)
        observations = [observe(call) for call in calls(points)]
    targets = [observation.predictive.target for observation in observations]

    def backward(injected: list[tf.Tensor]) -> tf.Tensor:
        assert [g.shape for g in injected] == [t.shape for t in targets]
        at_logits = tape.gradient(targets, points, injected, unconnected_gradients="zero")
        gradients = tf.add_n(
            [
                tf.einsum("no,nop->np", tf.reshape(g, [len(J), -1]), J)
                for g, J in zip(at_logits, model.jacobians, strict=True)
            ]
        )
        return tf.matmul(gradients, gradients, transpose_a=True) / len(gradients)

    return estimator.sum(observations, noise or some_noise(), backward).numpy()


def form(
    model: Linearised,
    calls: Callable[[list[tf.Tensor]], list[LossCall]],
    u: np.ndarray,
    v: np.ndarray,
) -> float:
    """``uᵀFv`` as the quadratic model of tfkfac takes it, for parameters u and v."""
    points = model.points()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(points)
        observations = [observe(call) for call in calls(points)]
    targets = [observation.predictive.target for observation in observations]
    moved = [
        [tf.reshape(J @ direction, z.shape) for J, z in zip(model.jacobians, points, strict=True)]
        for direction in (u, v)
    ]
    tangents = push_forward(tape, targets, points, moved)
    return float(OutputCurvature(observations, some_noise(), tf.float64).form(*tangents))


def some_noise() -> PhiloxNoise:
    """For estimators whose result does not depend on it."""
    return PhiloxNoise(0, tf.constant(0))


@functools.cache
def network(shape: tuple[int, ...]) -> Linearised:
    """A nonlinear network from two features to logits of the given shape, at `inputs()`."""
    scalars = int(np.prod(shape, dtype=int))
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2, activation="tanh", bias_initializer="random_normal"),
            keras.layers.Dense(scalars, bias_initializer="random_normal"),
            keras.layers.Reshape(shape),
        ]
    )
    return Linearised.of(model, inputs())


def inputs() -> np.ndarray:
    """A batch of inputs, the same each time."""
    return np.random.default_rng(0).normal(size=(BATCH, 2))


def calls_of(model: keras.Model, y: Any, y_pred: Any, sample_weight: Any = None) -> list[LossCall]:
    """The calls of a compiled model's losses, as tfkfac notes them in a training step."""
    calls: list[LossCall] = []

    def note(value: tf.Tensor, *call: Any) -> tf.Tensor:
        calls.append(LossCall(*call))
        return value

    with watched_losses.watching_losses(model._compile_loss, note):
        model.compute_loss(None, y, y_pred, sample_weight)
    return calls


def _factors(logits: tf.Tensor) -> tf.Tensor:
    """A number in (0, 1] for each example."""
    shape = [-1] + [1] * (logits.shape.rank - 1)
    return tf.reshape(1.0 / tf.range(1.0, BATCH + 1, dtype=logits.dtype), shape)


def _rows(tape: tf.GradientTape, outputs: tf.Tensor, sources: Sequence[Any]) -> np.ndarray:
    """The Jacobian of `outputs` as a matrix, row by row."""
    rows = []
    for one in np.eye(int(tf.size(outputs))):
        seed = tf.constant(one.reshape(outputs.shape), outputs.dtype)
        gradients = tape.gradient(outputs, sources, seed, unconnected_gradients="zero")
        rows.append(np.concatenate([np.ravel(gradient) for gradient in gradients]))
    return np.stack(rows)
