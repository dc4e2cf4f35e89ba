"""The few things tfkfac needs of Keras that are not its public API, in one place.

But for those that it takes to watch losses (`tfkfac.watched_losses`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf


def trainer_class() -> type:
    """The class that defines `compile` for every Keras model.

    Keras compares ``type(model).compile`` with this class' to see whether a user has overridden it.
    """
    return next(base for base in keras.Model.__mro__ if "compile" in vars(base))


def fit_class() -> type:
    """The class that defines `fit` for every Keras model."""
    return next(base for base in keras.Model.__mro__ if "fit" in vars(base))


@contextlib.contextmanager
def fit_over_processes(model: Any) -> Iterator[None]:
    """While the context lasts, `fit` works where several processes share the training.

    Under MultiWorkerMirroredStrategy Keras (3.15) takes a replica's share of the first batch for a
    tensor when it builds the model, and the logs of a step, which are scalars, for something with
    an axis of examples. Without a strategy it builds a model that has no weights yet while it
    traces a step, when weights cannot be sent to other processes.

    Args:
        model: That is to be fitted.
    """
    from keras.src.backend.tensorflow import trainer

    strategy = model.distribute_strategy
    reduce_per_replica = trainer.reduce_per_replica

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = tf.nest.map_structure(
                lambda share: strategy.experimental_local_results(share)[0], next(batches)
            )
        with strategy.scope():
            model._symbolic_build(data_batch=data_batch)

    def reduce(values: Any, strategy: Any, reduction: str) -> Any:
        if reduction not in ("auto", "mean"):
            return reduce_per_replica(values, strategy, reduction)
        return tf.nest.map_structure(lambda log: strategy.reduce("MEAN", log, axis=None), values)

    multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if multi_worker:
        trainer.reduce_per_replica = reduce
    if multi_worker or not all(layer.built for layer in flatten_layers(model)):
        vars(model)["_maybe_symbolic_build"] = build
    try:
        yield
    finally:
        trainer.reduce_per_replica = reduce_per_replica
        vars(model).pop("_maybe_symbolic_build", None)


def flatten_layers(model: Any) -> list[Any]:
    """All layers below `model`, nested to any depth, each once."""
    return list(model._flatten_layers(include_self=False))


def settings_of_layers(model: Any) -> list[str]:
    """Class and settings of every layer below `model`, but for names, seeds and what is nested."""
    found = []
    for layer in flatten_layers(model):
        try:
            config = layer.get_config()
        except NotImplementedError:
            config = {}
        plain = (str, bool, int, float, tuple)
        settings = {
            key: value
            for key, value in sorted(config.items())
            if isinstance(value, plain) and key not in ("name", "seed")
        }
        found.append(f"{type(layer).__name__} {settings}")
    return found


def mask_of(tensor: Any) -> tf.Tensor | None:
    """The Keras mask that travels with a tensor."""
    return getattr(tensor, "_keras_mask", None)


def mask_at_places(layer: Any, inputs: Any, arguments: Mapping[str, Any]) -> tf.Tensor | None:
    """Which places of a layer's input count: the mask it came with, or the one the layer makes.

    Args:
        layer: The layer.
        inputs: Its input.
        arguments: Those of its `call`, by name.
    """
    if getattr(layer, "mask_zero", False) and not arguments.get("reverse"):
        return keras.layers.Embedding.compute_mask(layer, inputs)
    return mask_of(inputs)


def is_rematerialised(layer: Any) -> bool:
    """Whether Keras computes a layer anew in the backward pass (``keras.RematScope``)."""
    remat = getattr(layer, "_remat_mode", None)
    if remat is None or remat.mode in (None, "activations"):
        return False
    return remat.mode != "list_of_layers" or layer.name in remat.layer_names


def batch_moments(layer: Any, inputs: tf.Tensor, mask: tf.Tensor | None) -> Any:
    """Mean and variance that a BatchNormalization layer takes of a batch."""
    return layer._moments(inputs, mask)


def arguments_of(layer: Any, args: Any, kwargs: Any, method: str = "call") -> dict[str, Any]:
    """Name → value of the arguments of a layer's `call`, or another method."""
    signature = inspect.signature(getattr(type(layer), method))
    return dict(signature.bind(layer, *args, **kwargs).arguments)


def states_of(model: Any) -> list[Any]:
    """Variables that a forward pass may change.

    Moving averages, seeds of dropout, states of recurrent layers (which Keras does not count among
    a layer's variables); not weights that are frozen.
    """
    layers = [model, *flatten_layers(model)]
    found = [v for layer in layers for v in layer._non_trainable_variables]
    recurrent = [layer.states for layer in layers if isinstance(layer, keras.layers.RNN)]
    found += [state for state in tf.nest.flatten(recurrent) if state is not None]
    return list({id(variable): variable for variable in [*found, *seeds_of(model)]}.values())


def unwrapped(optimizer: Any, attribute: str) -> Any:
    """What is in a ``LossScaleOptimizer``, and of a ``MultiOptimizer`` the part with an attribute.

    Args:
        optimizer: An optimizer, or None.
        attribute: Its name.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    parts = getattr(optimizer, "optimizers", [])
    return next((part for part in parts if hasattr(type(part), attribute)), optimizer)


def is_one_of_several(optimizer: Any, whole: Any) -> bool:
    """Whether an optimizer is a part of a ``MultiOptimizer``, which builds it for its variables.

    Args:
        optimizer: The part.
        whole: What the model was compiled with, or None.
    """
    whole = getattr(whole, "inner_optimizer", whole)
    return any(part is optimizer for part in getattr(whole, "optimizers", ()))


def seeds_of(model: Any) -> list[Any]:
    """The states of the generators of a model's random numbers (of dropout, say), each once."""
    layers = [model, *flatten_layers(model)]
    found = [seeds.state for layer in layers for seeds in layer._seed_generators]
    return list({id(variable): variable for variable in found}.values())


def metric_variables(model: Any) -> list[Any]:
    """Variables that an evaluation of the loss may change."""
    return list(model.metrics_variables)


def examples_of_loss(model: Any) -> float | None:
    """Of how many examples a model's mean loss is, since its metrics were reset; None: unknown."""
    tracker = getattr(model, "_loss_tracker", None)
    return None if tracker is None else float(tracker.count.numpy())


def uncast(variable: Any) -> tf.Variable:
    """The TensorFlow variable behind a Keras variable, whatever a dtype policy casts it to."""
    return variable._value


def rnn(*args: Any, **kwargs: Any) -> Any:
    """The loop over the steps of a sequence with which Keras' recurrent layers are made."""
    from keras.src import backend

    return backend.rnn(*args, **kwargs)


def fused_paths(layer: Any) -> list[str]:
    """Methods by which Bidirectional asks whether both its layers can run as one operation.

    That operation (on GPUs, in newer versions of Keras) takes the place of both `call`s.
    """
    names = ("_can_attempt_fused_lstm", "_can_attempt_fused_gru")
    return [name for name in names if hasattr(layer, name)]


def set_mask(tensor: Any, mask: tf.Tensor | None) -> None:
    """Makes a Keras mask travel with a tensor."""
    if mask is not None:
        tensor._keras_mask = mask


def logits_of(probabilities: Any, op_type: str) -> tf.Tensor | None:
    """The logits behind probabilities, found in the two ways in which Keras' losses find them.

    Args:
        probabilities: What a model returned.
        op_type: "Softmax" or "Sigmoid".
    """
    logits = getattr(probabilities, "_keras_logits", None)
    if logits is not None:
        return logits
    if not tf.is_symbolic_tensor(probabilities) or probabilities.op.type != op_type:
        return None
    return probabilities.op.inputs[0]


def loss_arguments(loss: Any) -> tuple[Any, dict[str, Any]]:
    """What a Keras loss object computes: its function (or class) and its keyword arguments."""
    wrapper = keras.losses.MeanSquaredError.call
    overridden = isinstance(loss, keras.losses.Loss) and type(loss).call is not wrapper
    function = None if overridden else getattr(loss, "fn", None)
    return (type(loss) if function is None else function), dict(getattr(loss, "_fn_kwargs", {}))


def loss_object(loss: Any) -> keras.losses.Loss:
    """A loss as `compile` makes it of a function; objects stay as they are."""
    from keras.src.losses.losses import LossFunctionWrapper

    return loss if isinstance(loss, keras.losses.Loss) else LossFunctionWrapper(loss)


def function_of_loss_class(loss: Any) -> list[Any]:
    """The function that one of Keras' own loss classes wraps, which names of losses stand for."""
    wraps = isinstance(loss, type) and loss.call is keras.losses.MeanSquaredError.call  # type: ignore[attr-defined]
    if not wraps or not loss.__module__.startswith("keras."):
        return []
    return [loss_arguments(loss())[0]]


def compiled_losses(model: Any) -> Any:
    """The object that `compile` made of the model's losses, or None."""
    return getattr(model, "_compile_loss", None)


def is_rehearsal() -> bool:
    """Whether Keras calls a layer only to see of what shapes its variables and outputs are."""
    from keras.src.backend.common.stateless_scope import in_stateless_scope

    return bool(in_stateless_scope())


def gradient_tape_is_active() -> bool:
    """Whether some ``tf.GradientTape`` is recording: a forward pass outside is not training."""
    from tensorflow.python.eager import record

    return bool(record.could_possibly_record())
