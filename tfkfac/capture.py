"""Seeing a Keras model train: layer inputs, pre-activations and losses of its own forward pass.

Light stand-ins for a few bound methods sit on the *instances* of the model and its layers (never
on classes), record while a training step runs, and step aside otherwise. They live in the
instance dictionaries, where neither configs, nor files, nor clones look.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals, linalg, recurrent_pass
from tfkfac.blocks import Block, CurvatureBlock, Use
from tfkfac.losses import LossCall
from tfkfac.stand_ins import StandIn, noting_preactivations
from tfkfac.variable_reads import VariableReads, current_graph

_RECORDS = "_tfkfac_records"
"""Attribute of a graph that holds the records made in it: they live and die with the graph."""


@dataclasses.dataclass(eq=False)
class Record:
    """What one forward pass left behind.

    Attributes:
        graph: The graph of the pass, None in eager mode.
        explicit: Made by the user's ``with optimizer.record()``.
        tape: Leads from outputs back to pre-activations, and to nothing before the first of them.
        uses: id of a layer → its uses.
        losses: The losses that were evaluated.
        reads: Tells of variables that are used outside of their layers.
        used_elsewhere: ids of those.
        unreachable: Names of layers that ran where the backward pass cannot reach them.
        passes: How many forward passes are in it.
        open: Whether the forward pass is still running.
    """

    graph: Any
    explicit: bool
    tape: tf.GradientTape
    reads: VariableReads
    used_elsewhere: set[int] = dataclasses.field(default_factory=set)
    uses: dict[int, list[Use]] = dataclasses.field(default_factory=dict)
    losses: list[LossCall] = dataclasses.field(default_factory=list)
    unreachable: list[str] = dataclasses.field(default_factory=list)
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
        self.losses.append(LossCall(loss, y_true, y_pred, sample_weight, weight))
        return loss(y_true, y_pred, sample_weight) * linalg.scalar(weight, loss.dtype)

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


class Recorder:
    """Records the training forward passes of one model for one optimizer.

    Args:
        relevant: Whether a layer is to be observed.
        watched: Returns the variables that the backward pass of the curvature has to reach.
        prepare: Called before Keras makes a function of the training step.
    """

    def __init__(
        self,
        relevant: Callable[[Any], bool],
        watched: Callable[[], Iterable[Any]] = tuple,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._relevant = relevant
        self._watched = watched
        self._prepare = prepare
        self._eager: dict[tuple[int, Any], Record] = {}
        self._model: Any = None
        self._seen: list[tuple[Any, str, Callable[..., Any]]] = []
        self._layers: dict[int, Any] = {}

    def attach(self, model: Any) -> None:
        """Observes the model's forward pass and its loss; its layers when they first run."""
        self._model = model
        self._observe(model, "call", self._on_model_call)
        self._observe(model, "compute_loss", self._on_compute_loss)
        self._observe(model, "train_step", self._on_train_step)
        self._observe(model, "make_train_function", self._on_make_train_function)

    def detach(self) -> None:
        """Takes every stand-in off again."""
        for owner, name, observer in self._seen:
            stand_in = vars(owner).get(name)
            if isinstance(stand_in, StandIn):
                stand_in.observers.remove(observer)
                if not stand_in.observers:
                    del vars(owner)[name]
                    if stand_in.own is not None:
                        vars(owner)[name] = stand_in.own
        self._seen.clear()
        self._layers.clear()
        self._eager.clear()
        self._model = None

    @contextlib.contextmanager
    def recording(self, *, explicit: bool) -> Iterator[Record]:
        """Records the forward passes within the context.

        Args:
            explicit: The user asked for it: whatever was recorded before is dropped, and any
                number of forward passes may follow.
        """
        self._observe_layers()
        record = self._find()
        if record is None or explicit or record.explicit:
            tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
            graph = current_graph()
            record = Record(graph, explicit, tape, VariableReads(graph, self._variables()))
            self._records(record.graph)[self._key()] = record
        record.passes += 1
        record.open = True
        try:
            with record.tape if record.passes == 1 else contextlib.nullcontext():
                for variable in self._watched():
                    record.tape.watch(keras_internals.uncast(variable))
                yield record
        except BaseException:  # of an interrupted step nothing is kept
            self._forget(record)
            raise
        finally:
            record.open = False
            record.used_elsewhere |= record.reads.elsewhere(self._variables())

    def take(self, model_name: str) -> Record:
        """The record of the current step, which is forgotten here.

        Raises:
            ValueError: Nothing usable was recorded; the message says what to do.
        """
        record = self._find()
        if record is None:
            raise ValueError(
                f"KFAC saw no training forward pass of model {model_name!r} in this step. In a "
                "loop of your own, call `model(x, training=True)` and `model.compute_loss(...)` "
                "inside the gradient tape; where that does not fit, use "
                "`with optimizer.record() as record:` around the forward pass and "
                "`record.loss(loss, y_true, y_pred)` for the loss."
            )
        self._forget(record)
        if not record.explicit and record.passes > 1:
            raise ValueError(
                f"Model {model_name!r} was called {record.passes} times in one training step, so "
                "KFAC cannot tell which passes the loss is made of. Use `with optimizer.record() "
                "as record:` around those that count."
            )
        if not record.losses:
            raise ValueError(
                f"KFAC saw the forward pass of model {model_name!r}, but no loss. Use "
                "`model.compute_loss(...)` of a compiled model, or `with optimizer.record() as "
                "record:` and `record.loss(loss, y_true, y_pred)`."
            )
        return record

    def _variables(self) -> list[Any]:
        """The trainable variables of all observed layers."""
        return [v for layer in self._layers.values() for v in layer.trainable_variables]

    def _observe_layers(self) -> None:
        """Observes the model's layers, those too that came to be since it was attached."""
        for layer in keras_internals.flatten_layers(self._model):
            if id(layer) not in self._layers and self._relevant(layer):
                self._layers[id(layer)] = layer
                if isinstance(layer, keras.layers.TimeDistributed):
                    self._observe(layer, "call", self._on_time_distributed)
                elif isinstance(layer, keras.layers.RNN):
                    observer = functools.partial(self._on_inner_loop, layer)
                    self._observe(layer, "inner_loop", observer)
                    self._observe(layer, "call", functools.partial(self._on_recurrent_call, layer))
                else:
                    self._observe(layer, "call", functools.partial(self._on_layer_call, layer))
            elif id(layer) not in self._layers and isinstance(layer, keras.layers.Bidirectional):
                self._layers.add(id(layer))
                for name in keras_internals.fused_paths(layer):
                    self._observe(layer, name, self._on_can_attempt_fused)

    def _observe(self, owner: Any, name: str, observer: Callable[..., Any]) -> None:
        stand_in = vars(owner).get(name)
        if not isinstance(stand_in, StandIn):
            own = vars(owner).get(name)
            stand_in = vars(owner)[name] = StandIn(getattr(owner, name), own)
        stand_in.observers.append(observer)
        self._seen.append((owner, name, observer))

    def _on_model_call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        record = self._find()
        training = kwargs.get("training") in (None, True) and (
            keras_internals.gradient_tape_is_active()
        )
        if not training or (record is not None and record.open):
            return call(*args, **kwargs)
        if record is not None and record.explicit:
            return call(*args, **kwargs)
        with self.recording(explicit=False):
            return call(*args, **kwargs)

    def _on_make_train_function(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._prepare()
        return make(*args, **kwargs)

    def _on_train_step(self, train_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._eager.pop(self._key(), None)  # of an eager step that was interrupted
        return train_step(*args, **kwargs)

    def _on_compute_loss(self, compute_loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        record = self._find()
        compiled = keras_internals.compiled_losses(self._model)
        if record is None or compiled is None:
            return compute_loss(*args, **kwargs)

        def note(loss: Any, weight: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> None:
            record.losses.append(LossCall(loss, y_true, y_pred, sample_weight, weight))

        try:
            with keras_internals.watching_losses(compiled, note):
                return compute_loss(*args, **kwargs)
        except BaseException:
            self._forget(record)
            raise

    def _on_layer_call(
        self, layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        record = self._find()
        if record is None or not record.open:
            return call(*args, **kwargs)
        if record.graph is not current_graph():
            record.unreachable.append(layer.name)
            return call(*args, **kwargs)
        arguments = keras_internals.arguments_of(layer, args, kwargs)
        _, inputs, *_ = arguments.values()
        if isinstance(inputs, tf.RaggedTensor):
            raise ValueError(
                f"Layer {layer.name!r} is called with a ragged tensor, for which KFAC has no "
                "curvature. Make it dense (`inputs.to_tensor()`) and mask what was added, or leave "
                f"the layer out: KFAC(skip=({layer.name!r},))."
            )
        with record.reads.within(layer.trainable_variables):
            if "activation" in vars(layer):
                with noting_preactivations(layer, record.tape) as preactivations:
                    outputs = call(*args, **kwargs)
            else:
                outputs = call(*args, **kwargs)
                record.tape.watch(outputs)
                preactivations = [outputs]
        mask = keras_internals.mask_at_places(layer, inputs, arguments)
        record.uses.setdefault(id(layer), []).extend(
            Use(inputs, seen, mask, arguments) for seen in preactivations
        )
        return outputs

    def _on_time_distributed(
        self, call: Callable[..., Any], inputs: Any, training: Any = None, mask: Any = None
    ) -> Any:
        """Gives the uses at every step their part of the mask, which Keras keeps from the layer."""
        record = self._find()
        if record is None or not record.open or mask is None:
            return call(inputs, training=training, mask=mask)
        before = {key: len(uses) for key, uses in record.uses.items()}
        outputs = call(inputs, training=training, mask=mask)
        for key, uses in record.uses.items():
            start, steps = before.get(key, 0), mask.shape[1] or 0
            new = uses[start:]
            if new and steps and len(new) % steps == 0 and new[0].mask is None:
                each = len(new) // steps
                uses[start:] = [
                    dataclasses.replace(use, mask=mask[:, position // each])
                    for position, use in enumerate(new)
                ]
        return outputs

    def _on_recurrent_call(
        self, layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        record = self._find()
        if record is None or not record.open or record.graph is not current_graph():
            return call(*args, **kwargs)
        with record.reads.within(layer.trainable_variables):
            return call(*args, **kwargs)

    def _on_inner_loop(
        self,
        layer: Any,
        inner_loop: Callable[..., Any],
        sequences: tf.Tensor,
        initial_state: Any,
        mask: Any,
        training: Any = False,
    ) -> Any:
        record = self._find()
        if record is None or not record.open:
            return inner_loop(sequences, initial_state, mask, training)
        if record.graph is not current_graph():
            record.unreachable.append(layer.name)
            return inner_loop(sequences, initial_state, mask, training)
        results, passes = recurrent_pass.run(
            layer, sequences, initial_state, mask, training, record.tape.watch
        )
        for seen in passes:
            use = Use(seen.inputs, seen.projections, seen.mask, {"cell_pass": seen})
            record.uses.setdefault(id(seen.cell), []).append(use)
        return results

    def _on_can_attempt_fused(
        self, can_attempt: Callable[..., bool], *args: Any, **kwargs: Any
    ) -> bool:
        record = self._find()
        if record is None or not record.open:
            return can_attempt(*args, **kwargs)
        return False  # two layers that run as one operation could not be observed

    def _find(self) -> Record | None:
        """The record of the current trace and replica.

        The update may run in an inner graph of the trace (a branch, a merged replica), never in
        an outer one.
        """
        graph, key = current_graph(), self._key()
        while graph is not None:
            found = getattr(graph, _RECORDS, {}).get(key)
            if found is not None:
                return found
            graph = getattr(graph, "outer_graph", None)
        return self._eager.get(key)

    def _forget(self, record: Record) -> None:
        self._records(record.graph).pop(self._key(), None)

    def _records(self, graph: Any) -> dict[tuple[int, Any], Record]:
        if graph is None:
            return self._eager
        if not hasattr(graph, _RECORDS):
            setattr(graph, _RECORDS, {})
        return getattr(graph, _RECORDS)

    def _key(self) -> tuple[int, Any]:
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return id(self), 0
        return id(self), context.replica_id_in_sync_group
