"""One update does not depend on how a batch is presented, and no forward pass is run twice."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import attached, train

import tfkfac

BATCH = 8
STEPS = 3

Parameters = list[np.ndarray]
Way = Callable[[keras.Model, tfkfac.KFAC], None]


class OwnTrainStep(keras.Model):
    """A Functional model with a `train_step` as the Keras guides write it."""

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def _model(model_class: type = keras.Model) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((models.FEATURES,))
    hidden = keras.layers.Dense(5, activation="tanh")(inputs)
    return model_class(inputs, keras.layers.Dense(models.CLASSES)(hidden))


def _batches() -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    x, y = models.vectors(STEPS * BATCH)
    yield from tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def _fit(model: keras.Model, optimizer: tfkfac.KFAC, **arguments: Any) -> None:
    model.compile(optimizer=optimizer, loss=models.crossentropy(), **arguments)
    x, y = models.vectors(STEPS * BATCH)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


def _tape_step(model: keras.Model, optimizer: tfkfac.KFAC, x: tf.Tensor, y: tf.Tensor) -> None:
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def _record_step(model: keras.Model, optimizer: tfkfac.KFAC, x: tf.Tensor, y: tf.Tensor) -> None:
    with tf.GradientTape() as tape, optimizer.record() as record:
        loss = record.loss(models.crossentropy(), y, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def _loop(
    model: keras.Model, optimizer: tfkfac.KFAC, *, step: Callable[..., None], in_graph: bool
) -> None:
    if step is _tape_step:
        model.compile(loss=models.crossentropy())  # for compute_loss
    optimizer.attach(model)
    optimizer.build(model.trainable_variables)
    take = functools.partial(step, model, optimizer)
    if in_graph:
        take = tf.function(take)
    for x, y in _batches():
        take(x, y)


WAYS: dict[str, Way] = {
    "graph": _fit,
    "jit_compile": functools.partial(_fit, jit_compile=True),
    "steps_per_execution": functools.partial(_fit, steps_per_execution=2),
    "train_step": _fit,
    "tape in eager": functools.partial(_loop, step=_tape_step, in_graph=False),
    "tape in tf.function": functools.partial(_loop, step=_tape_step, in_graph=True),
    "record in eager": functools.partial(_loop, step=_record_step, in_graph=False),
    "record in tf.function": functools.partial(_loop, step=_record_step, in_graph=True),
}


def _train(way: Way, *, method: str, fisher: str, model_class: type = keras.Model) -> Parameters:
    """Parameters after three steps, in which inverses have been renewed several times."""
    model = _model(model_class)
    way(model, models.kfac(method=method, fisher=fisher, inverse_update_every=2))
    return model.get_weights()


@functools.cache
def _reference(method: str, fisher: str) -> Parameters:
    return _train(functools.partial(_fit, run_eagerly=True), method=method, fisher=fisher)


METHODS = ("cholesky", "eigen")
FISHERS = ("mc", "exact", "empirical")

QUICK = [
    *itertools.product(["tape in eager"], METHODS, FISHERS),
    ("record in eager", "cholesky", "mc"),
    ("record in tf.function", "cholesky", "empirical"),
    ("tape in tf.function", "eigen", "mc"),
    ("graph", "cholesky", "mc"),
    ("graph", "eigen", "exact"),
    ("jit_compile", "cholesky", "mc"),
    ("jit_compile", "eigen", "exact"),
    ("steps_per_execution", "cholesky", "mc"),
    ("train_step", "eigen", "mc"),
]
SLOW = sorted(set(itertools.product(WAYS, METHODS, FISHERS)) - set(QUICK))


@pytest.mark.parametrize(
    ("way", "method", "fisher"),
    [*QUICK, *(pytest.param(*setting, marks=pytest.mark.slow) for setting in SLOW)],
)
def test_update_does_not_depend_on_how_a_batch_is_presented(
    way: str, method: str, fisher: str
) -> None:
    model_class = OwnTrainStep if way == "train_step" else keras.Model
    parameters = _train(WAYS[way], method=method, fisher=fisher, model_class=model_class)
    for ours, expected in zip(parameters, _reference(method, fisher), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_reference_trains_and_its_settings_matter() -> None:
    """Guards the tests above against comparing updates that are all nothing."""
    settings = [(method, fisher) for method in ("cholesky", "eigen") for fisher in ("mc", "exact")]
    trained = [np.concatenate([w.ravel() for w in _reference(*setting)]) for setting in settings]
    trained.append(np.concatenate([w.ravel() for w in _model().get_weights()]))
    for i, one in enumerate(trained):
        assert all(np.abs(one - other).max() > 1e-3 for other in trained[:i])


def test_seed_decides_the_samples() -> None:
    one, again, other = (train(attached(models.kfac(seed=seed)), 1) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_samples_are_new_in_every_step() -> None:
    optimizer = models.kfac(learning_rate=0.0, factor_decay=0.0)
    model = attached(optimizer)
    seen = []
    for _ in range(3):
        train(model, 1)
        seen.append(optimizer.layer_collection["logits"].factors["G"].numpy())
    assert not any(np.allclose(a, b) for a, b in itertools.combinations(seen, 2))


class CountsTraces(keras.Sequential):
    """Counts how often Python runs its training step, and keeps the last graph of one."""

    traces = 0
    graph: Any = None

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        self.traces += 1
        self.graph = tf.compat.v1.get_default_graph()
        return super().train_step(data)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_training_never_retraces_after_the_first_epoch(steps_per_execution: int) -> None:
    x, y = models.vectors(2 * BATCH + 3)  # the last batch is a partial one
    model = CountsTraces(models.sequential().layers)
    optimizer = models.kfac(factor_update_every=2, inverse_update_every=3, kl_clip=0.1)
    model.compile(
        optimizer=optimizer, loss=models.crossentropy(), steps_per_execution=steps_per_execution
    )
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    model.fit(dataset, epochs=1, verbose=0)
    after_first_epoch = model.traces
    assert after_first_epoch > 0
    model.fit(dataset, verbose=0)
    optimizer.damping = 0.5
    optimizer.factor_update_every = 1
    optimizer.momentum = 0.0
    optimizer.learning_rate = 0.0
    before = model.get_weights()
    model.fit(dataset, verbose=0)
    assert model.traces == after_first_epoch
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_model_of_several_losses_is_traced_once() -> None:
    """Keras makes the means of the losses while it traces: the graph would be made twice."""
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(3)(inputs), keras.layers.Dense(2)(inputs)]
    traces = []

    class Counted(keras.Model):
        def train_step(self, data: Any) -> dict[str, tf.Tensor]:
            traces.append(data)
            return super().train_step(data)

    model = Counted(inputs, outputs)
    model.compile(optimizer=models.kfac(), loss=["mse", "mse"])
    x = np.ones((BATCH, 4), "float32")
    logs = model.fit(x, [x[:, :3], x[:, :2]], batch_size=BATCH, verbose=0).history
    assert len(traces) == 1
    assert len(logs) == 3  # the loss and its two parts


def _operations(graph: Any) -> Iterator[tuple[str, str, bool]]:
    """(name, type, whether its result is used) of every operation, branches included.

    A function that is called counts at every call, under the name of the caller.
    """
    definition = graph.as_graph_def()
    functions = {function.signature.name: function for function in definition.library.function}
    pending = [("", definition.node, [result.name for result in graph.outputs])]
    seen: set[str] = set()
    while pending:
        caller, nodes, results = pending.pop()
        read = {name.split(":")[0] for name in [*results, *(i for n in nodes for i in n.input)]}
        yield from ((f"{caller}{node.name}", node.op, node.name in read) for node in nodes)
        for node in nodes:
            is_call = node.op == "PartitionedCall"
            for attribute in node.attr.values():
                called = {attribute.func.name, *(function.name for function in attribute.list.func)}
                for name in (called & functions.keys()) - (set() if is_call else seen):
                    seen.add(name)
                    prefix = f"{caller}{node.name}/" if is_call else caller
                    pending.append((prefix, functions[name].node_def, functions[name].ret.values()))


@functools.cache
def _counts(factory: Callable[[], keras.Model], fisher: str | None) -> collections.Counter[str]:
    """How many operations of each type a step has; "… forward" in the forward pass alone.

    "… used" are those that are not pruned: TensorFlow differentiates a convolution with respect to
    both operands, whether both are asked for or not.

    Args:
        factory: The model.
        fisher: The estimator of KFAC, or None for gradient descent.
    """
    model = CountsTraces(factory().layers)
    x, y = models.data_of(factory)
    optimizer = keras.optimizers.SGD(0.1) if fisher is None else models.kfac(fisher=fisher)
    model.compile(optimizer=optimizer, loss=models.crossentropy())
    model.fit(x, y, batch_size=len(x), verbose=0)
    counts: collections.Counter[str] = collections.Counter()
    for name, kind, used in _operations(model.graph):
        forward = not name.startswith("gradient_tape/") and "kfac" not in name
        counts[kind] += 1
        counts[f"{kind} used"] += used
        counts[f"{kind} forward"] += forward
    return counts


@pytest.mark.parametrize("fisher", ["mc", "exact"])
def test_dense_step_has_one_forward_pass_and_only_the_products_it_needs(fisher: str) -> None:
    sgd = _counts(models.sequential, None)
    kfac = _counts(models.sequential, fisher)
    layers = 2
    assert sgd["MatMul"] == 3 * layers - 1
    assert kfac["MatMul forward"] == sgd["MatMul forward"] == layers
    extra_backward = layers - 1
    if fisher == "exact":
        extra_backward *= 2  # the first term of the sum, and the body of the loop
    factors, inverses, precondition = 2 * layers, 2 * layers, 2 * layers
    if fisher == "exact":
        factors += layers
    extra = extra_backward + factors + inverses + precondition
    assert kfac["MatMul"] - sgd["MatMul"] == extra
    slope, traces = 2 * layers, 2 * layers  # gᵀF̂⁻¹g, of each variable; whether factors are finite
    assert kfac["Einsum"] == slope + 3 * traces  # π, and whether inverses are finite


def test_convolutional_step_has_one_forward_pass() -> None:
    sgd = _counts(models.convolutional, None)
    kfac = _counts(models.convolutional, "mc")
    assert kfac["Conv2D"] == sgd["Conv2D"] == 2
    images, kernels = "Conv2DBackpropInput used", "Conv2DBackpropFilter used"
    assert kfac[kernels] == sgd[kernels] == 2
    extra_backward = 1  # none to the images
    assert kfac[images] - sgd[images] == extra_backward
    assert kfac["MatMul forward"] == sgd["MatMul forward"] == 1
    assert kfac["Relu"] == sgd["Relu"] == 2


@pytest.mark.parametrize("factory", [models.WithTraining, models.WithoutTraining])
def test_forward_pass_runs_once_in_eager_mode(factory: Callable[[], keras.Model]) -> None:
    x, y = models.vectors()
    model = factory()
    model(x)
    calls = []
    kernel_product = model.hidden.call

    def count_and_call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return kernel_product(*args, **kwargs)

    model.hidden.call = count_and_call
    optimizer = tfkfac.KFAC(damping=1e-3)  # "auto" looks at the loss after the step
    model.compile(optimizer=optimizer, loss=models.crossentropy(), run_eagerly=True)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert len(calls) == 4
