"""How far a step goes, and how careful the next one is: learning rate, momentum, damping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import indexed_slices
from tfkfac.blocks import Block, CurvatureBlock
from tfkfac.damping import RAISE, SERVES, SETTLED, LevenbergMarquardt, in_units_of, ratio_of
from tfkfac.hyperparameters import AUTO, Hyperparameter, Range, is_auto, refuse_if_automatic
from tfkfac.kept_state import KeptState
from tfkfac.local_model import Batch, LocalModel
from tfkfac.quadratic_model import QuadraticModel
from tfkfac.schedule import is_due
from tfkfac.second_look import can_look_again, loss_at_present_weights
from tfkfac.step_size import AUTO_KL_CLIP, kl_clip_scale
from tfkfac.stopwatch import Stopwatch
from tfkfac.units import per_example, share_of_mean


class StepControl(KeptState):
    """The part of KFAC that chooses α, μ, ν and λ (mathematics.md §3, §5, §6)."""

    momentum = Hyperparameter(Range(0.0, 1.0, open_above=True, automatic=True))
    damping = Hyperparameter(Range(0.0, open_below=True, automatic=True), start=1.0)
    learning_rate_update_every = Hyperparameter(Range(1, integer=True))
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

    def damping_of(self, block: Block) -> tf.Tensor:
        """λ, or what it amounts to in the units of a block (`LevenbergMarquardt.relative`)."""
        damping = tf.convert_to_tensor(self.damping)
        relative = "damping" in self.automatic and self.levenberg_marquardt.relative
        if not relative or not isinstance(block, CurvatureBlock):
            return damping
        unit = tf.convert_to_tensor(self._unit)
        return damping * tf.cast(in_units_of(unit, block.mean_eigenvalue()), damping.dtype)

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
        local = LocalModel(batch, self._control_dtype)
        learning_rate = tf.cast(tf.convert_to_tensor(self.learning_rate), local.dtype)
        momentum = tf.cast(tf.convert_to_tensor(self.momentum), local.dtype)
        plane = None
        if self.automatic & {"learning_rate", "momentum"}:
            due = self._plane_is_due()
            plane, damped = self._planes(due, local, batch, directions, velocities)
            best, momentum = self._best_on(damped, learning_rate, momentum)
            learning_rate = tf.where(due, best, learning_rate)
            self._note(learning_rate, momentum)
        if "momentum" in self.automatic:
            assert plane is not None
            joint = plane
            guard = self._guard(batch, lambda: joint.squared_length(learning_rate, momentum))
            momentum *= guard  # of two numbers that only together make a good step
        else:
            guard = self._guard(
                batch, lambda: tf.square(learning_rate) * local.dot(gradients, directions)
            )
        scale = guard * learning_rate

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
            if plane is not None:
                return plane.change(scale, momentum)
            return local.change_along(velocities)

        kept = tf.constant(True)
        if "damping" in self.automatic and can_look_again(batch.record):
            kept = self._go_and_look(batch, velocities, go, foreseen)
        else:
            go()
        self._decay_weights(batch.variables, velocities, kept)

    def _plane_is_due(self) -> tf.Tensor:
        """Whether q is measured in this step: a μ fits no other than the one it is made for."""
        if "momentum" in self.automatic:
            return tf.constant(True)
        due = is_due(self._updates, self.learning_rate_update_every)
        due |= tf.convert_to_tensor(self.learning_rate) <= 0.0
        return due | self._look_is_due() if "damping" in self.automatic else due

    def _planes(
        self,
        due: tf.Tensor,
        local: LocalModel,
        batch: Batch,
        directions: Sequence[Any],
        velocities: Sequence[Any],
    ) -> tuple[QuadraticModel, QuadraticModel]:
        """q on the plane of p and d, without its damping and with it; zeros if it is not due."""

        def measured() -> tuple[QuadraticModel, QuadraticModel]:
            plane = local.plane(directions, velocities)
            pairs = (directions, directions), (directions, velocities), (velocities, velocities)
            forms = (
                self.layer_collection.weighted_dot(*pair, batch.variables, self.damping_of)
                for pair in pairs
            )
            return plane, plane.plus(*(tf.cast(form, local.dtype) for form in forms))

        nothing = QuadraticModel(*[tf.zeros([], local.dtype)] * 5)
        return tf.cond(due, measured, lambda: (nothing, nothing))

    def _best_on(
        self, damped: QuadraticModel, learning_rate: tf.Tensor, momentum: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(α, μ) that minimise the quadratic model; what is not automatic stays."""
        if {"learning_rate", "momentum"} <= self.automatic:
            return damped.minimiser()
        if "learning_rate" in self.automatic:
            return damped.learning_rate(momentum), momentum
        return learning_rate, damped.momentum(learning_rate)

    def _note(self, learning_rate: tf.Tensor, momentum: tf.Tensor) -> None:
        """Keeps what was chosen: the next steps go by it, and callbacks look at it."""
        if "learning_rate" in self.automatic:
            self._learning_rate.assign(tf.cast(learning_rate, self._learning_rate.dtype))
        if "momentum" in self.automatic:
            StepControl.momentum.record(self, momentum)

    def _guard(self, batch: Batch, squared_length: Callable[[], tf.Tensor]) -> tf.Tensor:
        """ν, which bounds a step of this squared length in the metric of the Fisher."""
        if not StepControl.kl_clip.in_use(self):
            return tf.ones([], self._control_dtype)
        if "kl_clip" in self.automatic:
            weight = tf.add_n([per_example(observation) for observation in batch.observations])
            StepControl.kl_clip.record(self, AUTO_KL_CLIP * weight)
        clip = tf.cast(tf.convert_to_tensor(self.kl_clip), self._control_dtype)
        scale = kl_clip_scale(clip, squared_length())
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
        searching = self._is_searching()

        def look() -> tf.Tensor:
            before = [tf.convert_to_tensor(variable) for variable in batch.variables]
            go()
            expected = foreseen()
            change, value = self._change_of_loss(batch)
            ratio = ratio_of(change, expected, value)
            serves = tf.math.is_finite(ratio) & (ratio >= SERVES) & (change <= 0.0)
            fails = searching & ~serves
            self._ratio.assign(tf.cast(ratio, tf.float32))
            damping = tf.convert_to_tensor(self.damping)
            cast = [tf.cast(each, damping.dtype) for each in (ratio, change, expected)]
            adapted = tf.where(searching, damping, rule.adapted(damping, *cast))
            adapted = tf.where(fails, RAISE * damping, adapted)
            StepControl.damping.record(self, rule.bounded(adapted, self._unit))
            self._jumped.assign(tf.cast(fails, tf.int64))  # until the inverses have followed
            self._taken_back.assign_add(tf.cast(fails, tf.int64))
            self._settled.assign(tf.where(fails, tf.zeros_like(self._settled), self._settled + 1))

            def take_back() -> None:  # with the momentum, which may be what has failed
                for variable, old in zip(batch.variables, before, strict=True):
                    variable.assign(old)
                for velocity in velocities:
                    velocity.assign(tf.zeros_like(velocity))

            tf.cond(fails, take_back, lambda: None)
            return ~fails

        def only_go() -> tf.Tensor:
            go()
            return tf.constant(True)

        return tf.cond(self._look_is_due(), look, only_go)

    def _is_searching(self) -> tf.Tensor:
        """Whether a λ that serves is still sought."""
        return (self._settled < SETTLED) & (self._taken_back < _MOST_TAKEN_BACK)

    def _look_is_due(self) -> tf.Tensor:
        """Whether the loss is evaluated after this step."""
        every = tf.equal((self._updates + 1) % self.levenberg_marquardt.every, 0)
        return self._is_searching() | every

    def _change_of_loss(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """h(θ + δ) − h(θ) and h(θ), of the mean loss; the weights are at θ + δ."""
        assert batch.record.replay is not None
        with self._recorder.paused():
            after = loss_at_present_weights(self._require_model(), batch.record)
        values = [
            tf.reduce_sum(tf.cast(h, self._control_dtype))
            for h in (after, batch.record.replay.value)
        ]
        after, before = (share_of_mean(h, batch.observations[0]) for h in values)
        return after - before, before

    @property
    def _control_dtype(self) -> tf.DType:
        """Of scalars such as ρ."""
        double = any(str(v.dtype) == "float64" for v in self._trainable_variables)
        return tf.float64 if double else tf.float32

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
