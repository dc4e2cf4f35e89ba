"""How far a step goes: learning rate, momentum and the bound of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfkfac import linalg
from tfkfac import momentum as momentum_step
from tfkfac.adaptive_damping import AdaptiveDamping
from tfkfac.block_gradients import weighted_dot
from tfkfac.hyperparameters import AUTO, Hyperparameter, Range, is_auto, refuse_if_automatic
from tfkfac.local_model import Batch, LocalModel
from tfkfac.quadratic_model import QuadraticModel
from tfkfac.schedule import is_due, phase_of_multiples
from tfkfac.second_look import can_look_again
from tfkfac.step_size import AUTO_KL_CLIP, greatest_rate, kl_clip_scale, rate_between, relaxation
from tfkfac.stopwatch import Stopwatch
from tfkfac.units import per_example


class StepControl(AdaptiveDamping):
    """The part of KFAC that chooses α, μ and ν (mathematics.md §3, §5)."""

    momentum = Hyperparameter(Range(0.0, 1.0, open_above=True, automatic=True))
    learning_rate_update_every = Hyperparameter(Range(1, integer=True))
    kl_clip = Hyperparameter(
        Range(0.0, open_below=True, automatic=True), optional=True, start=AUTO_KL_CLIP
    )

    def __init__(self, *, learning_rate: Any, **kwargs: Any) -> None:
        automatic = is_auto(learning_rate)
        if automatic:
            learning_rate = 0.0
        elif isinstance(learning_rate, int | float | str):
            Range(0.0, automatic=True).check("learning_rate", learning_rate)
            learning_rate = float(learning_rate)
        super().__init__(learning_rate=learning_rate, **kwargs)
        if automatic:
            self.automatic.add("learning_rate")
        self._stopwatch = Stopwatch()

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
        """Makes what is counted."""
        super()._add_state()
        self._clipped_steps = self._add_count("clipped_steps", "int64")
        self._measured_slope = self._add_count("measured_slope", self._control_dtype.name)
        self._stopwatch.seconds = self._add_count("curvature_seconds", "float64")

    # --- what callbacks ask ----------------------------------------------------------------

    def counts(self) -> dict[str, float]:
        """What has happened since training began; zeros before.

        ``updates`` (steps), ``clipped`` (steps that the KL clip shortened), ``taken_back`` and
        ``skipped`` (steps with a gradient that is no good), ``failures`` (statistics and inverses
        of layers that could not be had), and the ``seconds`` in curvature, if `take_time` was
        called.
        """
        if not self.built:
            return dict.fromkeys(_COUNTED, 0.0)
        steps = self._updates, self._clipped_steps, self._taken_back, self._skipped_steps
        numbers = [variable.numpy() for variable in steps]
        numbers += [self.count_failures(), self._stopwatch.seconds.numpy()]
        return dict(zip(_COUNTED, map(float, numbers), strict=True))

    def take_time(self) -> bool:
        """From now on measures the time in curvature, where there is a clock (not under XLA).

        Returns:
            Whether functions that were made before do not.
        """
        changes = not self._stopwatch.on and not self._require_model().jit_compile
        self._stopwatch.on |= changes
        return changes

    def _control_config(self) -> dict[str, Any]:
        """What `get_config` tells of learning rate and damping."""
        automatic = {"learning_rate": AUTO} if "learning_rate" in self.automatic else {}
        return automatic | self._damping_config()

    # --- one step --------------------------------------------------------------------------

    def _make_step(self, model: LocalModel, directions: Any, slope: tf.Tensor) -> None:
        """Chooses δ = μ·d − ν·α·p, goes there, and looks whether it was right.

        Args:
            model: What the batch shows.
            directions: p = F̂⁻¹g.
            slope: pᵀg, g clipped and of all micro-batches.
        """
        velocities = [self._velocities[self._get_variable_index(v)] for v in model.variables]
        learning_rate = tf.cast(tf.convert_to_tensor(self.learning_rate), model.dtype)
        momentum = tf.cast(tf.convert_to_tensor(self.momentum), model.dtype)
        looks = "damping" in self.automatic and self._can_look_again(model)
        plane = None
        if self.automatic & {"learning_rate", "momentum"}:
            due = self._plane_is_due(looks)
            plane, damped = self._planes(due, model, directions, velocities)
            best, momentum = self._best_on(damped, learning_rate, momentum)
            learning_rate = tf.where(due, best, learning_rate)
            self._note(learning_rate, momentum)
            if "momentum" not in self.automatic:  # with which α is measured in every step
                learning_rate = self._rate_between(due, learning_rate, slope)
        if "momentum" in self.automatic:
            assert plane is not None
            joint = plane
            guard = self._guard(model, lambda: joint.squared_length(learning_rate, momentum))
            momentum *= guard  # of two numbers that only together make a good step
        else:
            guard = self._guard(model, lambda: tf.square(learning_rate) * slope)
        scale = guard * learning_rate

        def move(directions: Sequence[Any]) -> None:
            triples = zip(model.variables, velocities, directions, strict=True)
            for variable, velocity, direction in triples:
                momentum_step.move(variable, velocity, direction, scale, momentum)

        def go() -> None:
            self.workers.each(move, directions)

        def foreseen() -> tf.Tensor:
            if plane is not None:
                return plane.change(scale, momentum)
            return model.change_along(velocities)

        kept = tf.constant(True)
        if looks:
            kept = self._go_and_look(model, velocities, go, foreseen)
        else:
            go()
        self._decay_weights(model.variables, velocities, kept)

    def _is_length_known(self) -> tf.Tensor:
        """Whether α, μ and c are numbers: a schedule may tell anything."""
        told = [self.learning_rate, self.momentum]
        if StepControl.kl_clip.in_use(self):
            told.append(self.kl_clip)
        return linalg.all_finite(*map(tf.convert_to_tensor, told))

    def _can_look_again(self, model: LocalModel) -> bool:
        """Whether the loss of the step can be evaluated again."""
        return self.workers.is_so(lambda own: can_look_again(own.record), model.batch)

    def _plane_is_due(self, looks: bool) -> tf.Tensor:
        """Whether q is measured in this step: a μ fits no other than the one it is made for.

        Args:
            looks: Whether the loss may be evaluated after the step, which takes what q foresaw.
        """
        if "momentum" in self.automatic:
            return tf.constant(True)
        every = tf.convert_to_tensor(self.learning_rate_update_every)
        due = is_due(self._moves, every, phase_of_multiples(every))
        due |= tf.convert_to_tensor(self.learning_rate) <= 0.0  # no step was found: try again
        return due | self._look_is_due() if looks else due

    def _planes(
        self,
        due: tf.Tensor,
        model: LocalModel,
        directions: Any,
        velocities: Sequence[Any],
    ) -> tuple[QuadraticModel, QuadraticModel]:
        """q on the plane of p and d, without its damping and with it; zeros if it is not due."""

        def measured() -> tuple[QuadraticModel, QuadraticModel]:
            steps = self.workers.each(lambda: [tf.convert_to_tensor(d) for d in velocities])
            plane = model.plane(directions, steps)
            dampings = self.dampings_of(list(self.layer_collection))

            def of_damping(directions: Sequence[Any], steps: Any) -> list[tf.Tensor]:
                pairs = (directions, directions), (directions, steps), (steps, steps)
                return [
                    weighted_dot(self.layer_collection.blocks, u, v, model.variables, dampings)
                    for u, v in pairs
                ]

            forms = self.workers.first(self.workers.each(of_damping, directions, steps))
            return plane, plane.plus(*(tf.cast(form, model.dtype) for form in forms))

        nothing = QuadraticModel(*[tf.zeros([], model.dtype)] * 5)
        return tf.cond(due, measured, lambda: (nothing, nothing))

    def _best_on(
        self, damped: QuadraticModel, learning_rate: tf.Tensor, momentum: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(α, μ) that minimise the quadratic model, α bounded; what is not automatic stays.

        An α without a μ of its own is shortened (`relaxation`).
        """
        if "learning_rate" not in self.automatic:
            return learning_rate, damped.momentum(learning_rate)
        most = greatest_rate(learning_rate)
        if "momentum" not in self.automatic:
            best = tf.minimum(damped.learning_rate(momentum), most)
            return relaxation(best, momentum) * best, momentum
        best, momentum = damped.minimiser()
        return tf.minimum(best, most), tf.where(best > most, damped.momentum(most), momentum)

    def _note(self, learning_rate: tf.Tensor, momentum: tf.Tensor) -> None:
        """Keeps what was chosen: the next steps go by it, and callbacks look at it."""
        if "learning_rate" in self.automatic:
            self._learning_rate.assign(tf.cast(learning_rate, self._learning_rate.dtype))
        if "momentum" in self.automatic:
            StepControl.momentum.record(self, momentum)

    def _rate_between(
        self, due: tf.Tensor, learning_rate: tf.Tensor, slope: tf.Tensor
    ) -> tf.Tensor:
        """α as it is, if it is measured in this step; else see `rate_between`.

        Args:
            due: Whether α is measured in this step.
            learning_rate: α, as it was last measured.
            slope: pᵀg.
        """
        slope = tf.cast(slope, self._measured_slope.dtype)
        then = tf.where(due, slope, self._measured_slope)
        self._measured_slope.assign(then)
        between = rate_between(tf.cast(learning_rate, slope.dtype), then, slope)
        return tf.cast(between, learning_rate.dtype)

    def _guard(self, model: LocalModel, squared_length: Callable[[], tf.Tensor]) -> tf.Tensor:
        """ν, which bounds a step of this squared length in the metric of the Fisher."""
        if not StepControl.kl_clip.in_use(self):
            return tf.ones([], self._control_dtype)
        if "kl_clip" in self.automatic:

            def units(batch: Batch) -> list[tf.Tensor]:
                return [tf.add_n([per_example(each) for each in batch.observations])]

            own = self.workers.each(units, model.batch)
            (weight,) = self.workers.first(self.workers.sum(own))
            some = tf.math.is_finite(weight) & (weight > 0.0)  # of an empty batch it is 0 / 0
            clip = tf.where(some, AUTO_KL_CLIP * weight, tf.cast(self.kl_clip, weight.dtype))
            StepControl.kl_clip.record(self, clip)
        clip = tf.cast(tf.convert_to_tensor(self.kl_clip), self._control_dtype)
        scale = kl_clip_scale(clip, squared_length())
        self._clipped_steps.assign_add(tf.cast(scale < 1.0, tf.int64))
        return scale

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

        def decay() -> None:
            for variable, velocity in zip(variables, velocities, strict=True):
                if self._use_weight_decay(variable):
                    rate = tf.cast(self.learning_rate, variable.dtype) * self.weight_decay
                    rate *= tf.cast(kept, variable.dtype)
                    before = variable - tf.cast(velocity, variable.dtype)
                    variable.assign(variable - rate * before)

        self.workers.each(decay)


_COUNTED = ("updates", "clipped", "taken_back", "skipped", "failures", "seconds")
"""What `StepControl.counts` tells."""
