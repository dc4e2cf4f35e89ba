"""What an optimizer writes into a file and reads from one, the same for any number of workers."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfkfac import keras_internals
from tfkfac.kept_state import KeptState
from tfkfac.loss_scaling import FORMAT_KEY, has_only_scale

_FORMAT = 1
"""Of the layout below; it changes whenever files of before can no longer be read."""


@dataclasses.dataclass(frozen=True)
class _Gathered:
    """What `gather_state` has brought together.

    Attributes:
        values: Position in the layout → array.
        iterations: When.
    """

    values: dict[int, np.ndarray]
    iterations: int


class SavedState(KeptState):
    """The part of KFAC that knows how its state lies in a file.

    The layout is that of one worker that has everything: the variables one after the other. Ranks
    of Horovod have parts of it, and of sums over micro-batches every worker has its own, which are
    added up. Writing a file never communicates, or rank 0 could not do it alone; so all processes
    `gather_state` before.
    """

    save_inverses: bool

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._gathered = _Gathered({}, -1)

    @property
    def state_of_all(self) -> list[Any]:
        """The variables that every worker has, alike."""
        partial = {id(variable) for variable in self._partial_sums}
        return [v for v in self._common_variables if id(v) not in partial]

    @property
    def _alike(self) -> list[Any]:
        """The first variables of the layout, which every worker has."""
        return [*self._common_variables, *self._seeds_of_model]

    def gather_state(self) -> None:
        """Brings together, on the first worker, what workers have by themselves.

        To be called by all of them; `tfkfac.callbacks.GatherState` does.
        """
        if self.workers.number == 1:
            return
        own = {
            at: self._value_here(variable)
            for at, (_, variable) in enumerate(self._slots())
            if variable is not None and self._is_of_a_worker(at, variable)
        }
        gathered: dict[int, np.ndarray] = {}
        for of_worker in self.workers.tell_all(own):
            for at, value in of_worker.items():
                is_sum = at in gathered and at < len(self._alike)
                gathered[at] = gathered[at] + value if is_sum else value
        if self.workers.here() == 0:  # in every process of tf.distribute
            self._gathered = _Gathered(gathered, int(self._iterations.numpy()))

    def save_own_variables(self, store: Any) -> None:
        """Writes all variables; of what other workers have, what was gathered in this step.

        Args:
            store: Position → array; and the format of the file.
        """
        store[FORMAT_KEY] = np.asarray(_FORMAT)
        self.build_to_save()
        if not self.built:
            return
        fresh = self._gathered.iterations == int(self._iterations.numpy())
        gathered = self._gathered.values if fresh else {}
        missing = []
        left_out = set() if self.save_inverses else self._places_of_inverses()
        for at, (_, variable) in enumerate(self._slots()):
            if at in left_out:
                continue
            if at in gathered:
                store[str(at)] = gathered[at]
            elif variable is not None:
                store[str(at)] = self._value_here(variable)
            else:
                missing.append(at)
        if missing:
            warnings.warn(
                f"{len(missing)} factors and inverses that other workers keep are not in the file: "
                "they were not gathered after the last step. Give "
                "tfkfac.callbacks.GatherState() to `fit` on all ranks, before the callback that "
                "saves.",
                stacklevel=2,
            )

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` has written, here or with any other number of workers.

        Args:
            store: Position → array.

        Raises:
            ValueError: The file is of another model, or of a KFAC with other arguments, or its
                format is none of this version of tfkfac.
        """
        if not self.built:
            self.build(self._require_model().trainable_variables)
        slots = list(self._slots())
        keys = set(store.keys())
        if has_only_scale(store):
            raise ValueError(
                "The optimizer in the file has a LossScaleOptimizer around it: the model was "
                'trained under keras.config.set_dtype_policy("mixed_float16"). Call that before '
                "the file is read."
            )
        _require_format(int(np.asarray(store[FORMAT_KEY])) if FORMAT_KEY in keys else None, keys)
        keys.discard(FORMAT_KEY)
        if not keys:
            return  # it was written before training began
        foreign = [key for key in keys if not key.isdigit() or int(key) >= len(slots)]
        common = [str(at) for at in range(len(self._alike))]
        wrong = [
            f"variable {at} has shape {tuple(store[str(at)].shape)} in the file and {shape} here"
            for at, (shape, _) in enumerate(slots)
            if str(at) in keys and tuple(store[str(at)].shape) != shape
        ]
        absent = [key for key in common if key not in keys]
        if foreign or wrong or absent:
            raise ValueError(
                f"The state of KFAC in the file does not fit: it has {len(keys)} variables, "
                f"{len(slots)} are expected"
                + (f"; {wrong[0]}" if wrong else "")
                + ". Load it into the same model, compiled with a KFAC of the same arguments"
                + self._what_is_not_built()
            )
        for at, (_, variable) in enumerate(slots):
            if variable is not None and str(at) in keys:
                value = np.asarray(store[str(at)])
                if self._is_sum(variable):
                    self.workers.share(variable, value)
                else:
                    variable.assign(value)
        if not all(str(at) in keys for at in self._places_of_inverses()):
            self._stale_inverses.assign(1)

    def _what_is_not_built(self) -> str:
        """The end of a sentence that asks for the same model: layers that have no weights yet."""
        layers = keras_internals.flatten_layers(self._require_model())
        missing = [layer.name for layer in layers if not layer.built]
        if not missing:
            return "."
        return (
            f", and call the model on a batch of data before it is compiled: {missing[0]!r} and "
            f"{len(missing) - 1} other layers have no weights yet."
        )

    def _places_of_inverses(self) -> set[int]:
        """Where in the layout inverses (or eigenvectors) are, which factors tell as well."""
        places: set[int] = set()
        end = len(self._alike)
        for block in self._division.blocks:
            end += len(block.state_slots)
            places.update(range(end - len(block.kept_shapes), end))
        return places

    def _is_sum(self, variable: Any) -> bool:
        """Whether every worker has summands of its own."""
        return any(variable is each for each in self._partial_sums)

    def _is_of_a_worker(self, at: int, variable: Any) -> bool:
        """Whether workers have something else there, or nothing."""
        of_block = at >= len(self._alike) and not self.workers.keep_all_alike
        return of_block or self._is_sum(variable)

    def _value_here(self, variable: Any) -> np.ndarray:
        """What the workers of this process have together."""
        if self._is_sum(variable):
            return sum(copy.numpy() for copy in self.workers.copies_here(variable))
        return variable.numpy()

    def _slots(self) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Shape of every variable of the layout, with the variable, None where it is not here."""
        common = ((tuple(variable.shape), variable) for variable in self._alike)
        of_blocks = (slot for block in self._division.blocks for slot in block.state_slots)
        return itertools.chain(common, of_blocks)


def _require_format(found: int | None, keys: set[str]) -> None:
    """Raises if the file is of another format.

    Args:
        found: What the file says; None if it says nothing.
        keys: What there is in the file.

    Raises:
        ValueError: Saying what the file is.
    """
    if found == _FORMAT:
        return
    if not keys:
        raise ValueError(
            "The file has no state of an optimizer: its model was not compiled. Call load_weights "
            "before the model is compiled with KFAC."
        )
    if found is None:
        what = "is of another optimizer, or of an older tfkfac"
    else:
        age = "a newer" if found > _FORMAT else "an older"
        what = f"is of format {found}, of {age} tfkfac"
    raise ValueError(
        f"The state of the optimizer in the file {what}; this version of tfkfac reads format "
        f"{_FORMAT}. Load the model without it, keras.models.load_model(path, compile=False) or "
        "load_weights before the model is compiled, and compile it with a new tfkfac.KFAC(...); "
        "the curvature is learned anew within some steps."
    )
