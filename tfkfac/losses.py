"""From a Keras loss to the predictive distribution that the Fisher is taken of.

A Keras loss is h = Σ_u c_u·(−log p_u) over units u (mathematics.md §1). Here is which
distribution each of the supported losses stands for, how an output tensor becomes one, and where
the weights c_u come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals, linalg
from tfkfac.given_distributions import Registered, Unknown
from tfkfac.predictive import Bernoulli, Categorical, Normal, Predictive


@dataclasses.dataclass(frozen=True, eq=False)
class LossCall:
    """One call of a Keras loss, as it was seen in a training step.

    Attributes:
        loss: The loss object.
        labels: y_true.
        outputs: y_pred, the tensor that the model returned.
        sample_weight: As Keras passed it on.
        loss_weight: The factor of this loss in the total loss, or None.
    """

    loss: keras.losses.Loss
    labels: Any
    outputs: tf.Tensor
    sample_weight: Any = None
    loss_weight: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """A predictive distribution with the weights of its units in the total loss.

    Attributes:
        predictive: The distribution.
        labels: y_true (only ``fisher="empirical"`` looks).
        weights: N·c_u, of the shape of Keras' loss values (before its reduction).
        root_weights: √(N·c_u) of each scalar of the target, broadcastable to it.
        weighted: Whether masks or sample weights make the weights differ.
        batch: N, the batch size of the model, an integer scalar.
        summed: Whether Keras sums over the batch, so that h is the loss divided by N.
    """

    predictive: Predictive
    labels: tf.Tensor
    weights: tf.Tensor
    root_weights: tf.Tensor
    weighted: bool
    batch: tf.Tensor
    summed: bool

    def inject(self, gradient: tf.Tensor) -> tf.Tensor:
        """√(N·c_u) times a gradient at the logits, as a gradient at the target."""
        at_target = self.predictive.to_target(gradient)
        weighted = at_target * tf.cast(self.root_weights, at_target.dtype)
        return tf.cast(weighted, self.predictive.target.dtype)


def observe(call: LossCall) -> Observation:
    """Finds the predictive distribution and the weights of one call of a loss."""
    predictive = predictive_of(call.loss, call.outputs)
    ones, mask = _ones_and_mask(call)
    weights = _reduction_weights(call, ones, mask)
    batch = tf.shape(call.outputs)[0]
    summed = call.loss.reduction in ("sum", "none", None)
    if not summed:
        weights *= tf.cast(batch, weights.dtype)
    if call.loss_weight is not None:
        weights *= _loss_weight(call.loss_weight, weights.dtype)
    weighted = call.sample_weight is not None or mask is not None
    if weighted or tf.is_tensor(call.loss_weight):
        weights = _require_non_negative(weights)
    root_weights = tf.sqrt(_at_target(weights, predictive))
    return Observation(predictive, call.labels, weights, root_weights, weighted, batch, summed)


def predictive_of(loss: keras.losses.Loss, outputs: tf.Tensor) -> Predictive:
    """The predictive distribution of a Keras loss at a model's output.

    Args:
        loss: A Keras loss object.
        outputs: y_pred.

    Returns:
        The distribution; `Unknown` for a loss that is not supported.
    """
    function, arguments = keras_internals.loss_arguments(loss)
    make = _DISTRIBUTIONS.get(type(loss)) or _DISTRIBUTIONS.get(function)
    if make is None:
        return Unknown(outputs, loss.call, unsupported_message(loss))
    return make(outputs, **arguments)


def register(loss: Any, distribution: Callable[[tf.Tensor], Any]) -> None:
    """Tells tfkfac which distribution a loss of yours is the negative log-likelihood of.

    Example:

    ```python
    def poisson_nll(y_true, y_pred):
        return keras.ops.mean(keras.ops.exp(y_pred) - y_true * y_pred, axis=-1)

    tfkfac.losses.register(
        poisson_nll, lambda y_pred: tfp.distributions.Poisson(log_rate=y_pred)
    )
    ```

    Args:
        loss: A subclass of ``keras.losses.Loss``, or a loss function ``(y_true, y_pred)``.
        distribution: From y_pred to a ``tfp.distributions`` object; one entry of its batch shape
            is one unit. Where the loss takes means over axes of that shape (as Keras' losses do),
            the factor is found by comparing shapes.

    Raises:
        ValueError: `loss` is neither a loss class nor a function, or `distribution` no function.
    """
    if not callable(loss) or isinstance(loss, keras.losses.Loss):
        raise ValueError(
            f"Argument `loss` must be a keras.losses.Loss subclass or a loss function, got "
            f"{loss!r}; pass the class or the function, not an instance or a name."
        )
    if not callable(distribution):
        raise ValueError(
            f"Argument `distribution` must be a function from y_pred to a tfp distribution, got "
            f"{distribution!r}."
        )
    for key in (loss, *keras_internals.function_of_loss_class(loss)):
        _DISTRIBUTIONS[key] = lambda outputs, **_: Registered(outputs, distribution)


def require_supported(loss: Any) -> None:
    """Raises if a model compiled with `loss` has no predictive distribution.

    Args:
        loss: What the user passed to `compile`: names, functions, objects, nested at will.

    Raises:
        ValueError: Naming the loss and the ways out.
    """
    for leaf in tf.nest.flatten(loss):
        if leaf is None or str(leaf).lower() in ("crossentropy", "ce"):  # Keras picks by shapes.
            continue
        found = keras.losses.get(leaf)
        keys = (found, type(found), *keras_internals.loss_arguments(found)[:1])
        if not any(key in _DISTRIBUTIONS for key in keys):
            raise ValueError(unsupported_message(found))


def unsupported_message(loss: Any) -> str:
    """Why a loss is refused, and the two ways out."""
    function = keras_internals.loss_arguments(loss)[0]
    name = getattr(loss, "name", None) or getattr(loss, "__name__", None) or repr(loss)
    why = ""
    if function is keras.losses.mean_absolute_error or name == "mean_absolute_error":
        why = (
            " (its second derivative is zero wherever it exists, so it has no Gauss-Newton matrix;"
            " a Laplace distribution registered for it would give it a Fisher matrix)"
        )
    return (
        f"The loss {name!r} has no known predictive distribution{why}. Either say which one it is, "
        "tfkfac.losses.register(loss, distribution), or use the labels of the data: "
        "tfkfac.KFAC(fisher='empirical')."
    )


def _categorical(
    outputs: tf.Tensor,
    *,
    from_logits: bool = False,
    axis: int = -1,
    label_smoothing: float = 0.0,
    **_: Any,
) -> Predictive:
    """Keras divides probabilities by their sum before it clips them."""
    probabilities = _full_precision(outputs)
    if not from_logits:
        probabilities /= tf.reduce_sum(probabilities, axis, keepdims=True)
    return _classes(outputs, probabilities, from_logits, axis, label_smoothing)


def _sparse_categorical(
    outputs: tf.Tensor, *, from_logits: bool = False, axis: int = -1, **_: Any
) -> Predictive:
    """Keras divides clipped probabilities by their sum."""
    return _classes(outputs, _full_precision(outputs), from_logits, axis)


def _classes(
    outputs: tf.Tensor,
    probabilities: tf.Tensor,
    from_logits: bool,
    axis: int,
    label_smoothing: float = 0.0,
) -> Predictive:
    logits = keras_internals.logits_of(outputs, "Softmax")
    if logits is None and from_logits:
        logits = outputs
    if logits is not None:
        return Categorical(
            _full_precision(logits), axis, target=logits, label_smoothing=label_smoothing
        )
    clipped, chain = _clip(probabilities)
    # A factor that an example's classes share moves no probability: the chain leaves it out.
    chain = tf.math.divide_no_nan(chain, _full_precision(outputs))
    return Categorical(
        tf.math.log(clipped), axis, target=outputs, chain=chain, label_smoothing=label_smoothing
    )


def _bernoulli(
    outputs: tf.Tensor,
    *,
    from_logits: bool = False,
    axis: int = -1,
    label_smoothing: float = 0.0,
    **_: Any,
) -> Predictive:
    arguments: dict[str, Any] = {"mean_axis": axis, "label_smoothing": label_smoothing}
    logits = keras_internals.logits_of(outputs, "Sigmoid")
    if logits is None and from_logits:
        logits = outputs
    if logits is not None:
        return Bernoulli(_full_precision(logits), target=logits, **arguments)
    clipped, chain = _clip(_full_precision(outputs))
    log_odds = tf.math.log(clipped) - tf.math.log1p(-clipped)
    chain /= clipped * (1.0 - clipped)
    return Bernoulli(log_odds, target=outputs, chain=chain, **arguments)


def _normal(outputs: tf.Tensor, **_: Any) -> Predictive:
    return Normal(outputs)


_DISTRIBUTIONS: dict[Any, Callable[..., Predictive]] = {
    keras.losses.categorical_crossentropy: _categorical,
    keras.losses.sparse_categorical_crossentropy: _sparse_categorical,
    keras.losses.binary_crossentropy: _bernoulli,
    keras.losses.mean_squared_error: _normal,
}
"""Loss function or class → outputs and the loss' arguments → distribution."""


_NEGATIVE = (
    "tfkfac: a sample, class or loss weight is negative; a Fisher matrix has no negative weights. "
    "Use weights >= 0."
)


class _ValuesAsTheyAre(keras.losses.Loss):
    """Reduces given loss values exactly as Keras would reduce them."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        del y_true
        return y_pred


def _ones_and_mask(call: LossCall) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Ones of the shape of the loss values before their reduction, and the values' mask.

    The values themselves are not used, so in a graph they are not computed where their shape is
    known up to the batch.
    """
    dtype = call.loss.dtype
    outputs = tf.cast(call.outputs, dtype)
    labels = tf.cast(tf.convert_to_tensor(call.labels), dtype)
    values = call.loss.call(labels, outputs)
    masks = [
        mask
        for mask in (keras_internals.mask_of(call.outputs), keras_internals.mask_of(values))
        if mask is not None
    ]
    mask = tf.logical_and(*masks) if len(masks) == 2 else next(iter(masks), None)
    sizes = values.shape.as_list()
    if None in sizes[1:]:
        return tf.ones_like(values), mask
    batch = [tf.shape(outputs)[0] if size is None else size for size in sizes[:1]]
    return tf.ones([*batch, *sizes[1:]], dtype), mask


def _reduction_weights(call: LossCall, ones: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """c_u = ∂(reduced loss) / ∂(loss value of u), by differentiating Keras' own reduction."""
    reduction = _ValuesAsTheyAre(
        name="reduction", reduction=call.loss.reduction, dtype=call.loss.dtype
    )
    with tf.GradientTape() as tape:
        tape.watch(ones)
        keras_internals.set_mask(ones, mask)
        reduced = reduction(ones, ones, sample_weight=call.sample_weight)
    return tape.gradient(reduced, ones)


def _at_target(weights: tf.Tensor, predictive: Predictive) -> tf.Tensor:
    """N·c_u of each scalar of the target: the mean over D scalars that Keras took is undone.

    Keras' loss values miss an axis of the target (the classes, or the axis of the mean), and
    sometimes a squeezed last axis: axes are put back until the ranks agree.
    """
    if not isinstance(predictive, Unknown):
        units = tf.cast(predictive.units(), weights.dtype)
        weights *= tf.cast(tf.size(weights), weights.dtype) / units
    rank = predictive.target.shape.rank
    if weights.shape.rank == rank - 1:
        return tf.expand_dims(
            weights, predictive.mean_axis if predictive.axis is None else predictive.axis
        )
    while weights.shape.rank < rank:
        weights = weights[..., None]
    return weights


def _loss_weight(weight: Any, dtype: tf.DType) -> tf.Tensor:
    """The factor of a loss."""
    if not tf.is_tensor(weight) and weight < 0:
        raise ValueError(f"{_NEGATIVE} Got the loss weight {weight}.")
    return linalg.scalar(weight, dtype)


def _require_non_negative(weights: tf.Tensor) -> tf.Tensor:
    check = tf.debugging.assert_non_negative(weights, _NEGATIVE)
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(weights)


def _clip(probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Keras' clipping of probabilities, and its derivative (0 where it clips)."""
    epsilon = tf.cast(keras.config.epsilon(), probabilities.dtype)
    clipped = tf.clip_by_value(probabilities, epsilon, 1.0 - epsilon)
    return clipped, tf.cast(tf.equal(clipped, probabilities), probabilities.dtype)


def _full_precision(tensor: tf.Tensor) -> tf.Tensor:
    """Half precision cast up."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor
