"""How far a step goes, and how careful the next one is: learning rate, momentum, damping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import indexed_slices, regularisers
from tfkfac.damping import RAISE, SERVES, SETTLED, LevenbergMarquardt, ratio_of
from tfkfac.gauss_newton import OutputCurvature
from tfkfac.hyperparameters import AUTO, Hyperparameter, Range, is_auto, refuse_if_automatic
from tfkfac.kept_state import KeptState
from tfkfac.losses import Observation
from tfkfac.predictive import Noise
from tfkfac.quadratic_model import QuadraticModel
from tfkfac.record import Record
from tfkfac.second_look import can_look_again, loss_at_present_weights
from tfkfac.step_size import AUTO_KL_CLIP, kl_clip_scale
from tfkfac.stopwatch import Stopwatch
from tfkfac.tangents import push_forward
from tfkfac.units import per_example


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """What a step knows of its batch.

    Attributes:
        record: What the forward pass left behind.
        observations: The losses and what they predict.
        noise: For draws.
        variables: The variables that have a gradient.
        gradients: g of the mean loss on the recorded batch, before anything clips it.
    """

    record: Record
    observations: Sequence[Observation]
    noise: Noise
    variables: Sequence[Any]
    gradients: Sequence[Any]


class StepControl(KeptState):
    """The part of KFAC that chooses α, μ, ν and λ (mathematics.md §5 to §7)."""

    momentum = Hyperparameter(Range(0.0, 1.0, open_above=True, automatic=True))
    damping = Hyperparameter(Range(0.0, open_below=True, automatic=True), start=1.0)
    kl_clip = Hyperparameter(
        Range(0.0, open_below=True, automatic=True), optional=True, start=AUTO_KL_CLIP
    )

    def __init__(self, *, learning_rate: Any, damping: Any, **kwargs: Any) -> None:
        automatic = is_auto(learning_rate)
        if automatic:
            learning_rate = 0.0
        elif isinstance(learning_rate, int | float | str):
            Range(0.0, automatic=True).check("learning_rate", learning_rate)
            learning_rate = float(learning_rate)
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.automatic = {"learning_rate"} if automatic else set()
        self._stopwatch = Stopwatch()
        self.levenberg_marquardt = LevenbergMarquardt()
        if isinstance(damping, LevenbergMarquardt):
            self.levenberg_marquardt = damping

    @property
    def learning_rate(self) -> Any:
        """α at the current step."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        """As for every Keras optimizer; refused if it is "auto"."""
        refuse_if_automatic(self, "learning_rate")
        super(StepControl, type(self)).learning_rate.__set__(self, value)

    def _takes_tangents(self) -> bool:
        """Whatever is measured with the exact quadratic model needs them."""
        return bool(self.automatic & {"learning_rate", "momentum", "damping"})

    def _add_state(self) -> None:
        """Makes the variables that tell how the last steps went."""
        super()._add_state()
        self._ratio = self._add_count("reduction_ratio", "float32")
        self._clipped_steps = self._add_count("clipped_steps", "int64")
        self._settled = self._add_count("settled", "int64")
        self._taken_back = self._add_count("taken_back", "int64")
        self._jumped = self._add_count("damping_jumped", "int64")
        self._unit = self._add_count("mean_eigenvalue", "float32", "ones")
        self._stopwatch.seconds = self._add_count("curvature_seconds", "float64")

    # --- what callbacks ask ----------------------------------------------------------------

    @property
    def reduction_ratio(self) -> float:
        """ρ, the true over the foreseen change of the loss, when it was last measured (else 0)."""
        return float(self._ratio.numpy())

    def counts(self) -> dict[str, float]:
        """What has happened since training began.

        ``updates`` (steps), ``clipped`` (steps that the KL clip shortened), ``taken_back`` and
        ``skipped`` (steps with a gradient that is not finite), and the ``seconds`` in curvature,
        if `take_time` was called.
        """
        return {
            "updates": float(self._updates.numpy()),
            "clipped": float(self._clipped_steps.numpy()),
            "taken_back": float(self._taken_back.numpy()),
            "skipped": float(self._skipped_steps.numpy()),
            "seconds": float(self._stopwatch.seconds.numpy()),
        }

    def take_time(self) -> bool:
        """From now on measures the time in curvature, where there is a clock (not under XLA).

        Returns:
            Whether functions that were made before do not.
        """
        changes = not self._stopwatch.on and not self._require_model().jit_compile
        self._stopwatch.on |= changes
        return changes

    # --- damping before the first step -----------------------------------------------------

    def _current_damping(self) -> tf.Tensor:
        """λ."""
        return tf.convert_to_tensor(self.damping)

    def _damping_jumped(self) -> tf.Tensor:
        """Whether λ was raised since the last step, so that no inverse fits it any more."""
        return self._jumped > 0

    def _control_config(self) -> dict[str, Any]:
        """What `get_config` tells of learning rate and damping."""
        config: dict[str, Any] = {}
        if "learning_rate" in self.automatic:
            config["learning_rate"] = AUTO
        if "damping" in self.automatic and self.levenberg_marquardt != LevenbergMarquardt():
            config["damping"] = keras.saving.serialize_keras_object(self.levenberg_marquardt)
        return config

    def _begin_damping(self) -> None:
        """λ₀, from the curvature of the first batch."""
        unit = self.layer_collection.mean_eigenvalue()
        unit = tf.where(tf.math.is_finite(unit) & (unit > 0.0), unit, tf.ones_like(unit))
        self._unit.assign(tf.cast(unit, tf.float32))
        StepControl.damping.record(self, self.levenberg_marquardt.first(unit))

    # --- one step --------------------------------------------------------------------------

    def _make_step(self, batch: Batch, gradients: Sequence[Any], directions: Sequence[Any]) -> None:
        """Chooses δ = μ·d − ν·α·p, goes there, and looks whether it was right.

        Args:
            batch: What was recorded.
            gradients: g of the whole batch, clipped.
            directions: p = F̂⁻¹g.
        """
        velocities = [self._velocities[self._get_variable_index(v)] for v in batch.variables]
        model: QuadraticModel | None = None
        if self.automatic & {"learning_rate", "momentum"}:
            curvature = self._curvature_at_outputs(batch)
            model = self._plane(batch, curvature, directions, velocities)
        learning_rate, momentum = self._chosen(model, batch, directions, velocities)
        scale = learning_rate * self._guard(batch, learning_rate, gradients, directions)

        def go() -> None:
            for variable, velocity, direction in zip(
                batch.variables, velocities, directions, strict=True
            ):
                values = tf.cast(indexed_slices.values_of(direction), velocity.dtype)
                step = indexed_slices.with_values(
                    direction, -tf.cast(scale, velocity.dtype) * values
                )
                velocity.assign(tf.cast(momentum, velocity.dtype) * velocity)
                indexed_slices.add_to(velocity, step)
                self.assign_add(variable, velocity)

        def foreseen() -> tf.Tensor:
            if model is not None:
                return model.change(scale, momentum)
            return self._change_along(batch, velocities)

        kept = tf.constant(True)
        if "damping" in self.automatic and can_look_again(batch.record):
            kept = self._go_and_look(batch, velocities, go, foreseen)
        else:
            go()
        self._decay_weights(batch.variables, velocities, kept)

    def _chosen(
        self,
        model: QuadraticModel | None,
        batch: Batch,
        directions: Sequence[Any],
        velocities: Sequence[Any],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(α, μ): numbers, or what minimises the quadratic model with damping and regularisers."""
        dtype = self._control_dtype
        learning_rate = tf.cast(tf.convert_to_tensor(self.learning_rate), dtype)
        momentum = tf.cast(tf.convert_to_tensor(self.momentum), dtype)
        if model is None:
            return learning_rate, momentum
        damped = model.plus(*self._isotropic_curvature(batch, directions, velocities))
        if {"learning_rate", "momentum"} <= self.automatic:
            learning_rate, momentum = damped.minimiser()
        elif "learning_rate" in self.automatic:
            learning_rate = damped.learning_rate(momentum)
        else:
            momentum = damped.momentum(learning_rate)
        if "learning_rate" in self.automatic:
            self._learning_rate.assign(tf.cast(learning_rate, self._learning_rate.dtype))
        if "momentum" in self.automatic:
            StepControl.momentum.record(self, momentum)
        return learning_rate, momentum

    def _guard(
        self,
        batch: Batch,
        learning_rate: tf.Tensor,
        gradients: Sequence[Any],
        directions: Sequence[Any],
    ) -> tf.Tensor:
        """ν, which bounds the KL divergence of α·p."""
        if not StepControl.kl_clip.in_use(self):
            return tf.ones_like(learning_rate)
        if "kl_clip" in self.automatic:
            weight = tf.add_n([per_example(observation) for observation in batch.observations])
            StepControl.kl_clip.record(self, AUTO_KL_CLIP * weight)
        clip = tf.cast(tf.convert_to_tensor(self.kl_clip), learning_rate.dtype)
        scale = kl_clip_scale(clip, learning_rate, self._sum_of_dots(gradients, directions))
        self._clipped_steps.assign_add(tf.cast(scale < 1.0, tf.int64))
        return scale

    # --- the look back ---------------------------------------------------------------------

    def _go_and_look(
        self,
        batch: Batch,
        velocities: Sequence[Any],
        go: Callable[[], None],
        foreseen: Callable[[], tf.Tensor],
    ) -> tf.Tensor:
        """Goes; every `every` updates, and while a λ is sought, compares with what was foreseen.

        Returns:
            Whether the step was kept, a boolean scalar.
        """
        rule = self.levenberg_marquardt
        searching = (self._settled < SETTLED) & (self._taken_back < _MOST_TAKEN_BACK)
        due = tf.equal((self._updates + 1) % rule.every, 0)

        def look() -> tf.Tensor:
            moved = [*batch.variables, *velocities]
            before = [tf.convert_to_tensor(variable) for variable in moved]
            go()
            expected = foreseen()
            change, value = self._change_of_loss(batch)
            ratio = ratio_of(change, expected, value)
            fails = searching & ~(tf.math.is_finite(ratio) & (ratio >= SERVES))
            self._ratio.assign(tf.cast(ratio, tf.float32))
            damping = tf.convert_to_tensor(self.damping)
            cast = [tf.cast(each, damping.dtype) for each in (ratio, change, expected)]
            adapted = tf.where(searching, damping, rule.adapted(damping, *cast))
            adapted = tf.where(fails, RAISE * damping, adapted)
            StepControl.damping.record(self, rule.bounded(adapted, self._unit))
            self._jumped.assign(tf.cast(fails, tf.int64))
            self._taken_back.assign_add(tf.cast(fails, tf.int64))
            self._settled.assign(tf.where(fails, tf.zeros_like(self._settled), self._settled + 1))

            def take_back() -> None:
                for variable, old in zip(moved, before, strict=True):
                    variable.assign(old)

            tf.cond(fails, take_back, lambda: None)
            return ~fails

        def only_go() -> tf.Tensor:
            go()
            return tf.constant(True)

        return tf.cond(searching | due, look, only_go)

    def _change_of_loss(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """h(θ + δ) − h(θ) and h(θ), of the mean loss; the weights are at θ + δ."""
        assert batch.record.replay is not None
        with self._recorder.paused():
            after = loss_at_present_weights(self._require_model(), batch.record)
        values = [
            tf.reduce_sum(tf.cast(h, self._control_dtype))
            for h in (after, batch.record.replay.value)
        ]
        if batch.observations[0].summed:
            values = [h / tf.cast(batch.observations[0].batch, h.dtype) for h in values]
        return values[0] - values[1], values[1]

    # --- the quadratic model ---------------------------------------------------------------

    @property
    def _control_dtype(self) -> tf.DType:
        """Of scalars such as ρ."""
        double = any(str(v.dtype) == "float64" for v in self._trainable_variables)
        return tf.float64 if double else tf.float32

    def _curvature_at_outputs(self, batch: Batch) -> OutputCurvature:
        return OutputCurvature(batch.observations, batch.noise, self._control_dtype)

    def _push_forward(self, batch: Batch, directions: Sequence[Any]) -> list[list[tf.Tensor]]:
        targets = [observation.predictive.target for observation in batch.observations]
        return push_forward(batch.record.tape, targets, batch.variables, directions)

    def _plane(
        self,
        batch: Batch,
        curvature: OutputCurvature,
        directions: Sequence[Any],
        velocities: Sequence[Any],
    ) -> QuadraticModel:
        """q along p and d, with the curvature F alone."""
        p, d = self._push_forward(batch, [directions, velocities])
        return QuadraticModel(
            self._sum_of_dots(batch.gradients, directions),
            self._sum_of_dots(batch.gradients, velocities),
            curvature.form(p, p),
            curvature.form(p, d),
            curvature.form(d, d),
        )

    def _change_along(self, batch: Batch, step: Sequence[Any]) -> tf.Tensor:
        """``gᵀδ + ½ δᵀFδ`` for a δ that has been gone."""
        (tangents,) = self._push_forward(batch, [step])
        curvature = self._curvature_at_outputs(batch).form(tangents, tangents)
        return self._sum_of_dots(batch.gradients, step) + 0.5 * curvature

    def _isotropic_curvature(
        self, batch: Batch, directions: Sequence[Any], velocities: Sequence[Any]
    ) -> list[tf.Tensor]:
        """``pᵀ(λI + H)p``, ``pᵀ(λI + H)d``, ``dᵀ(λI + H)d``: damping and L2 regularisers."""
        damping = tf.cast(tf.convert_to_tensor(self.damping), self._control_dtype)
        pairs = (directions, directions), (directions, velocities), (velocities, velocities)
        observation = batch.observations[0]
        share = tf.ones([], self._control_dtype)
        if observation.summed:
            share /= tf.cast(observation.batch, share.dtype)
        return [
            damping * self._sum_of_dots(u, v)
            + share * regularisers.l2_curvature(batch.variables, u, v, self._control_dtype)
            for u, v in pairs
        ]

    def _sum_of_dots(self, left: Sequence[Any], right: Sequence[Any]) -> tf.Tensor:
        return tf.add_n(
            [
                tf.cast(indexed_slices.dot(u, v), self._control_dtype)
                for u, v in zip(left, right, strict=True)
            ]
        )

    def _decay_weights(
        self, variables: Sequence[Any], velocities: Sequence[Any], kept: tf.Tensor
    ) -> None:
        """Keras' ``weight_decay``, decoupled: of the weights before the step, by its own α.

        Args:
            variables: The weights, after the step.
            velocities: δ.
            kept: Whether the step was kept; else nothing decays.
        """
        if self.weight_decay is None:
            return
        for variable, velocity in zip(variables, velocities, strict=True):
            if self._use_weight_decay(variable):
                rate = tf.cast(self.learning_rate, variable.dtype) * self.weight_decay
                rate *= tf.cast(kept, variable.dtype)
                variable.assign(variable - rate * (variable - tf.cast(velocity, variable.dtype)))


_MOST_TAKEN_BACK = 30
"""Steps that are taken back at most: a loss that is noise of its own never does as foreseen."""
