"""From a Keras loss to the predictive distribution that the Fisher is taken of.

A Keras loss is h = Σ_u c_u·(−log p_u) over units u (mathematics.md §1). Here is which
distribution each of the supported losses stands for, and how an output tensor becomes one; where
the weights c_u come from is in `tfkfac.observation`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.given_distributions import Registered, Unknown
from tfkfac.predictive import Bernoulli, Categorical, Normal, Predictive


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


def _clip(probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Keras' clipping of probabilities, and its derivative (0 where it clips)."""
    epsilon = tf.cast(keras.config.epsilon(), probabilities.dtype)
    clipped = tf.clip_by_value(probabilities, epsilon, 1.0 - epsilon)
    return clipped, tf.cast(tf.equal(clipped, probabilities), probabilities.dtype)


def _full_precision(tensor: tf.Tensor) -> tf.Tensor:
    """Half precision cast up."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor
