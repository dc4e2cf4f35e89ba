"""The courtesy: ``model.compile`` introduces an optimizer to its model.

In Keras 3 an optimizer never sees the model it trains. Importing tfkfac teaches `compile` to call
``optimizer.attach(model)`` on optimizers that have such a method, and ``detach()`` on the one that
the model had before; and `fit` to take the arguments that such an optimizer adjusts (over
Horovod, callbacks and who prints). Nothing else changes, and other optimizers notice nothing.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from tfkfac import keras_internals

_MARK = "_tfkfac_courtesy"


def install() -> None:
    """Teaches `compile` the courtesy; again does nothing."""
    trainer = keras_internals.trainer_class()
    compile_model = trainer.compile  # type: ignore[attr-defined]
    if hasattr(compile_model, _MARK):
        return

    @functools.wraps(compile_model)
    def compile_and_introduce(model: Any, *args: Any, **kwargs: Any) -> Any:
        before = _optimizer_of(model)
        result = compile_model(model, *args, **kwargs)
        optimizer = _optimizer_of(model)
        if before is not optimizer and hasattr(before, "detach"):
            before.detach()
        if hasattr(optimizer, "attach"):
            optimizer.attach(model)
        return result

    fit_model = keras_internals.fit_class().fit  # type: ignore[attr-defined]

    @functools.wraps(fit_model)
    def fit_with_adjustments(model: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = _optimizer_of(model)
        if not hasattr(optimizer, "arguments_of_fit"):
            return fit_model(model, *args, **kwargs)
        given = inspect.signature(fit_model).bind(model, *args, **kwargs)
        for name, adjusted in optimizer.arguments_of_fit(given.arguments).items():
            given.arguments[name] = adjusted
        args, kwargs = given.args[1:], given.kwargs
        if optimizer.workers.processes == 1:
            return fit_model(model, *args, **kwargs)
        with keras_internals.fit_over_processes(model):
            return fit_model(model, *args, **kwargs)

    setattr(compile_and_introduce, _MARK, True)
    trainer.compile = compile_and_introduce  # type: ignore[attr-defined]
    keras_internals.fit_class().fit = fit_with_adjustments  # type: ignore[attr-defined]


def _optimizer_of(model: Any) -> Any:
    """The model's optimizer, or the part of it that wants to know the model."""
    return keras_internals.unwrapped(getattr(model, "optimizer", None), "attach")
