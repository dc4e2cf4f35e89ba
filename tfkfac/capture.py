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

from tfkfac import keras_internals, recurrent_pass, watched_losses
from tfkfac.blocks import Use
from tfkfac.distribution.workers import Alone, Workers
from tfkfac.observation import LossCall
from tfkfac.record import Record, Replay
from tfkfac.record_store import RecordStore
from tfkfac.stand_ins import StandIn, noting_preactivations
from tfkfac.variable_reads import VariableReads, current_graph


class Recorder:
    """Records the training forward passes of one model for one optimizer.

    Args:
        relevant: Whether a layer is to be observed.
        watched: Returns the variables that the backward pass of the curvature has to reach.
        prepare: Called before Keras makes a function of the training step.
        workers: Returns who makes the same steps.
    """

    def __init__(
        self,
        relevant: Callable[[Any], bool],
        watched: Callable[[], Iterable[Any]] = tuple,
        prepare: Callable[[], None] = lambda: None,
        workers: Callable[[], Workers] = Alone,
    ) -> None:
        self._relevant = relevant
        self._watched = watched
        self._prepare = prepare
        self._workers = workers
        self._records = RecordStore()
        self._model: Any = None
        self._seen: list[tuple[Any, str, Callable[..., Any]]] = []
        self._layers: dict[int, Any] = {}
        self._paused = False

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
        self._records.clear()
        self._model = None

    @contextlib.contextmanager
    def recording(self, *, explicit: bool) -> Iterator[Record]:
        """Records the forward passes within the context.

        Args:
            explicit: The user asked for it: whatever was recorded before is dropped, and any
                number of forward passes may follow.
        """
        self._observe_layers()
        record = self._records.find()
        if record is None or explicit or record.explicit:
            tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
            graph = current_graph()
            reads = VariableReads(graph, self._variables())
            states = keras_internals.states_of(self._model)
            before = [(variable, tf.convert_to_tensor(variable)) for variable in states]
            record = Record(graph, explicit, tape, self._workers(), reads, before)
            self._records.keep(record)
        record.passes += 1
        record.open = True
        try:
            with record.tape if record.passes == 1 else contextlib.nullcontext():
                for variable in self._watched():
                    record.tape.watch(keras_internals.uncast(variable))
                yield record
        except BaseException:  # of an interrupted step nothing is kept
            self._records.forget(record)
            raise
        finally:
            record.open = False
            record.used_elsewhere |= record.reads.elsewhere(self._variables())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While the context lasts, the model runs as it does when it is observed, unobserved."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def find(self) -> Record | None:
        """The record of the current step, if there is one; it stays."""
        return self._records.find()

    def take(self, model_name: str) -> Record:
        """The record of the current step, which is forgotten here.

        Raises:
            ValueError: Nothing usable was recorded; the message says what to do.
        """
        record = self._records.find()
        if record is None:
            raise ValueError(
                f"KFAC saw no training forward pass of model {model_name!r} in this step. In a "
                "loop of your own, call `model(x, training=True)` and `model.compute_loss(...)` "
                "inside the gradient tape; where that does not fit, use "
                "`with optimizer.record() as record:` around the forward pass and "
                "`record.loss(loss, y_true, y_pred)` for the loss."
            )
        self._records.forget(record)
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
            if id(layer) not in self._layers and (_is_wrapper(layer) or self._relevant(layer)):
                self._layers[id(layer)] = layer
                for name, observer in self._observers_of(layer):
                    self._observe(layer, name, observer)

    def _observers_of(self, layer: Any) -> list[tuple[str, Callable[..., Any]]]:
        """Which methods of a layer are observed, and how."""
        if isinstance(layer, keras.layers.Bidirectional):
            fused = keras_internals.fused_paths(layer)
            return [(name, self._on_can_attempt_fused) for name in fused]
        if isinstance(layer, keras.layers.TimeDistributed):
            return [("call", self._on_time_distributed)]
        if isinstance(layer, keras.layers.RNN):
            return [
                ("inner_loop", functools.partial(self._on_inner_loop, layer)),
                ("call", functools.partial(self._on_recurrent_call, layer)),
            ]
        return [("call", functools.partial(self._on_layer_call, layer))]

    def _observe(self, owner: Any, name: str, observer: Callable[..., Any]) -> None:
        stand_in = vars(owner).get(name)
        if not isinstance(stand_in, StandIn):
            own = vars(owner).get(name)
            stand_in = vars(owner)[name] = StandIn(getattr(owner, name), own)
        stand_in.observers.append(observer)
        self._seen.append((owner, name, observer))

    def _on_model_call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        record = self._records.find()
        training = (
            kwargs.get("training") in (None, True)
            and keras_internals.gradient_tape_is_active()
            and not keras_internals.is_rehearsal()
        )
        if not training or self._paused or (record is not None and record.open):
            return call(*args, **kwargs)
        if record is not None and record.explicit:
            return call(*args, **kwargs)
        with self.recording(explicit=False) as record:
            outputs = call(*args, **kwargs)
            record.replay = Replay((args, kwargs), outputs)
        return outputs

    def _on_make_train_function(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._prepare()
        return make(*args, **kwargs)

    def _on_train_step(self, train_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._records.forget_eager()  # of a step that was interrupted
        return train_step(*args, **kwargs)

    def _on_compute_loss(self, compute_loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        record = self._records.find()
        compiled = keras_internals.compiled_losses(self._model)
        if record is None or compiled is None or self._paused:
            return compute_loss(*args, **kwargs)

        def note(value: tf.Tensor, *call: Any) -> tf.Tensor:
            return record.noted(LossCall(*call), value)

        try:
            with watched_losses.watching_losses(compiled, note):
                value = compute_loss(*args, **kwargs)
        except BaseException:
            self._records.forget(record)
            raise
        if record.replay is not None:
            record.replay.loss_arguments = keras_internals.arguments_of(
                self._model, args, kwargs, "compute_loss"
            )
            record.replay.value = value
        return value

    def _on_layer_call(
        self, layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        record = self._records.find()
        if record is None or not record.open:
            return call(*args, **kwargs)
        if record.graph is not current_graph():
            record.unreachable.append(layer.name)
            return call(*args, **kwargs)
        arguments = keras_internals.arguments_of(layer, args, kwargs)
        _, inputs, *_ = arguments.values()
        _require_dense(layer, inputs)
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
        record = self._records.find()
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
        record = self._records.find()
        if record is None or not record.open or record.graph is not current_graph():
            return call(*args, **kwargs)
        _, inputs, *_ = keras_internals.arguments_of(layer, args, kwargs).values()
        _require_dense(layer, inputs)
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
        record = self._records.find()
        if self._paused:
            arguments = (layer, sequences, initial_state, mask, training)
            return recurrent_pass.run(*arguments, lambda projections: None)[0]
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
        record = self._records.find()
        if not self._paused and (record is None or not record.open):
            return can_attempt(*args, **kwargs)
        return False  # two layers that run as one operation could not be observed


def _require_dense(layer: Any, inputs: Any) -> None:
    """Refuses ragged inputs of a layer."""
    if isinstance(inputs, tf.RaggedTensor):
        raise ValueError(
            f"Layer {layer.name!r} is called with a ragged tensor, for which KFAC has no "
            "curvature. Make it dense (`inputs.to_tensor()`) and mask what was added, or leave "
            f"the layer out: KFAC(skip=({layer.name!r},))."
        )


def _is_wrapper(layer: Any) -> bool:
    """Whether a layer keeps from the layers in it something that has to be seen."""
    return isinstance(layer, keras.layers.Bidirectional | keras.layers.TimeDistributed)
