"""KFAC: the order of one step. Every "how" is in a file below."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import indexed_slices, linalg, losses
from tfkfac.attached_optimizer import AttachedOptimizer, require_one_worker
from tfkfac.blocks import Block
from tfkfac.curvature import batch_statistics, require_seen
from tfkfac.factors import METHODS
from tfkfac.fisher import ESTIMATORS
from tfkfac.hyperparameters import (
    Hyperparameter,
    Range,
    hyperparameters_of,
    require_choice,
    require_patterns,
)
from tfkfac.layer_collection import MAX_FACTOR_SIZE, LayerCollection
from tfkfac.layer_patterns import require_recurrent
from tfkfac.losses import Observation
from tfkfac.noise import PhiloxNoise
from tfkfac.record import Record
from tfkfac.schedule import is_due, take_turns
from tfkfac.step_size import clipped_step
from tfkfac.units import of_mean_loss
from tfkfac.variable_slice import whole_of


@keras.saving.register_keras_serializable(package="tfkfac")
class KFAC(AttachedOptimizer):
    """Kronecker-factored approximate curvature: natural-gradient descent for Keras models.

    One step is ``δ ← μ·δ − ν·α·F̂⁻¹g``, where F̂ approximates the Fisher matrix of the model's own
    predictions (the generalised Gauss-Newton matrix of the loss) by Kronecker products, one block
    a layer (Martens & Grosse 2015, Grosse & Martens 2016). All units are those of the per-example
    mean loss, whatever the batch size or the reduction of the loss.

    Example:

    ```python
    import keras, tfkfac

    model.compile(optimizer=tfkfac.KFAC(), loss="sparse_categorical_crossentropy")
    model.fit(x, y)
    ```

    Args:
        learning_rate: α, a float or a ``keras.optimizers.schedules`` schedule.
        momentum: μ in [0, 1), a float or a schedule.
        damping: λ > 0, a float or a schedule: what is added to the curvature. Larger is more
            careful.
        factor_decay: Decay of the averages of the factors, for each factor update.
        factor_update_every: Steps between two updates of the factors.
        inverse_update_every: Steps in which every inverse is recomputed once; layers take turns,
            so that no step takes all. Both kinds of update come more often in the first steps.
        fisher: "mc" samples targets from the model, "exact" sums over all of them, "empirical"
            uses the labels of the data.
        method: "cholesky" (factored Tikhonov damping), "eigen" (exact Tikhonov damping) or "ekfac"
            (exact, with eigenvalues that are measured; George et al. 2018).
        kl_clip: Bound c of ``α² gᵀF̂⁻¹g``: longer steps are scaled down. None for no bound.
        skip: Regular expressions; layers whose path one of them matches get no curvature.
        max_factor_size: A Kronecker factor of a larger dimension keeps its diagonal only (its
            memory grows with the square of the dimension, its inverse with the cube); None for no
            limit.
        recurrent: The curvature of recurrent layers: "independent" (steps), "lggm_symmetric" or
            "lggm_limit" (chains of steps, Martens, Ba & Johnson 2018); one for all layers, or a
            dict of regular expressions of their paths → one; the first that matches counts.
        max_exact_outputs: Limit of the scalars in one example's output for ``fisher="exact"``.
        model: The model, where it is not introduced by ``model.compile`` (see `attach`).
        seed: Seed of the sampled targets; drawn from Python's random numbers if None.
        name: Name of the optimizer.
        **kwargs: As for every Keras optimizer: `weight_decay` (decoupled), `clipnorm`,
            `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`.

    Raises:
        ValueError: An argument is not allowed; the message says what is.
    """

    momentum = Hyperparameter(Range(0.0, 1.0, open_above=True))
    damping = Hyperparameter(Range(0.0, open_below=True))
    factor_decay = Hyperparameter(Range(0.0, 1.0, open_above=True))
    factor_update_every = Hyperparameter(Range(1, integer=True))
    inverse_update_every = Hyperparameter(Range(1, integer=True))
    kl_clip = Hyperparameter(Range(0.0, open_below=True), optional=True)

    def __init__(
        self,
        learning_rate: Any = 0.3,
        momentum: Any = 0.6,
        damping: Any = 1e-3,
        *,
        factor_decay: Any = 0.95,
        factor_update_every: int = 1,
        inverse_update_every: int = 10,
        fisher: str = "mc",
        method: str = "cholesky",
        kl_clip: Any = 1e-3,
        skip: Sequence[str] = (),
        max_factor_size: int | None = MAX_FACTOR_SIZE,
        recurrent: str | Mapping[str, str] = "independent",
        max_exact_outputs: int = 1024,
        model: Any = None,
        seed: int | None = None,
        name: str = "kfac",
        **kwargs: Any,
    ) -> None:
        require_choice("fisher", fisher, ESTIMATORS)
        require_choice("method", method, METHODS)
        if kwargs.get("gradient_accumulation_steps"):
            raise ValueError(
                "Argument `gradient_accumulation_steps` is not supported by KFAC yet, got "
                f"{kwargs['gradient_accumulation_steps']!r}: the factors would have to be "
                "accumulated too. Use a larger batch."
            )
        if isinstance(learning_rate, int | float):
            Range(0.0).check("learning_rate", learning_rate)
            learning_rate = float(learning_rate)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        given = {
            "momentum": momentum,
            "damping": damping,
            "factor_decay": factor_decay,
            "factor_update_every": factor_update_every,
            "inverse_update_every": inverse_update_every,
            "kl_clip": kl_clip,
        }
        for key, hyperparameter in hyperparameters_of(KFAC).items():
            hyperparameter.create(self, given[key])
        self.fisher = fisher
        self.method = method
        self.skip = require_patterns("skip", skip)
        if max_factor_size is not None:
            Range(1, integer=True).check("max_factor_size", max_factor_size)
        self.max_factor_size = max_factor_size
        self.recurrent = require_recurrent(recurrent)
        Range(1, integer=True).check("max_exact_outputs", max_exact_outputs)
        self.max_exact_outputs = max_exact_outputs
        if seed is not None:
            Range(integer=True).check("seed", seed)
        self.seed = random.randrange(2**31) if seed is None else int(seed)
        self._collection: LayerCollection | None = None
        self._velocities: list[Any] = []
        self._state: list[Any] = []
        if model is not None:
            self.attach(model)

    # --- the model and its blocks ----------------------------------------------------------

    def require_supported(self, model: Any) -> None:
        """Raises if the model was compiled with a loss of no known distribution.

        Raises:
            ValueError: Naming the loss and the ways out.
        """
        if self.fisher != "empirical":
            losses.require_supported(getattr(model, "loss", None))

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
        state: dict[Any, Sequence[Any]] = {
            None: [self._updates, self._skipped_steps, self._largest_batch]
        }
        for block in self.layer_collection.curvature_blocks:
            state[_identity_of(block)] = block.state
        for variable, *own in zip(
            self._trainable_variables, self._velocities, *averages, strict=True
        ):
            state[id(variable)] = own
        return state

    @property
    def layer_collection(self) -> LayerCollection:
        """The blocks of the model.

        Raises:
            ValueError: There is no model, or it has no weights yet.
        """
        if self._collection is None:
            model = self._require_model()
            return LayerCollection.scan(
                model,
                method=self.method,
                skip=self.skip,
                max_factor_size=self.max_factor_size,
                recurrent=self.recurrent,
            )
        return self._collection

    # --- state -----------------------------------------------------------------------------

    def build(self, variables: Sequence[Any]) -> None:
        """Makes all state, from shapes alone.

        Args:
            variables: The model's trainable variables.

        Raises:
            ValueError: There is no model, or the variables are not its.
        """
        if self.built:
            return
        require_one_worker()
        model = self._require_model()
        known = {id(variable) for variable in model.trainable_variables}
        foreign = [v for v in variables if id(v) not in known]
        if foreign or len(variables) != len(known):
            raise ValueError(
                f"KFAC was attached to model {model.name!r} with {len(known)} trainable variables, "
                f"but is to be built for {len(variables)}, of which {len(foreign)} are not the "
                "model's. Attach the optimizer to the model whose variables it trains."
            )
        made_before = len(self._variables)
        super().build(variables)
        self._collection = self.layer_collection
        self._velocities = self.add_optimizer_variables(variables, "momentum")
        self._updates = self.add_variable(shape=(), dtype="int64", name="updates")
        self._skipped_steps = self.add_variable(shape=(), dtype="int64", name="skipped_steps")
        self._largest_batch = self.add_variable(shape=(), dtype="float32", name="largest_batch")
        for block in self._collection:
            block.build(self.add_variable, lambda: tf.convert_to_tensor(self.damping))
        self._state = self._variables[made_before:]
        self._collection.warn_of_fallbacks()

    # --- one step --------------------------------------------------------------------------

    def _backend_apply_gradients(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any]
    ) -> None:
        """One step, from the gradients of Keras' own backward pass."""
        record = self._recorder.take(self._require_model().name)
        self.layer_collection.set_aside(record.used_elsewhere)
        require_seen(self.layer_collection.curvature_blocks, record, trainable_variables)
        observations = [losses.observe(call) for call in record.losses]
        gradients = [indexed_slices.unique(gradient) for gradient in self._clip_gradients(grads)]
        gradients = of_mean_loss(gradients, observations)
        tf.cond(
            linalg.all_finite(*map(indexed_slices.values_of, gradients)),
            lambda: self._step(record, observations, gradients, trainable_variables),
            self._skip_step,
        )

    def _step(
        self,
        record: Record,
        observations: Sequence[Observation],
        gradients: Sequence[tf.Tensor],
        variables: Sequence[Any],
    ) -> None:
        """Curvature, direction, momentum, assignment: the algorithm."""
        tf.cond(
            is_due(self._updates, self.factor_update_every),
            lambda: self._update_factors(record, observations, variables),
            lambda: None,
        )
        self._refresh_inverses()
        directions = self.layer_collection.precondition(gradients, variables)
        learning_rate = tf.convert_to_tensor(self.learning_rate)
        scale = clipped_step(learning_rate, self.kl_clip, gradients, directions)
        self._apply_weight_decay(variables)
        for variable, direction in zip(variables, directions, strict=True):
            velocity = self._velocities[self._get_variable_index(variable)]
            momentum = tf.cast(self.momentum, velocity.dtype)
            values = tf.cast(indexed_slices.values_of(direction), velocity.dtype)
            step = -tf.cast(scale, velocity.dtype) * values
            velocity.assign(momentum * velocity)
            indexed_slices.add_to(velocity, indexed_slices.with_values(direction, step))
            self.assign_add(variable, velocity)
        self._updates.assign_add(1)
        self._average_weights()

    def _skip_step(self) -> None:
        """A gradient is not finite: nothing changes but the count of such steps."""
        self._skipped_steps.assign_add(1)

    def _update_factors(
        self, record: Record, observations: Sequence[Observation], variables: Sequence[Any]
    ) -> None:
        """Enters the statistics of the batch: the one extra backward pass."""
        statistics = batch_statistics(
            self.layer_collection.curvature_blocks,
            record,
            observations,
            ESTIMATORS[self.fisher](self.max_exact_outputs),
            PhiloxNoise(self.seed, self._iterations),
            variables,
        )
        share = self._share_of_batch(observations[0].batch)
        entered: list[tf.Tensor] = []
        for block, values in statistics:  # one after the other, for the sake of peak memory
            with tf.control_dependencies(entered[-1:]):
                entered.append(block.update(values, self.factor_decay, share))

    def _share_of_batch(self, batch: tf.Tensor) -> tf.Tensor:
        """n / N: a partial batch enters the averages with its share of the largest seen."""
        size = tf.cast(batch, tf.float32)
        self._largest_batch.assign(tf.maximum(self._largest_batch, size))
        return size / self._largest_batch

    def _refresh_inverses(self) -> None:
        """Recomputes the inverses of the blocks whose turn it is."""
        blocks = [b for b in self.layer_collection.curvature_blocks if b.refresh_cost]
        turns = take_turns([block.refresh_cost for block in blocks])
        phases = tf.constant([phase for phase, _ in turns], tf.float64)
        due = tf.unstack(is_due(self._updates, self.inverse_update_every, phases), len(turns))
        damping = tf.convert_to_tensor(self.damping)
        for is_now, (_, positions) in zip(due, turns, strict=True):

            def refresh(positions: list[int] = positions) -> None:
                for position in positions:
                    blocks[position].refresh(damping)

            tf.cond(is_now, refresh, lambda: None)

    def _average_weights(self) -> None:
        """Keras' ``use_ema``."""
        if not self.use_ema:
            return
        self._update_model_variables_moving_average(self._trainable_variables)
        if self.ema_overwrite_frequency:
            tf.cond(
                (self._iterations + 1) % self.ema_overwrite_frequency == 0,
                lambda: self._overwrite_model_variables_with_average_value(
                    self._trainable_variables
                ),
                lambda: None,
            )

    # --- configuration ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the model is never among them."""
        config = super().get_config()
        config.pop("gradient_accumulation_steps", None)
        for key, hyperparameter in hyperparameters_of(KFAC).items():
            config[key] = hyperparameter.config(self)
        config.update(
            fisher=self.fisher,
            method=self.method,
            skip=list(self.skip),
            max_factor_size=self.max_factor_size,
            recurrent=self.recurrent,
            max_exact_outputs=self.max_exact_outputs,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> KFAC:
        """The reverse of `get_config`."""
        scheduled = {
            key: keras.optimizers.schedules.deserialize(value, custom_objects=custom_objects)
            for key, value in config.items()
            if isinstance(value, dict) and "class_name" in value
        }
        return cls(**{**config, **scheduled})


def _identity_of(block: Block) -> tuple[Any, ...]:
    """What tells that two blocks are the curvature of the same (parts of) variables."""
    parts = [getattr(variable, "part", None) for variable in block.variables]
    return type(block), *(id(whole_of(variable)) for variable in block.variables), *parts
