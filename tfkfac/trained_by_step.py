"""Which variables a training step was made for, and a word if others train by now."""

from __future__ import annotations

import warnings
from typing import Any


class TrainedByStep:
    """Layers that are frozen or unfrozen between two `fit` without `compile`.

    In graphs Keras then goes on with the variables of before, and says nothing.
    """

    def __init__(self) -> None:
        self._variables: dict[int, str] | None = None

    def note(self, model: Any) -> None:
        """To be called before Keras makes a training step, if it has none yet.

        Args:
            model: The model.
        """
        if getattr(model, "train_function", None) is None:
            self._variables = _trained(model)

    def warn_if_changed(self, model: Any) -> None:
        """Says what to do if other variables train than the step was made for.

        Args:
            model: The model, before `fit`.
        """
        made = getattr(model, "train_function", None) is not None and not model.run_eagerly
        before, now = self._variables, _trained(model)
        if not made or not before or not now or before.keys() == now.keys():
            return
        changed = [path for key, path in (before | now).items() if (key in before) != (key in now)]
        warnings.warn(
            f"{len(changed)} variables ({changed[0]}, ...) were frozen or unfrozen since the model "
            "was compiled, which has no effect on a training step that Keras has made before. "
            "Compile the model again; if layers were unfrozen, after optimizer.rebuild(model).",
            stacklevel=4,
        )


def _trained(model: Any) -> dict[int, str]:
    """Identity → path of what trains; empty if the model has no weights yet."""
    return {id(v): v.path for v in model.trainable_variables} if model.built else {}
