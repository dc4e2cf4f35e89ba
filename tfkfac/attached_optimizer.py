"""An optimizer that knows the model it trains, and sees its forward passes."""

from __future__ import annotations

import abc
import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkfac import keras_internals, recurrent_pass, xla_gaps
from tfkfac.blocks import RecurrentBlock
from tfkfac.callbacks.all_ranks import AllRanks
from tfkfac.callbacks.stop_if_failing import StopIfFailing
from tfkfac.callbacks.stop_if_late import StopIfLate
from tfkfac.capture import Recorder
from tfkfac.distribution.choice import has_replicas, is_over_horovod, require_unwrapped, workers_of
from tfkfac.distribution.workers import Workers
from tfkfac.layer_collection import LayerCollection
from tfkfac.loss_scaling import adopt
from tfkfac.record import Record
from tfkfac.registry import supported
from tfkfac.trained_by_step import TrainedByStep


class AttachedOptimizer(keras.optimizers.Optimizer):
    """The part of KFAC that meets the model; what it does with it is in `tfkfac.optimizer`."""

    distribution: str

    def __init__(self, **kwargs: Any) -> None:
        require_unwrapped(type(self))
        super().__init__(**kwargs)
        self._recorder = Recorder(
            relevant=self._is_relevant,
            watched=self._watched_variables,
            prepare=self._build_early,
            workers=lambda: self.workers,
        )
        self._model_reference: Any = lambda: None
        self._trained_by_step = TrainedByStep()
        self._workers: Workers | None = None

    @property
    def workers(self) -> Workers:
        """Who makes the steps; found out when they are first asked for."""
        if self._workers is None:
            strategy = self._require_model().distribute_strategy
            self._workers = workers_of(self.distribution, strategy)
        return self._workers

    @property
    @abc.abstractmethod
    def layer_collection(self) -> LayerCollection:
        """The blocks of the model."""

    @abc.abstractmethod
    def require_supported(self, model: Any) -> None:
        """Raises if the model's losses cannot be trained on."""

    def attach(self, model: Any) -> None:
        """Introduces the optimizer to the model that it trains.

        ``model.compile(optimizer=...)`` does so by itself. Call it in training loops of your own,
        and for models whose `compile` has other arguments.

        Args:
            model: The Keras model.

        Raises:
            ValueError: The optimizer belongs to another model, or the model was compiled with a
                loss that has no known predictive distribution.
        """
        if not isinstance(model, keras.Model):
            raise ValueError(f"Argument `model` must be a keras.Model, got {model!r}.")
        if keras_internals.is_rematerialised(model):
            raise ValueError(
                f"Model {model.name!r} was made under keras.RematScope, which hides its whole "
                "forward pass from KFAC. Put only some of its layers under the scope."
            )
        current = self._model_reference()
        if current is not model and (current is not None or not self._was_built_for(model)):
            name = "that is gone" if current is None else repr(current.name)
            raise ValueError(
                f"This KFAC already trains a model, {name}, and cannot also train "
                f"{model.name!r}: its curvature belongs to one model. Make a new "
                "tfkfac.KFAC(...), or call optimizer.detach() first if it has not trained yet."
            )
        self.require_supported(model)
        if is_over_horovod(self.distribution):
            model.jit_compile = False  # Horovod's operations are none of XLA's
        if model.compiled and model.jit_compile and self._takes_tangents():
            self._leave_xla(model)
        if current is None:
            self._model_reference = weakref.ref(model)
            self._recorder.attach(model)
        wrapping = getattr(model, "optimizer", None)
        if wrapping is not self and getattr(wrapping, "inner_optimizer", None) is self:
            adopt(wrapping, self._decide_together, self.build_to_save)
        if has_replicas(model.distribute_strategy):
            self._build_early()

    @staticmethod
    def _leave_xla(model: Any) -> None:
        """Where it cannot compile a step."""
        gaps = xla_gaps.of(model)
        if gaps:
            xla_gaps.warn(gaps)
            model.jit_compile = False

    def _decide_together(self, finite: tf.Tensor, gradients: Sequence[Any]) -> tf.Tensor:
        """Whether a step with a scaled loss is made: all workers skip it if one of them must.

        Args:
            finite: Whether the gradients of this worker are.
            gradients: Of this worker; the ``LossScaleOptimizer`` takes them for those of all.
        """
        if self.workers.number > 1:
            of_all = self.workers.exchange(tf.cast(finite, tf.float32)[None])
            finite = tf.reduce_all(of_all > 0)
        record = self._recorder.find()
        if self.built and record is not None:
            tf.cond(finite, lambda: None, lambda: self._skip_scaled(record, gradients))
        return finite

    @property
    def trained_variables(self) -> list[Any]:
        """The variables of the model that train."""
        return list(self._require_model().trainable_variables)

    def detach(self) -> None:
        """Takes the optimizer's stand-ins off the model, which is then as it was before."""
        self._recorder.detach()
        self._model_reference = lambda: None

    def arguments_of_fit(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What `fit` is given otherwise than it was: more callbacks.

        With several processes one of them prints.

        Args:
            given: The arguments of `fit`, by name.
        """
        self._trained_by_step.warn_if_changed(self._require_model())
        adjusted = {"callbacks": self._callbacks_of_fit(given.get("callbacks"))}
        if given.get("verbose", "auto") == "auto" and self.workers.process > 0:
            adjusted["verbose"] = 0
        return adjusted

    def _callbacks_of_fit(self, callbacks: Any) -> Any:
        """The callbacks that `fit` is given, behind those that KFAC wants there.

        Args:
            callbacks: None, one, several, or a ``keras.callbacks.CallbackList``.

        Raises:
            ValueError: A callback cannot do what it promises.
        """
        is_list = isinstance(callbacks, keras.callbacks.CallbackList)
        own = callbacks.callbacks if is_list else keras.tree.flatten(callbacks or [])
        _refuse_backups_within_epochs(own)
        first: list[Any] = [StopIfFailing(self)]
        if self.workers.processes > 1:  # before others, since these wait for all workers
            first += [each for each in own if isinstance(each, StopIfLate)] or [StopIfLate()]
        if is_over_horovod(self.distribution):
            first.append(AllRanks(self.workers, self))
        kinds = (StopIfFailing, StopIfLate, AllRanks)
        others = [each for each in own if not isinstance(each, kinds)]
        if not is_list:
            return [*first, *others]
        for callback in first:
            callback.set_model(callbacks.model)
            callback.set_params(callbacks.params)
        own[:] = [*first, *others]
        return callbacks

    @abc.abstractmethod
    def _skip_scaled(self, record: Record, gradients: Sequence[Any]) -> None:
        """The loss scale is too large for a worker's gradients, so that no step will be made."""

    @abc.abstractmethod
    def raise_if_failing(self) -> None:
        """Raises if training goes wrong again and again."""

    @contextlib.contextmanager
    def record(self) -> Iterator[Record]:
        """Records the forward passes of a training step that KFAC cannot see by itself.

        For a `train_step` that calls neither the model as a whole nor `compute_loss` (a VAE), or
        calls the model several times (a GAN's discriminator).

        Example:

        ```python
        with tf.GradientTape() as tape:
            with optimizer.record() as record:
                y_pred = model(x, training=True)
                loss = record.loss(loss_fn, y, y_pred)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        ```

        Yields:
            The record; its `loss` evaluates a Keras loss and notes it.
        """
        self._require_model()
        with self._recorder.recording(explicit=True) as record:
            yield record

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> Any:
        """As for every Keras optimizer.

        Raises:
            ValueError: Some of the variables were not trained when the optimizer was built.
        """
        known = {id(variable) for variable in self._trainable_variables}
        new = [v for v in trainable_variables or () if self.built and id(v) not in known]
        if new:
            raise ValueError(
                f"{len(new)} variables ({new[0].path}, ...) train that did not when this KFAC was "
                "built: layers were unfrozen or added since. Call optimizer.rebuild(model) and "
                "compile the model again, or compile it with a new tfkfac.KFAC(...)."
            )
        return super().apply(grads, trainable_variables)

    def _build_early(self) -> None:
        """Makes the state before the training step is traced, which then is traced once.

        A function that makes variables is traced twice, and under a strategy not at all if it has
        branches. Layers that are built only when they are called (an activation with weights) need
        that.
        """
        model = self._require_model()
        self._trained_by_step.note(model)
        wrapping = getattr(model, "optimizer", None)
        wrapped = getattr(wrapping, "inner_optimizer", None) is self
        optimizer: Any = wrapping if wrapped else self
        complete = model.built and all(
            layer.built for layer in keras_internals.flatten_layers(model)
        )
        if complete and not optimizer.built:
            with model.distribute_strategy.scope():
                optimizer.build(model.trainable_variables)

    def build_to_save(self) -> None:
        """Makes the state for a file that is written before training, if the model has weights.

        Several processes would have to do so together, but one of them may save alone.
        """
        attached = self._model_reference() is not None
        if not self.built and attached and self.workers.processes == 1:
            self._build_early()

    def _is_relevant(self, layer: Any) -> bool:
        """Whether a layer is to be observed.

        A recurrent layer that is observed runs another loop than Keras' own: only if a block of it
        needs that.
        """
        if not isinstance(layer, keras.layers.RNN):
            return supported(layer)
        if not self._require_model().built:
            return recurrent_pass.why_not(layer) is None
        blocks = [block for block in self.layer_collection if isinstance(block, RecurrentBlock)]
        return any(layer is block.layers[0] for block in blocks)

    def _watched_variables(self) -> list[Any]:
        """The variables that the backward pass of the curvature has to reach."""
        model = self._require_model()
        if self._takes_tangents():
            return list(model.trainable_variables)
        return self.layer_collection.diagonal_variables if model.built else []

    @abc.abstractmethod
    def _takes_tangents(self) -> bool:
        """Whether a step needs Jacobian-vector products."""

    def _was_built_for(self, model: Any) -> bool:
        """Whether the state, if there is any, is that of the model's variables."""
        trained = {id(variable) for variable in self._trainable_variables}
        return not self.built or trained == {id(v) for v in model.trainable_variables}

    def _require_model(self) -> Any:
        model = self._model_reference()
        if model is None:
            raise ValueError(
                "This KFAC has no model. `import tfkfac` before the model is compiled or loaded, "
                "so that `model.compile(optimizer=...)` introduces it; otherwise call "
                "optimizer.attach(model), or construct it with KFAC(model=model)."
            )
        return model


def _refuse_backups_within_epochs(callbacks: Sequence[Any]) -> None:
    """Raises if Keras would restore a wrong position.

    Raises:
        ValueError: Naming the argument.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore) and callback.save_freq != "epoch":
            raise ValueError(
                f"BackupAndRestore(save_freq={callback.save_freq!r}): Keras starts again from the "
                "beginning of the epoch, with the weights of its middle, so that the training is "
                'another one than without the interruption. Use save_freq="epoch".'
            )
