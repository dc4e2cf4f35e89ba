"""Counting the work of a step, in floating-point operations (a product-and-sum is two).

Used by ``LayerCollection.summary`` to predict the cost of a KFAC step and by the benchmarks to
bound it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from tfkfac import linalg
from tfkfac.blocks import Block, KroneckerBlock, RecurrentBlock, example_gradients
from tfkfac.factor_forms import DENSE


@dataclasses.dataclass(frozen=True)
class WorkSchedule:
    """How often KFAC does what beside a first-order step; by default as `KFAC()` does.

    Attributes:
        factor_update_every: Steps between updates of the factors.
        inverse_update_every: Steps in which every inverse is made once.
        tangents: Jacobian-vector products of a mean step: where the learning rate is "auto", 2 in
            each step that measures it; 2 in every step where the momentum is.
        look_every: Steps between evaluations of the loss after a step, where the damping is "auto".
    """

    factor_update_every: int = 10
    inverse_update_every: int = 20
    tangents: float = 2 / 20
    look_every: int | None = 20


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Operations of one step, by what they are for.

    Attributes:
        forward: The forward pass.
        backward: Gradients of weights and of inputs.
        extra_backward: The curvature's own backward pass, on steps that update the factors.
        factors: The factor products, on steps that update the factors; with what is measured in
            their eigenbases.
        precondition: Preconditioning, on every step.
        inverses: One round of inverses.
    """

    forward: float = 0.0
    backward: float = 0.0
    extra_backward: float = 0.0
    factors: float = 0.0
    precondition: float = 0.0
    inverses: float = 0.0

    def __add__(self, other: StepCost) -> StepCost:
        """Sums every entry."""
        return StepCost(
            *(
                mine + theirs
                for mine, theirs in zip(
                    dataclasses.astuple(self), dataclasses.astuple(other), strict=True
                )
            )
        )

    @property
    def sgd(self) -> float:
        """A step of a first-order optimizer."""
        return self.forward + self.backward

    def kfac(self, schedule: WorkSchedule) -> float:
        """A mean step of KFAC.

        A Jacobian-vector product has the products of a backward pass: one of inputs with the
        direction, one of the tangent of the inputs with the weights, which the first layer has not.
        """
        statistics = (self.extra_backward + self.factors) / schedule.factor_update_every
        inverses = self.inverses / schedule.inverse_update_every
        looks = self.forward / schedule.look_every if schedule.look_every else 0.0
        tangents = schedule.tangents * self.backward
        return self.sgd + statistics + self.precondition + inverses + tangents + looks


def block_cost(
    block: KroneckerBlock, batch_size: int, uses: int, *, first: bool = False
) -> StepCost:
    """The work that one block and its layer cause.

    Args:
        block: The block.
        batch_size: N.
        uses: |T|, the places of an example that use the layer.
        first: Whether no gradient is needed before the layer.
    """
    places = batch_size * uses
    if block.looks_up:
        of_outputs = 2.0 * places * block.output_dim**2
        rotations = of_outputs if block.inverse.takes_examples else 0.0
        return StepCost(
            factors=of_outputs / 2 + rotations,
            precondition=of_outputs * block.inverse.products,
            inverses=block.inverse.operations * block.refresh_cost,
        )
    kernel = block.groups * (block.input_dim - block.has_bias) * block.output_dim
    product = 2.0 * places * kernel
    inputs, outputs = block.input_dim, block.output_dim
    forms = ((block.input_form, inputs), (block.output_form, outputs))
    entries = _triangle_entries if block.groups == 1 else _square_entries
    of_inputs, of_outputs = (2.0 * places * (entries(d) if f is DENSE else d) for f, d in forms)
    moments = of_inputs * block.moment_share + of_outputs
    if block.keeps_lags:
        moments += 2.0 * places * (inputs**2 + outputs**2)
    if block.inverse.takes_examples:
        is_dense = block.input_form is DENSE, block.output_form is DENSE
        rotations = min(example_gradients.rotations(uses, (inputs, outputs), is_dense))
        moments += 2.0 * batch_size * (rotations + uses * inputs * outputs)
    widths = sum(dim if form is DENSE else 1 for form, dim in forms)
    products = 2.0 * block.inverse.products * inputs * outputs * widths
    return StepCost(
        forward=product,
        backward=product if first else 2.0 * product,
        extra_backward=0.0 if first else product,
        factors=block.groups * moments,
        precondition=block.groups * products,
        inverses=block.inverse.operations * block.refresh_cost,
    )


def block_costs(blocks: Sequence[Block], batch_size: int) -> dict[int, StepCost]:
    """id of a block → its work, for the blocks whose number of uses is known."""
    costs: dict[int, StepCost] = {}
    for block in blocks:
        if not isinstance(block, KroneckerBlock):
            continue
        uses = uses_of_output(block)
        if uses is not None:
            costs[id(block)] = block_cost(block, batch_size, uses, first=not costs)
    return costs


def uses_of_output(block: KroneckerBlock) -> int | None:
    """|T| from the static shape of the layer's output, where Keras knows it."""
    if isinstance(block, RecurrentBlock):
        return block.steps
    try:
        shape = list(block.layers[0].output.shape)
    except (AttributeError, ValueError):
        return None
    channels = {axis % len(shape) for axis in block.channel_axes}
    sizes = [size for axis, size in enumerate(shape) if axis > 0 and axis not in channels]
    return None if None in sizes else math.prod(sizes)


def total(costs: Iterable[StepCost]) -> StepCost:
    """The sum of costs."""
    return sum(costs, StepCost())


def _triangle_entries(dim: int) -> int:
    """Entries of a ``dim × dim`` second moment that are really computed."""
    return sum((stop - start) * stop for start, stop in linalg.panel_bounds(dim))


def _square_entries(dim: int) -> int:
    """Entries of a second moment that is computed whole, as those of groups are."""
    return dim * dim
