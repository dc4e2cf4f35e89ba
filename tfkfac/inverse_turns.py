"""When which inverse is made anew."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf

from tfkfac.blocks import CurvatureBlock
from tfkfac.gathering import Gathering
from tfkfac.hyperparameters import Hyperparameter, Range
from tfkfac.local_model import LocalModel
from tfkfac.schedule import is_due, take_turns


class InverseTurns(Gathering):
    """The part of KFAC that spreads the work on inverses over the steps."""

    inverse_update_every = Hyperparameter(Range(1, integer=True))

    def _refresh_inverses(self, model: LocalModel) -> None:
        """Recomputes the inverses of the blocks whose turn it is; of all, if they are stale.

        Args:
            model: What the batch shows.
        """
        blocks = [b for b in self.layer_collection.curvature_blocks if b.refresh_cost]
        turns = take_turns([block.refresh_cost for block in blocks])
        phases = tf.constant([phase for phase, _ in turns], tf.float64)
        due = is_due(self._moves, self.inverse_update_every, phases, self._shortest_round(model))
        due |= self._stale_inverses > 0
        for is_now, (_, positions) in zip(tf.unstack(due, len(turns)), turns, strict=True):
            turn = [blocks[position] for position in positions]
            tf.cond(is_now, functools.partial(self._refresh, turn), lambda: None)
        self._stale_inverses.assign(tf.zeros_like(self._stale_inverses))

    def _shortest_round(self, model: LocalModel) -> tf.Tensor:
        """The steps that a round of inverses costs as much as, by `INVERSE_SHARE`."""
        work = self.layer_collection.cost(batch_size=1)
        batches = self.gradient_accumulation_steps or 1
        of_step = batches * work.sgd * tf.cast(self._examples_of(model.batch), tf.float64)
        return tf.math.divide_no_nan(tf.cast(work.inverses, tf.float64), INVERSE_SHARE * of_step)

    def _refresh(self, blocks: Sequence[CurvatureBlock]) -> None:
        """Recomputes the inverses of some blocks."""
        self._division.refresh(blocks, self.dampings_of(blocks))


INVERSE_SHARE = 1.0
"""Work on inverses that a step may have early in training, in units of a first-order step: of wide
layers and small batches, a round of inverses is the work of many steps. (On a fully connected net
of 50 million weights, batch 250, a step of the first 14 took 2.4 s with it and 3.7 s without; the
loss was 1.72 and 1.77.)
"""
