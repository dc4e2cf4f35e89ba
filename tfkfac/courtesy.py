"""The courtesy: ``model.compile`` introduces an optimizer to its model.

In Keras 3 an optimizer never sees the model it trains. Importing tfkfac teaches `compile` to call
``optimizer.attach(model)`` on optimizers that have such a method, and ``detach()`` on the one that
the model had before; nothing else changes, and other optimizers notice nothing.
"""

from __future__ import annotations

import functools
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

    setattr(compile_and_introduce, _MARK, True)
    trainer.compile = compile_and_introduce  # type: ignore[attr-defined]


def _optimizer_of(model: Any) -> Any:
    """The model's optimizer, without the loss scaling that mixed precision wraps around it."""
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)
