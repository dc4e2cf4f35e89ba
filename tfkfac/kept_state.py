"""What an optimizer keeps between steps: momentum, counts, the state of the blocks."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals
from tfkfac.attached_optimizer import AttachedOptimizer
from tfkfac.blocks import Block
from tfkfac.distribution.agreement import require_same
from tfkfac.division import Division
from tfkfac.layer_collection import LayerCollection
from tfkfac.variable_slice import whole_of


class KeptState(AttachedOptimizer):
    """The part of KFAC that makes variables, from shapes alone, and carries them on."""

    seed: int
    placement: str | float
    communication_dtype: str | None

    _division: Division

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._collection: LayerCollection | None = None
        self._velocities: list[Any] = []
        self._state: list[Any] = []
        self._counts: list[Any] = []
        self._common_variables: list[Any] = []
        self._partial_sums: list[Any] = []
        self._seeds_of_model: list[Any] = []

    @abc.abstractmethod
    def _scan(self, model: Any) -> LayerCollection:
        """The blocks of a model."""

    @property
    def layer_collection(self) -> LayerCollection:
        """The blocks of the model.

        Raises:
            ValueError: There is no model, or it has no weights yet.
        """
        if self._collection is None:
            return self._scan(self._require_model())
        return self._collection

    def build(self, variables: Sequence[Any]) -> None:
        """Makes all state, from shapes alone.

        Args:
            variables: The model's trainable variables.

        Raises:
            ValueError: There is no model, or the variables are not its.
        """
        if self.built:
            return
        model = self._require_model()
        known = {id(variable) for variable in model.trainable_variables}
        foreign = [v for v in variables if id(v) not in known]
        whole = getattr(model, "optimizer", None)
        if not foreign and keras_internals.is_one_of_several(self, whole):
            variables = model.trainable_variables  # whichever of them are its to train
        elif foreign or len(variables) != len(known):
            raise ValueError(
                f"KFAC was attached to model {model.name!r} with {len(known)} trainable variables, "
                f"but is to be built for {len(variables)}, of which {len(foreign)} are not the "
                "model's. Attach the optimizer to the model whose variables it trains."
            )
        made_before = len(self._variables)
        super().build(variables)
        self._collection = self.layer_collection
        self._velocities = self.add_optimizer_variables(variables, "momentum")
        self._counts.clear()
        self._partial_sums = [
            total for total in getattr(self, "_accumulated_gradients", []) if total is not None
        ]
        self._seed = self._add_count("seed", "int64", keras.initializers.Constant(self.seed))
        self._updates = self._add_count("updates", "int64")
        self._skipped_steps = self._add_count("skipped_steps", "int64")
        self._largest_batch = self._add_count("largest_batch", "float32")
        self._averaged = self._add_count("averaged", "int64")
        self._stale_inverses = self._add_count("stale_inverses", "int64")
        self._division = Division(
            self.workers,
            self._collection.curvature_blocks,
            self.placement,
            self.communication_dtype,
        )
        self._collection.roles = self._division.roles
        if self.communication_dtype is not None:
            self._collection.statistics_bytes = tf.dtypes.as_dtype(self.communication_dtype).size
        self._add_state()
        self._common_variables = list(self._variables)
        self._seeds_of_model = keras_internals.seeds_of(model)  # which Keras keeps in no file
        for block in self._collection:
            block.build(
                self.add_variable,
                functools.partial(self.damping_of, block),
                self._division.kept_here(block),
            )
        self._state = self._variables[made_before:]
        self._start_alike(model)
        if self.workers.process == 0:
            self._collection.warn_of_fallbacks()

    def _start_alike(self, model: Any) -> None:
        """Gives all workers the weights of the first one, once they have the same model.

        Raises:
            ValueError: They have not; or there are no weights yet, since a step is being traced.
        """
        variables = [*model.variables, *self._common_variables]
        if self.workers.processes == 1:
            return
        with tf.init_scope():
            empty = [v for v in variables if not keras_internals.uncast(v).is_initialized()]
            arguments = self.get_config()  # which reads variables
        if empty:
            raise ValueError(
                f"Model {model.name!r} and its KFAC are built while a step is traced, when weights "
                "cannot be sent to other processes. Before the first step, call the model on a "
                "batch (or model.build(input_shape)), and then "
                "optimizer.build(model.trainable_variables)."
            )
        require_same(
            self.workers,
            "shapes of the variables of model and optimizer",
            [f"{tuple(variable.shape)} {variable.dtype}" for variable in variables],
            "Build the same model, compiled with a KFAC of the same arguments, on every rank.",
        )
        require_same(
            self.workers,
            "layers of the model",
            keras_internals.settings_of_layers(model),
            "Build the same model on every rank.",
        )
        require_same(
            self.workers,
            "arguments of KFAC",
            [f"{key}={value}" for key, value in arguments.items() if key != "seed"],
            "Compile the model with the same KFAC on every rank.",
        )
        self.workers.broadcast(variables)

    def _add_state(self) -> None:
        """Makes the variables of the parts of KFAC that are built on this one."""

    @abc.abstractmethod
    def damping_of(self, block: Block) -> tf.Tensor:
        """What is added to the curvature of a block."""

    def _add_count(self, name: str, dtype: str, initializer: Any = "zeros") -> Any:
        """Makes a number that tells how training went, and outlives a `rebuild`."""
        count = self.add_variable(shape=(), dtype=dtype, name=name, initializer=initializer)
        self._counts.append(count)
        return count

    def rebuild(self, model: Any) -> None:
        """Takes up a model of which other variables train than before.

        After layers were unfrozen (or frozen for good) between two fits, or layers were exchanged:
        variables that stay keep their momentum, blocks that stay keep their curvature, what is new
        begins afresh. Call it before the model is compiled again. Without it, a new KFAC serves as
        well.

        Args:
            model: The model.
        """
        kept = self._state_by_owner()
        made = {id(variable) for variable in self._state}
        self._variables[:] = [v for v in self._variables if id(v) not in made]
        self._trainable_variables_indices.clear()
        self._trainable_variables: list[Any] = []
        self._collection, self.built = None, False
        self.detach()
        self.attach(model)
        self.build(model.trainable_variables)
        for owner, variables in self._state_by_owner().items():
            for new, old in zip(variables, kept.get(owner, ()), strict=False):
                new.assign(old)

    def _state_by_owner(self) -> dict[Any, Sequence[Any]]:
        """The optimizer itself (None), its blocks, the trained variables → the state of each."""
        averages = [self._model_variables_moving_average] if self.use_ema else []
        state: dict[Any, Sequence[Any]] = {None: list(self._counts)}
        for block in self.layer_collection.curvature_blocks:
            state[_identity_of(block)] = block.state
        for variable, *own in zip(
            self._trainable_variables, self._velocities, *averages, strict=True
        ):
            state[id(variable)] = own
        return state


def _identity_of(block: Block) -> tuple[Any, ...]:
    """What tells that two blocks are the curvature of the same (parts of) variables."""
    parts = [getattr(variable, "part", None) for variable in block.variables]
    return type(block), *(id(whole_of(variable)) for variable in block.variables), *parts
