"""The exact product of the generalised Gauss-Newton matrix of a model with a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.gauss_newton import pull_back
from tfkfac.observation import LossCall, Observation, observe
from tfkfac.tangents import push_forward


def fisher_vector_product(
    model: Any,
    loss: Any,
    x: Any,
    v: Sequence[Any],
    *,
    y: Any = None,
    sample_weight: Any = None,
) -> list[tf.Tensor]:
    """``F v`` with F the generalised Gauss-Newton matrix of the loss as Keras reduces it.

    Nothing is sampled and nothing is factored: a forward pass, a Jacobian-vector product and a
    backward pass. The model runs as in inference (no dropout, moving averages). With a loss that is
    summed over the batch, F is that of the loss divided by the batch size.

    Example:

    ```python
    v = [keras.random.normal(variable.shape) for variable in model.trainable_variables]
    Fv = tfkfac.fisher_vector_product(model, "sparse_categorical_crossentropy", x, v)
    ```

    Args:
        model: A built Keras model.
        loss: A ``keras.losses.Loss``, a name or a loss function; for a model of several outputs, a
            structure of them like that of the outputs.
        x: A batch of inputs.
        v: A tensor for each of ``model.trainable_variables``.
        y: The labels. Only a loss that leaves some labels out (``ignore_class``) needs them: no
            other labels play a part in F.
        sample_weight: As for the loss.

    Returns:
        A tensor for each of ``model.trainable_variables``.

    Raises:
        ValueError: `v` does not fit the model, or the loss has no known distribution.
    """
    variables = list(model.trainable_variables)
    _require_fit(variables, v)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch([variable.value for variable in variables])
        outputs = model(x, training=False)
        observations = _observe(loss, outputs, y, sample_weight)
    targets = [observation.predictive.target for observation in observations]
    (tangents,) = push_forward(tape, targets, variables, [v])
    pulled = [
        tf.cast(pull_back(observation, tangent), observation.predictive.target.dtype)
        for observation, tangent in zip(observations, tangents, strict=True)
    ]
    products = tape.gradient(
        targets,
        [variable.value for variable in variables],
        output_gradients=pulled,
        unconnected_gradients="zero",
    )
    return [tf.convert_to_tensor(product) for product in products]


def _require_fit(variables: Sequence[Any], v: Sequence[Any]) -> None:
    shapes = [tuple(variable.shape) for variable in variables]
    given = [tuple(tf.convert_to_tensor(each).shape) for each in v]
    if shapes != given:
        raise ValueError(
            "Argument `v` must have a tensor for each of model.trainable_variables, of shapes "
            f"{shapes}; got shapes {given}."
        )


def _observe(loss: Any, outputs: Any, y: Any, sample_weight: Any) -> list[Observation]:
    """The losses of all outputs."""
    flat_outputs = tf.nest.flatten(outputs)
    losses = [keras.losses.get(each) for each in tf.nest.flatten(loss)]
    if len(losses) == 1:
        losses *= len(flat_outputs)
    if len(losses) != len(flat_outputs):
        raise ValueError(
            f"Argument `loss` must be one loss, or one for each of the {len(flat_outputs)} outputs "
            f"of the model; got {len(losses)}."
        )
    labels = [None] * len(losses) if y is None else tf.nest.flatten(y)
    weights = tf.nest.flatten(sample_weight)
    if len(weights) == 1:
        weights *= len(losses)
    observations = []
    for each, output, label, weight in zip(losses, flat_outputs, labels, weights, strict=True):
        known = keras_internals.loss_object(each)
        label = _any_labels(known, output) if label is None else label
        observations.append(observe(LossCall(known, label, output, weight)))
    return observations


def _any_labels(loss: keras.losses.Loss, outputs: tf.Tensor) -> tf.Tensor:
    """Labels of the right shape: no label is in F."""
    function, _ = keras_internals.loss_arguments(loss)
    if function is keras.losses.sparse_categorical_crossentropy:
        return tf.zeros(tf.shape(outputs)[:-1], tf.int32)
    return tf.zeros_like(outputs)
