"""Tells of every loss that a compiled model evaluates, which Keras' public API does not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


@contextlib.contextmanager
def watching_losses(compiled: Any, note: Callable[..., Any]) -> Iterator[None]:
    """While the context lasts, tells of every loss that a compiled model evaluates.

    Keras resolves names, structures and weights of losses when it first sees data; here the
    resolved losses are replaced by ones that also call `note`, and put back afterwards.

    Args:
        compiled: What `keras_internals.compiled_losses` returned.
        note: Called with ``value, loss, y_true, y_pred, sample_weight, loss_weight``; Keras gets
            the value that it returns.

    Raises:
        ValueError: Another optimizer watches them already.
    """
    thread, build = threading.get_ident(), compiled.build

    def watch() -> None:
        noted = [each.loss for each in compiled._flat_losses if isinstance(each.loss, _NotedLoss)]
        if any(thread in loss.notes for loss in noted):
            raise ValueError(
                "Two KFACs watch one model. Call detach() of the one that does not train it; of a "
                "MultiOptimizer, one part can be a KFAC."
            )
        compiled._flat_losses = [
            entry
            if isinstance(entry.loss, _NotedLoss)
            else entry._replace(loss=_NotedLoss(entry.loss, entry.loss_weights))
            for entry in compiled._flat_losses
        ]
        for entry in compiled._flat_losses:
            entry.loss.notes[thread] = note

    def build_and_watch(y_true: Any, y_pred: Any) -> None:
        # Of several losses Keras keeps the means, in variables, and a function that makes variables
        # is traced twice. In a thread of its own nothing is being traced.
        if tf.executing_eagerly() or tf.distribute.has_strategy():
            build(y_true, y_pred)
        else:
            with concurrent.futures.ThreadPoolExecutor(1) as outside:
                outside.submit(build, y_true, y_pred).result()
        watch()

    if compiled.built:
        watch()
    else:
        compiled.build = build_and_watch
    try:
        yield
    finally:
        vars(compiled).pop("build", None)
        if compiled.built:
            compiled._flat_losses = [
                entry._replace(loss=_no_longer_noted(entry.loss, thread))
                for entry in compiled._flat_losses
            ]


def _no_longer_noted(loss: Any, thread: int) -> Any:
    """The loss itself, unless another thread still notes it."""
    if not isinstance(loss, _NotedLoss):
        return loss
    loss.notes.pop(thread, None)
    return loss if loss.notes else loss.loss


class _NotedLoss:
    """A loss that tells when it is called, and otherwise is the loss.

    Replicas run in threads of their own, each of which is told of its own calls.
    """

    def __init__(self, loss: Any, weight: Any) -> None:
        self.loss = loss
        self.weight = weight
        self.notes: dict[int, Callable[..., Any]] = {}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        value = self.loss(y_true, y_pred, sample_weight)
        note = self.notes[threading.get_ident()]
        return note(value, self.loss, y_true, y_pred, sample_weight, self.weight)
