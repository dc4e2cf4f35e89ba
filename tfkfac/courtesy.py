"""The courtesy: ``model.compile`` introduces an optimizer to its model.

In Keras 3 an optimizer never sees the model it trains. Importing tfkfac teaches `compile` to call
``optimizer.attach(model)`` on optimizers that have such a method; nothing else changes, and other
optimizers notice nothing.
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
        result = compile_model(model, *args, **kwargs)
        optimizer = getattr(model, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        attach = getattr(optimizer, "attach", None)
        if attach is not None:
            attach(model)
        return result

    setattr(compile_and_introduce, _MARK, True)
    trainer.compile = compile_and_introduce  # type: ignore[attr-defined]
