"""KFAC: the order of one step. Every "how" is in a file below."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import indexed_slices, losses
from tfkfac.curvature import require_seen
from tfkfac.damping import LevenbergMarquardt
from tfkfac.distribution.choice import DISTRIBUTIONS
from tfkfac.distribution.placement import require_placement
from tfkfac.division import COMMUNICATION_DTYPES
from tfkfac.factors import METHODS
from tfkfac.failures import mend
from tfkfac.fisher import ESTIMATORS
from tfkfac.hyperparameters import (
    AUTO,
    Range,
    hyperparameters_of,
    require_choice,
    require_integer,
    require_patterns,
)
from tfkfac.layer_collection import MAX_FACTOR_SIZE, LayerCollection
from tfkfac.layer_patterns import require_recurrent
from tfkfac.local_model import LocalModel
from tfkfac.step_size import bound_of_step
from tfkfac.units import of_mean_loss
from tfkfac.weight_average import WeightAverage


@keras.saving.register_keras_serializable(package="tfkfac")
class KFAC(WeightAverage):
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
        learning_rate: α, a float, a ``keras.optimizers.schedules`` schedule, or "auto": what
            minimises the exact quadratic model of the loss on the batch, less with a momentum that
            is not "auto" where batches differ.
        momentum: μ in [0, 1), a float, a schedule, or "auto", likewise.
        damping: λ > 0, a float or a schedule: what is added to the curvature. Larger is more
            careful. "auto" follows how well steps do what was foreseen, by the rule of
            ``tfkfac.LevenbergMarquardt``, an object of which may be given too.
        learning_rate_update_every: Steps between two measurements of a learning rate that is
            "auto"; in the first steps they come more often. With ``momentum="auto"`` both are
            measured in every step.
        factor_decay: Decay of the averages of the factors, for each factor update.
        factor_update_every: Steps between two updates of the factors.
        inverse_update_every: Steps in which every inverse is recomputed once; layers take turns,
            so that no step takes all. Both kinds of update come more often in the first steps.
        fisher: "mc" samples targets from the model, "exact" sums over all of them, "empirical"
            uses the labels of the data.
        method: "cholesky" (factored Tikhonov damping), "eigen" (exact Tikhonov damping) or "ekfac"
            (exact, with eigenvalues that are measured; George et al. 2018).
        kl_clip: Bound c of ``α² gᵀF̂⁻¹g``: longer steps are scaled down. None for no bound; "auto"
            is a hundredth of a nat for each unit of the output.
        norm_constraint: The same bound by another name.
        burn_in: Steps at the start that collect statistics and leave the weights alone.
        skip: Regular expressions; layers whose path one of them matches get no curvature.
        max_factor_size: A Kronecker factor of a larger dimension keeps its diagonal only (its
            memory grows with the square of the dimension, its inverse with the cube); None for no
            limit.
        recurrent: The curvature of recurrent layers: "independent" (steps), "lggm_symmetric" or
            "lggm_limit" (chains of steps, Martens, Ba & Johnson 2018); one for all layers, or a
            dict of regular expressions of their paths → one; the first that matches counts.
        max_exact_outputs: Limit of the scalars in one example's output for ``fisher="exact"``.
        placement: With several workers, who preconditions a layer: "comm_opt" (all), "mem_opt" (one
            worker, which sends the result to the others), "hybrid" (about √W of the W workers), or
            the share of them that does.
        communication_dtype: In which statistics are sent, "float16" or "bfloat16"; None for their
            own.
        save_inverses: Whether files have the inverses. Without them a file has about half the
            size, and all inverses are made anew in the first step after it was read.
        max_consecutive_failures: How often in a row steps may be skipped because a gradient is not
            finite, or the factors or the inverse of a layer may stay as they were for such a
            reason, before `raise_if_failing` raises (which `fit` asks); None for no limit.
        distribution: Who makes the steps: "auto" finds the scope of a ``tf.distribute`` strategy
            and an initialised ``horovod.tensorflow``; "single", "strategy" and "horovod" insist.
        model: The model, where it is not introduced by ``model.compile`` (see `attach`).
        seed: Seed of the sampled targets; drawn from Python's random numbers if None.
        name: Name of the optimizer.
        **kwargs: As for every Keras optimizer: `weight_decay` (decoupled), `clipnorm`,
            `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`, `gradient_accumulation_steps`.

    Raises:
        ValueError: An argument is not allowed; the message says what is.
    """

    def __init__(
        self,
        learning_rate: Any = "auto",
        momentum: Any = 0.6,
        damping: Any = "auto",
        *,
        learning_rate_update_every: int = 20,
        factor_decay: Any = 0.9,
        factor_update_every: int = 10,
        inverse_update_every: int = 20,
        fisher: str = "mc",
        method: str = "cholesky",
        kl_clip: Any = "auto",
        norm_constraint: Any = None,
        burn_in: int = 0,
        skip: Sequence[str] = (),
        max_factor_size: int | None = MAX_FACTOR_SIZE,
        recurrent: str | Mapping[str, str] = "independent",
        max_exact_outputs: int = 1024,
        placement: str | float = "comm_opt",
        communication_dtype: str | None = None,
        save_inverses: bool = True,
        max_consecutive_failures: int | None = 10,
        distribution: str = "auto",
        model: Any = None,
        seed: int | None = None,
        name: str = "kfac",
        **kwargs: Any,
    ) -> None:
        require_choice("fisher", fisher, ESTIMATORS)
        require_choice("method", method, METHODS)
        super().__init__(learning_rate=learning_rate, damping=damping, name=name, **kwargs)
        given = {
            "momentum": momentum,
            "damping": AUTO if isinstance(damping, LevenbergMarquardt) else damping,
            "learning_rate_update_every": learning_rate_update_every,
            "factor_decay": factor_decay,
            "factor_update_every": factor_update_every,
            "inverse_update_every": inverse_update_every,
            "kl_clip": bound_of_step(kl_clip, norm_constraint),
        }
        for key, hyperparameter in hyperparameters_of(KFAC).items():
            hyperparameter.create(self, given[key])
        self.fisher = fisher
        self.method = method
        self.burn_in = int(require_integer("burn_in", burn_in, minimum=0))
        self.skip = require_patterns("skip", skip)
        if max_factor_size is not None:
            require_integer("max_factor_size", max_factor_size, minimum=1)
        self.max_factor_size = max_factor_size
        self.recurrent = require_recurrent(recurrent)
        require_choice("distribution", distribution, DISTRIBUTIONS)
        self.distribution = distribution
        self.placement = require_placement(placement)
        if communication_dtype is not None:
            require_choice("communication_dtype", communication_dtype, COMMUNICATION_DTYPES)
        self.communication_dtype = communication_dtype
        if max_consecutive_failures is not None:
            require_integer("max_consecutive_failures", max_consecutive_failures, minimum=1)
        self.max_consecutive_failures = max_consecutive_failures
        require_choice("save_inverses", save_inverses, (True, False))
        self.save_inverses = save_inverses
        self.max_exact_outputs = require_integer("max_exact_outputs", max_exact_outputs, minimum=1)
        if seed is not None:
            Range(integer=True).check("seed", seed)
        self.seed = random.randrange(2**31) if seed is None else int(seed)
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

    def _scan(self, model: Any) -> LayerCollection:
        return LayerCollection.scan(
            model,
            method=self.method,
            skip=self.skip,
            max_factor_size=self.max_factor_size,
            recurrent=self.recurrent,
        )

    # --- one step --------------------------------------------------------------------------

    def _backend_apply_gradients(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any]
    ) -> None:
        """One step, from the gradients of Keras' own backward pass."""
        record = self._recorder.take(self._require_model().name)
        self.layer_collection.set_aside(record.used_elsewhere)
        require_seen(self.layer_collection.curvature_blocks, record, trainable_variables)
        batch = self._batch_of(record)
        told = self._told_of_states(record, grads)
        gradients = self.workers.parts(of_mean_loss(told, batch.observations))
        update = functools.partial(self._update, list(trainable_variables))
        self.workers.conduct(update, batch, gradients)

    def _update(self, variables: Sequence[Any], batch: Any, gradients: Any) -> None:
        """What a batch brings about.

        From here on a step is conducted (`tfkfac.distribution.workers`).

        Args:
            variables: The variables that have a gradient.
            batch: Of each worker.
            gradients: What each worker's part of the batch adds to those of the mean loss.
        """
        if not self.gradient_accumulation_steps:
            gradients = self._summed(gradients)
            self._step_if_usable(self._model_around(batch, variables, gradients), gradients)
            return
        self._enter_micro_batch(batch, variables, gradients)
        self.workers.each(lambda own: mend(own.record.states), batch)
        step_of_all = functools.partial(self._step_of_all, variables, batch, gradients)
        tf.cond(self._is_last_micro_batch(), step_of_all, lambda: None)

    def _step_of_all(self, variables: Sequence[Any], batch: Any, gradients: Any) -> None:
        """One step of all micro-batches; learning rate and damping look at the last of them."""
        gathered = self.workers.sum(self._gathered_gradients(variables))
        latest = self._summed(gradients) if self.automatic else gathered
        self._step_if_usable(self._model_around(batch, variables, latest), gathered)
        self._begin_to_gather()

    def _summed(self, gradients: Any) -> Any:
        """The gradients of the mean loss over the whole batch; rows of equal index added up."""
        of_all = self.workers.sum(gradients)
        return self.workers.each(lambda own: [indexed_slices.unique(g) for g in own], of_all)

    def _model_around(self, batch: Any, variables: Sequence[Any], gradients: Any) -> LocalModel:
        return LocalModel(self.workers, batch, variables, gradients, self._control_dtype)

    def _step_if_usable(self, model: LocalModel, gradients: Any) -> None:
        squares = self._squares(gradients)

        def step() -> None:
            self._note_gradient(squares)
            self._step(model, self.workers.each(self._clip, gradients))

        tf.cond(self._is_usable(squares), step, lambda: self._skip_batch(model, squares))

    def _step(self, model: LocalModel, gradients: Any) -> None:
        """Curvature, direction, length, assignment: the algorithm.

        Args:
            model: What the batch shows.
            gradients: g, clipped.
        """
        updates = self._moves
        with self._stopwatch.running():
            tf.cond(self._factors_are_due(), lambda: self._update_factors(model), lambda: None)
        if "damping" in self.automatic:

            def begin() -> None:
                share = self._share_of_batch(self._examples_of(model.batch))
                self._begin_damping(model.batch, share)

            tf.cond(self._has_damping_to_begin(), begin, lambda: None)

        def move() -> None:
            with self._stopwatch.running():
                self._refresh_inverses(model)
                blocks = self.layer_collection.blocks
                directions = self._division.precondition(
                    blocks, gradients, model.variables, self.dampings_of(blocks)
                )
            slope = model.dot(gradients, directions)
            tf.cond(
                tf.math.is_finite(slope) & (slope >= 0.0) & self._is_length_known(),
                lambda: self._go(model, directions, slope),
                lambda: self._skip_step(model.variables, self._squares(directions)),
            )

        if self.burn_in:
            tf.cond(updates < 0, self._note_success, move)
        else:
            move()
        self._updates.assign_add(1)

    def _go(self, model: LocalModel, directions: Any, slope: tf.Tensor) -> None:
        """Moves the weights along directions that lead downhill."""
        self._make_step(model, directions, slope)
        self._average_weights()
        self._note_success()

    def _clip(self, gradients: Sequence[Any]) -> list[Any]:
        """Keras' ``clipnorm``, ``clipvalue`` and ``global_clipnorm``."""
        return list(self._clip_gradients(gradients))

    # --- configuration ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the model is never among them."""
        config = super().get_config()
        for key, hyperparameter in hyperparameters_of(KFAC).items():
            config[key] = hyperparameter.config(self)
        config.update(self._control_config())
        config.update(
            fisher=self.fisher,
            method=self.method,
            burn_in=self.burn_in,
            skip=list(self.skip),
            max_factor_size=self.max_factor_size,
            recurrent=self.recurrent,
            max_exact_outputs=self.max_exact_outputs,
            placement=self.placement,
            communication_dtype=self.communication_dtype,
            save_inverses=self.save_inverses,
            max_consecutive_failures=self.max_consecutive_failures,
            distribution=self.distribution,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> KFAC:
        """The reverse of `get_config`."""
        objects = {
            key: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
            for key, value in config.items()
            if isinstance(value, dict) and "class_name" in value
        }
        return cls(**{**config, **objects})
