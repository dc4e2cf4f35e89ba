"""The loss of the same batch at other weights: the same noise, and nothing else is changed."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkfac import keras_internals, watched_losses
from tfkfac.record import Record


def can_look_again(record: Record) -> bool:
    """Whether the loss of a step can be evaluated again.

    That takes a model that was called as a whole, and a `compute_loss` of what it returned.
    """
    replay = record.replay
    if replay is None or replay.loss_arguments is None:
        return False
    seen = [id(tensor) for tensor in tf.nest.flatten(replay.outputs)]
    judged = [id(tensor) for tensor in tf.nest.flatten(replay.loss_arguments.get("y_pred"))]
    return seen == judged


def loss_at_present_weights(model: Any, record: Record) -> tf.Tensor:
    """h at the weights as they are now, as `Replay.part_of_whole` has it of those before.

    The seeds of dropout and the states of recurrent layers are those that the recorded pass began
    with; afterwards these, the moving averages and the metrics are as that pass left them.

    Args:
        model: The model; its optimizer must not observe this pass.
        record: For which `can_look_again`.
    """
    replay = record.replay
    assert replay is not None and replay.loss_arguments is not None
    states = [variable for variable, _ in record.states]
    changed = [*states, *keras_internals.metric_variables(model)]
    after = [tf.convert_to_tensor(variable) for variable in changed]
    for variable, before in record.states:
        variable.assign(before)
    args, kwargs = replay.arguments
    outputs = model(*args, **{**kwargs, "training": True})
    _, *arguments = replay.loss_arguments.items()
    calls, corrections = iter(record.losses), []

    def note(value: tf.Tensor, *call: Any) -> tf.Tensor:
        del call
        seen = next(calls)
        if seen.share is not None:
            corrections.append(seen.correction(value))
        return value

    with watched_losses.watching_losses(keras_internals.compiled_losses(model), note):
        loss = model.compute_loss(**{**dict(arguments), "y_pred": outputs})
    loss = tf.add_n([loss, *corrections])
    with tf.control_dependencies([loss]):
        for variable, value in zip(changed, after, strict=True):
            variable.assign(value)
    return loss
