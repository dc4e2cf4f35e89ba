"""What one training forward pass of a model leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import linalg
from tfkfac.blocks import Block, CurvatureBlock, Use
from tfkfac.distribution.workers import Workers
from tfkfac.observation import LossCall, divisor_of
from tfkfac.shares import share_of, with_gradient_of
from tfkfac.variable_reads import VariableReads


@dataclasses.dataclass(eq=False)
class Replay:
    """One forward pass and its loss, as they were called.

    Attributes:
        arguments: Positional and keyword arguments of the model's call.
        outputs: What the model returned.
        loss_arguments: Name → argument of ``compute_loss``, once it was called.
        value: h, what ``compute_loss`` returned.
        corrections: What is added to h to make it that of the worker's part of the whole batch.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: Any
    loss_arguments: dict[str, Any] | None = None
    value: tf.Tensor | None = None
    corrections: list[tf.Tensor] = dataclasses.field(default_factory=list)

    @property
    def part_of_whole(self) -> tf.Tensor:
        """h of the worker's part of the whole batch."""
        assert self.value is not None
        return tf.add_n([self.value, *self.corrections])


@dataclasses.dataclass(eq=False)
class Record:
    """What one forward pass left behind.

    Attributes:
        graph: The graph of the pass, None in eager mode.
        explicit: Made by the user's ``with optimizer.record()``.
        tape: Leads from outputs back to pre-activations, and to nothing before the first of them.
        uses: id of a layer → its uses.
        losses: The losses that were evaluated.
        workers: Who else makes the same step.
        reads: Tells of variables that are used outside of their layers.
        states: Variables that a forward pass may change (moving averages, seeds of dropout, states
            of recurrent layers), each with its value before.
        used_elsewhere: ids of those.
        unreachable: Names of layers that ran where the backward pass cannot reach them.
        replay: How to evaluate the same loss at other weights, None where nobody knows.
        passes: How many forward passes are in it.
        open: Whether the forward pass is still running.
    """

    graph: Any
    explicit: bool
    tape: tf.GradientTape
    workers: Workers
    reads: VariableReads
    states: Sequence[tuple[Any, tf.Tensor]] = ()
    used_elsewhere: set[int] = dataclasses.field(default_factory=set)
    uses: dict[int, list[Use]] = dataclasses.field(default_factory=dict)
    losses: list[LossCall] = dataclasses.field(default_factory=list)
    unreachable: list[str] = dataclasses.field(default_factory=list)
    replay: Replay | None = None
    passes: int = 0
    open: bool = True

    def loss(
        self,
        loss: Any,
        y_true: Any,
        y_pred: tf.Tensor,
        sample_weight: Any = None,
        weight: float | tf.Tensor = 1.0,
    ) -> tf.Tensor:
        """Evaluates a loss and notes it, for training steps that do so by themselves.

        Args:
            loss: A ``keras.losses.Loss``.
            y_true: Labels.
            y_pred: What the model returned.
            sample_weight: As for Keras losses.
            weight: The factor of this loss in the whole.

        Returns:
            ``weight · loss(y_true, y_pred, sample_weight)``.

        Raises:
            ValueError: `loss` is a name or a function.
        """
        if not isinstance(loss, keras.losses.Loss):
            raise ValueError(
                f"Argument `loss` must be a keras.losses.Loss object, got {loss!r}; write "
                "keras.losses.get(...) around a name, or use the class of the loss."
            )
        value = loss(y_true, y_pred, sample_weight)
        value = self.noted(LossCall(loss, y_true, y_pred, sample_weight, weight), value)
        return value * linalg.scalar(weight, loss.dtype)

    def noted(self, call: LossCall, value: tf.Tensor) -> tf.Tensor:
        """Notes a loss that was evaluated.

        Args:
            call: How.
            value: What came out, before its factor in the whole.

        Returns:
            The value, with the gradient of the worker's part of the loss of the whole batch.
        """
        divisor = tf.ones([]) if call.summed or self.workers.number == 1 else divisor_of(call)
        share = share_of(self.workers, call.examples, divisor, summed=call.summed)
        call = dataclasses.replace(call, share=share)
        self.losses.append(call)
        if share is None:
            return value
        if self.replay is not None:
            self.replay.corrections.append(call.correction(value))
        return with_gradient_of(value, tf.cast(share.part, value.dtype) * value)

    def backpropagate(
        self,
        targets: list[tf.Tensor],
        gradients: list[tf.Tensor],
        blocks: Iterable[CurvatureBlock],
    ) -> dict[int, list[Any]]:
        """g at the sources of the blocks: the one extra backward pass.

        Args:
            targets: Where the pass starts.
            gradients: What it starts with, one for each target.
            blocks: Blocks whose sources it is to reach.

        Returns:
            id of a block → a gradient for each source, None where no path leads.
        """
        sources = {id(block): block.sources(self.uses_of(block)) for block in blocks}
        return self.tape.gradient(targets, sources, output_gradients=gradients)

    def uses_of(self, block: Block) -> list[Use]:
        """Every use of the block's layers that is one of its variables."""
        uses = (use for layer in block.layers for use in self.uses.get(id(layer), []))
        return [use for use in uses if not isinstance(block, CurvatureBlock) or block.accepts(use)]
