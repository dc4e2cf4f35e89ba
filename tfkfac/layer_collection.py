"""The blocks of a model: which layer has which, and what falls back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tfkfac import keras_internals
from tfkfac.blocks import (
    Block,
    CurvatureBlock,
    DiagonalBlock,
    KroneckerBlock,
    PlainGradient,
)
from tfkfac.cost import StepCost, WorkSchedule, block_costs, total
from tfkfac.factors import METHODS
from tfkfac.fallbacks import SKIPPED, fallback_blocks, within_loops, without_conflicts
from tfkfac.hyperparameters import Range, require_choice, require_integer, require_patterns
from tfkfac.layer_patterns import matching, recurrent_forms, require_recurrent
from tfkfac.placement_table import print_placement
from tfkfac.registry import NotCoveredError, build_blocks
from tfkfac.roles import Roles
from tfkfac.summary import print_summary
from tfkfac.variable_slice import whole_of

MAX_FACTOR_SIZE = 5000
"""Largest dense factor by default (measured, see docs/layers.md)."""


class LayerCollection:
    """The blocks of a model: every trainable variable is in exactly one.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> collection = tfkfac.LayerCollection.scan(model)
    >>> collection.coverage()
    1.0

    Args:
        model: The model, only for its name and size.
        blocks: The blocks.

    Attributes:
        blocks: The blocks.
        roles: Which worker does what; None before training.
        statistics_bytes: Of a number in the statistics that workers send, if not that of the
            factors.
    """

    def __init__(self, model: Any, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)
        self.roles: Roles | None = None
        self.statistics_bytes: int | None = None
        self._model_name = model.name

    @classmethod
    def scan(
        cls,
        model: Any,
        *,
        method: str = "cholesky",
        skip: Sequence[str] = (),
        max_factor_size: int | None = MAX_FACTOR_SIZE,
        recurrent: str | Mapping[str, str] = "independent",
    ) -> LayerCollection:
        """Finds the block of every layer, nested to any depth.

        Args:
            model: A built Keras model.
            method: How inverses are kept: "cholesky", "eigen" or "ekfac".
            skip: Regular expressions; layers whose path one of them matches get no curvature.
            max_factor_size: Factors of a larger dimension keep their diagonal only.
            recurrent: The curvature of recurrent layers, one for all or regular expression → one.

        Raises:
            ValueError: An argument is not allowed, the model has no weights yet, or a pattern
                matches no layer.
        """
        if not isinstance(model, keras.Model):
            raise ValueError(f"Argument `model` must be a keras.Model, got {model!r}.")
        require_choice("method", method, METHODS)
        if max_factor_size is not None:
            Range(1, integer=True).check("max_factor_size", max_factor_size)
        if not model.built and not model.trainable_variables:
            raise ValueError(
                f"Model {model.name!r} has no weights yet: call it on data, or "
                "model.build(input_shape), before it is scanned."
            )
        layers = keras_internals.flatten_layers(model)
        skipped = matching("skip", layers, require_patterns("skip", skip))
        forms = recurrent_forms(layers, require_recurrent(recurrent))
        loops = within_loops(layers)
        blocks: list[Block] = []
        reasons: dict[int, str] = {}
        for layer in layers:
            try:
                if id(layer) in skipped:
                    raise NotCoveredError(SKIPPED)
                if id(layer) in loops:
                    raise NotCoveredError(f"runs in the loop of {loops[id(layer)]}")
                options = {"method": method, "max_factor_size": max_factor_size}
                if isinstance(layer, keras.layers.RNN):
                    options["recurrent"] = forms[id(layer)]
                blocks.extend(build_blocks(layer, layers, **options))
            except NotCoveredError as why:
                reasons[id(layer)] = str(why)
        blocks = without_conflicts(blocks, reasons)
        return cls(model, [*blocks, *fallback_blocks(model, layers, blocks, reasons)])

    def __getitem__(self, layer_name: str) -> Block:
        """The block of the layer with this name or path."""
        for block in self.blocks:
            if layer_name in {name for layer in block.layers for name in (layer.name, layer.path)}:
                return block
        names = ", ".join(block.name for block in self.blocks)
        raise KeyError(f"No block has a layer named {layer_name!r}. There are: {names}.")

    def __iter__(self) -> Iterator[Block]:
        """The blocks, in the order of the layers."""
        return iter(self.blocks)

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def kronecker_blocks(self) -> list[KroneckerBlock]:
        """The blocks with Kronecker factors."""
        return [block for block in self.blocks if isinstance(block, KroneckerBlock)]

    @property
    def curvature_blocks(self) -> list[CurvatureBlock]:
        """The blocks that learn a curvature."""
        return [block for block in self.blocks if isinstance(block, CurvatureBlock)]

    @property
    def diagonal_variables(self) -> list[Any]:
        """The variables under a diagonal block."""
        blocks = [block for block in self.blocks if isinstance(block, DiagonalBlock)]
        return [variable for block in blocks for variable in block.variables]

    @property
    def fallbacks(self) -> list[Block]:
        """The blocks of variables of which no structure is known."""
        return [b for b in self.blocks if isinstance(b, DiagonalBlock | PlainGradient)]

    def coverage(self, kind: type[Block] = KroneckerBlock) -> float:
        """The share of trainable parameters under a kind of block (1 without parameters).

        Args:
            kind: Kronecker blocks, or any class of blocks:
                ``coverage(tfkfac.blocks.CurvatureBlock)`` is the share with any curvature.
        """
        total = sum(block.parameters for block in self.blocks)
        covered = sum(block.parameters for block in self.blocks if isinstance(block, kind))
        return covered / total if total else 1.0

    def set_aside(self, used_elsewhere: set[int]) -> None:
        """Lets blocks follow the plain gradient whose variables are used outside of their layers.

        Their curvature would be that of some uses only. A diagonal sees all uses, and stays.

        Args:
            used_elsewhere: ids of the variables.
        """
        aside: list[str] = []
        for position, block in enumerate(self.blocks):
            hidden = {
                whole_of(v).name for v in block.variables if id(whole_of(v)) in used_elsewhere
            }
            if hidden and not isinstance(block, DiagonalBlock | PlainGradient):
                reason = f"{', '.join(sorted(hidden))} is used outside of the layer too"
                self.blocks[position] = PlainGradient(block.layers, block.variables, reason)
                aside.append(f"{block.name} ({reason})")
        if aside:
            warnings.warn(
                f"tfkfac follows the plain gradient for {', '.join(aside)}: the curvature that the "
                "layer's own calls show would be wrong. For embeddings that also make logits, "
                "keras.layers.ReversibleEmbedding has a block of its own.",
                stacklevel=2,
            )

    def cost(self, *, batch_size: int) -> StepCost:
        """The operations of a step, of the layers whose number of uses Keras knows.

        Args:
            batch_size: Examples in a batch.
        """
        return total(block_costs(self.blocks, batch_size).values())

    def factor_bytes(self) -> int:
        """Bytes of one copy of all factors."""
        return sum(block.factor_size * block.bytes_each for block in self.blocks)

    def summary(
        self,
        *,
        batch_size: int = 128,
        factor_update_every: int = 10,
        inverse_update_every: int = 20,
        automatic: bool = True,
        print_fn: Callable[[str], Any] | None = None,
    ) -> None:
        """Prints a table of the blocks, in the manner of ``model.summary()``.

        Args:
            batch_size: For the predicted cost of a step.
            factor_update_every: Likewise.
            inverse_update_every: Likewise.
            automatic: Whether learning rate and damping are "auto", likewise.
            print_fn: Receives the text; prints to the terminal by default.
        """
        print_summary(
            self._model_name,
            self.blocks,
            coverage=self.coverage(),
            batch_size=batch_size,
            schedule=WorkSchedule(
                factor_update_every,
                inverse_update_every,
                tangents=WorkSchedule.tangents if automatic else 0,
                look_every=WorkSchedule.look_every if automatic else None,
            ),
            print_fn=print_fn,
        )

    def placement_summary(
        self,
        *,
        workers: int | None = None,
        placement: str | float | None = None,
        factor_update_every: int = 10,
        inverse_update_every: int = 20,
        print_fn: Callable[[str], Any] | None = None,
    ) -> None:
        """Prints which worker owns which block, what each keeps, and what it sends.

        Args:
            workers: W, to see what another number would do; those that train by default.
            placement: As for `KFAC`, likewise.
            factor_update_every: For the traffic of a step, on average.
            inverse_update_every: Likewise.
            print_fn: Receives the text; prints to the terminal by default.

        Raises:
            ValueError: The placement does not go with the number of workers, or the collection was
                only scanned and no number is given.
        """
        roles = self.roles
        if workers is not None:
            require_integer("workers", workers, minimum=1)
        if workers is not None or placement is not None:
            number = workers or (roles.placement.grid.workers if roles else 1)
            roles = Roles(self.curvature_blocks, number, placement or "comm_opt")
        if roles is None:
            raise ValueError(
                "Argument `workers` is needed to place the blocks of a collection that was only "
                "scanned: placement_summary(workers=4, placement='mem_opt')."
            )
        print_placement(
            self._model_name,
            self.blocks,
            roles,
            factor_update_every=factor_update_every,
            inverse_update_every=inverse_update_every,
            statistics_bytes=self.statistics_bytes,
            print_fn=print_fn,
        )

    def warn_of_fallbacks(self) -> None:
        """One warning that names all that falls back, but for what the user skips."""
        unknown = [block for block in self.fallbacks if block.reason != SKIPPED]
        if not unknown:
            return
        names = ", ".join(f"{b.name} ({b.reason}: {b.label})" for b in unknown)
        warnings.warn(
            f"tfkfac knows no Kronecker structure for {names}. "
            "`optimizer.layer_collection.summary()` shows all; `@tfkfac.register(LayerClass)` "
            "teaches it a layer.",
            stacklevel=2,
        )
