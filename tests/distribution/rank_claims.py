"""What ranks refuse and keep; every rank prints a line for each claim that holds."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import dataclasses

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from cases import CASES, Case, weights_of

import tfkfac

NUMBERS = CASES["numbers"]


def main(folder: str) -> None:
    hvd.init()
    for claim, holds in {
        "unequal steps": unequal_steps,
        "unequal models": unequal_models,
        "unequal settings": unequal_settings,
        "built late": built_late,
        "wrapped": wrapped,
        "nan": nan,
        "scaled": scaled,
        "memory": memory,
        "saved": lambda: saved(pathlib.Path(folder)),
        "logs": logs,
        "halves": halves,
    }.items():
        keras.backend.clear_session()
        holds()
        print(f"{claim}: holds", flush=True)


def data(rows: np.ndarray | slice, case: Case = NUMBERS) -> tf.data.Dataset:
    arrays = tuple(array[rows] for array in case.arrays())
    return tf.data.Dataset.from_tensor_slices(arrays).batch(4)


def own() -> slice:
    return slice(12 * hvd.rank(), 12 * (hvd.rank() + 1))


def refused(call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except ValueError as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError(f"not refused: {words}")


def unequal_steps() -> None:
    model = NUMBERS.compiled()
    rows = slice(0, 4 * (3 + hvd.rank()))
    refused(lambda: model.fit(data(rows), verbose=0), "steps in an epoch", "worker 1 has 4")


def unequal_models() -> None:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3 + hvd.rank())])
    model.compile(tfkfac.KFAC(seed=0), "mse")
    refused(
        lambda: model.fit(np.ones([4, 6]), np.ones([4, 3 + hvd.rank()]), verbose=0),
        "worker 1",
        "(6, 4)",
    )


def unequal_settings() -> None:
    activation = ("tanh", "relu")[hvd.rank()]
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation=activation)])
    model.compile(tfkfac.KFAC(seed=0), "mse")
    refused(lambda: model.fit(np.ones([4, 6]), np.ones([4, 3])), "layers", "relu", "tanh")
    keras.backend.clear_session()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile(tfkfac.KFAC(damping=(0.1, 0.2)[hvd.rank()]), "mse")
    refused(lambda: model.fit(np.ones([4, 6]), np.ones([4, 3])), "arguments of KFAC", "damping")


class BuiltLate(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(5, activation="tanh")
        self.logits = keras.layers.Dense(4)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.logits(self.hidden(inputs))


def built_late() -> None:
    model = BuiltLate()
    model.compile(tfkfac.KFAC(seed=0), NUMBERS.loss())
    model.fit(data(own()), verbose=0)
    weights = weights_of(model)
    assert all(np.array_equal(each, weights) for each in hvd.allgather_object(weights))
    model = BuiltLate()
    model.compile(tfkfac.KFAC(seed=0), NUMBERS.loss())

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    refused(lambda: step(*next(iter(data(own())))), "built while a step is traced")


def wrapped() -> None:
    refused(lambda: hvd.DistributedOptimizer(tfkfac.KFAC(0.1)), "DistributedOptimizer")


def nan() -> None:
    """Only rank 1 has it; both leave the step out."""
    model = NUMBERS.compiled()
    x, y = (array[own()].copy() for array in NUMBERS.arrays())
    if hvd.rank() == 1:
        x[5] = np.nan
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model.fit(batches, verbose=0, callbacks=[tfkfac.callbacks.CheckWorkers(every=1)])
    assert model.optimizer.counts()["skipped"] == 1
    assert np.isfinite(weights_of(model)).all()


def scaled() -> None:
    """A gradient of rank 1 is not finite: the scale of the loss is halved on both."""
    keras.config.set_dtype_policy("mixed_float16")
    model = NUMBERS.compiled()
    keras.config.set_dtype_policy("float32")
    x, y = (array[own()].copy() for array in NUMBERS.arrays())
    model.fit(x[:4], y[:4], verbose=0)
    before, scale = weights_of(model), model.optimizer.dynamic_scale.numpy()
    if hvd.rank() == 1:
        x[2] = np.inf
    model.fit(x[:4], y[:4], verbose=0)
    assert model.optimizer.dynamic_scale.numpy() == scale / 2
    np.testing.assert_array_equal(weights_of(model), before)


def memory() -> None:
    """MEM-OPT: no rank holds more than its part and the largest block."""
    layers = [keras.layers.Dense(8 + 4 * i, activation="tanh") for i in range(6)]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(4)])
    model.compile(tfkfac.KFAC(seed=0, placement="mem_opt"), NUMBERS.loss())
    model.fit(data(own()), verbose=0)
    blocks = model.optimizer.layer_collection.curvature_blocks
    held = sum(v.numpy().nbytes for block in blocks for v in block.state)
    sizes = [block.state_size * block.bytes_each for block in blocks]
    assert held <= sum(sizes) / hvd.size() + max(sizes), (held, sizes)
    assert sum(hvd.allgather_object(held)) == sum(sizes)


def saved(folder: pathlib.Path) -> None:
    """Gathered, written by rank 0 alone, read by all; they go on as if nothing had been."""
    path = folder / "model.keras"
    callbacks = [tfkfac.callbacks.GatherState()]
    if hvd.rank() == 0:
        callbacks.append(keras.callbacks.ModelCheckpoint(path))
    case = dataclasses.replace(CASES["automatic"], arguments={"placement": "mem_opt"})
    model = case.compiled()
    model.fit(data(own()), epochs=2, verbose=0, callbacks=callbacks)
    hvd.allgather_object(0)
    again = keras.models.load_model(path)
    for one in (model, again):
        one.fit(data(own()), epochs=2, verbose=0)
    np.testing.assert_array_equal(weights_of(again), weights_of(model))
    if hvd.rank() == 0:
        np.save(folder / "continued.npy", weights_of(model))


def halves() -> None:
    """Statistics that are sent in half precision are nearly those that are not."""
    factors = {}
    for dtype in (None, "float16", "bfloat16"):
        arguments = {**NUMBERS.arguments, "communication_dtype": dtype, "placement": "mem_opt"}
        model = dataclasses.replace(NUMBERS, arguments=arguments).compiled()
        model.fit(data(own()), verbose=0)
        blocks = model.optimizer.layer_collection.curvature_blocks
        factors[dtype] = [b.factors["A"].numpy() for b in blocks if b.is_here]
    for dtype, accuracy in (("float16", 3e-3), ("bfloat16", 2e-2)):
        for whole, half in zip(factors[None], factors[dtype], strict=True):
            np.testing.assert_allclose(half, whole, atol=accuracy * np.abs(whole).max())
            assert not np.array_equal(half, whole)


def logs() -> None:
    """Those of one process on all ranks; the first one prints, if nothing else is asked for."""
    x, y = NUMBERS.arrays()
    rows = slice(0, 8) if hvd.rank() == 0 else slice(8, 13)
    model = NUMBERS.compiled()
    found = model.fit(data(rows), validation_data=data(rows), verbose=0).history
    whole = tf.data.Dataset.from_generator(
        lambda: ((x[i], y[i]) for i in ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12])),
        output_signature=(tf.TensorSpec([None, 6]), tf.TensorSpec([None], tf.int64)),
    )
    alone = dataclasses.replace(
        NUMBERS, arguments={**NUMBERS.arguments, "distribution": "single"}
    ).compiled()
    expected = alone.fit(whole, validation_data=whole, verbose=0).history
    for key in ("loss", "val_loss"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-5)
    model = NUMBERS.compiled()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        history = model.fit(data(own()), epochs=2).history["loss"]
    assert ("Epoch 2/2" in printed.getvalue()) == (hvd.rank() == 0), printed.getvalue()
    assert all(each == history for each in hvd.allgather_object(history))


if __name__ == "__main__":
    main(*sys.argv[1:])
