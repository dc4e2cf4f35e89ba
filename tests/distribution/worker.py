"""What every process of MultiWorkerMirroredStrategy runs: trainings; the first writes the weights.

python worker.py INDEX PORT,PORT,… FOLDER HOW PLACEMENT CASE [CASE ...]
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable

index, ports = int(sys.argv[1]), sys.argv[2].split(",")
os.environ["TF_CONFIG"] = json.dumps(
    {
        "cluster": {"worker": [f"localhost:{port}" for port in ports]},
        "task": {"type": "worker", "index": index},
    }
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()

import keras
import numpy as np
from cases import CASES, Case, weights_of

import tfkfac


def main(folder: str, how: str, placement: str, *names: str) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    for name in names:
        arguments = {**CASES[name].arguments, "placement": placement}
        case = dataclasses.replace(CASES[name], arguments=arguments)
        with strategy.scope():
            model = case.compiled()
        {
            "fit": fit,
            "loop": loop,
            "drift": drift,
            "save": save,
            "dies": lambda model, case: fails(model, case, lambda: os._exit(7)),
            "sleeps": lambda model, case: fails(model, case, lambda: time.sleep(300)),
        }[how](model, case)
        np.save(pathlib.Path(folder) / f"{name}.{index}.npy", weights_of(model))


def batches(case: Case) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(tuple(case.arrays())).batch(case.batch)


def part(data: tf.data.Dataset) -> tf.data.Dataset:
    """This process' rows of every batch."""

    def rows(*arrays: tf.Tensor) -> tuple[tf.Tensor, ...]:
        count = tf.shape(tf.nest.flatten(arrays)[0])[0]
        first, end = (-(-count * i // len(ports)) for i in (index, index + 1))
        return tf.nest.map_structure(lambda array: array[first:end], arrays)

    return data.map(rows)


def fit(model: keras.Model, case: Case) -> None:
    data = batches(case)  # which the strategy shares out, by every second example
    model.fit(data, epochs=case.epochs(len(data)), verbose=0)


def drift(model: keras.Model, case: Case) -> None:
    """The weights of all processes are compared; that of one is then changed."""
    check = tfkfac.callbacks.CheckWorkers(every=2)
    model.fit(batches(case), verbose=0, callbacks=[check])
    if index == 1:
        strategy.experimental_local_results(model.trainable_variables[0].value)[0].assign_add(
            tf.ones(model.trainable_variables[0].shape, tf.float64)
        )
    try:
        check.check()
    except RuntimeError as error:
        assert "on workers [1]" in str(error), error
    else:
        raise AssertionError("not noticed")


def save(model: keras.Model, case: Case) -> None:
    """Between two micro-batches, by one process; then all go on."""
    data = batches(case)
    gather = tfkfac.callbacks.GatherState()
    model.fit(data, steps_per_epoch=2, verbose=0, callbacks=[gather])
    if index == 0:
        model.save(pathlib.Path(sys.argv[3]) / "model.keras")
    model.fit(data, epochs=2, verbose=0)


def fails(model: keras.Model, case: Case, failure: Callable[[], object]) -> None:
    """Process 1 fails in the middle of training."""

    def after(batch: int, logs: object) -> None:
        if batch == 1 and index == 1:
            failure()

    failing = keras.callbacks.LambdaCallback(on_train_batch_end=after)
    late = tfkfac.callbacks.StopIfLate(seconds=25)
    model.fit(batches(case), epochs=50, verbose=0, callbacks=[failing, late])


def loop(model: keras.Model, case: Case) -> None:
    data = part(batches(case))
    distributed = strategy.distribute_datasets_from_function(lambda context: data)

    def step(x: tf.Tensor, y: tf.Tensor, w: tf.Tensor | None = None) -> None:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), w)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    @tf.function(input_signature=[distributed.element_spec])  # Keras has no loss of shape [0]
    def together(batch: tuple[tf.Tensor, ...]) -> None:
        strategy.run(step, args=batch)

    for _ in range(case.epochs(len(data))):
        for batch in distributed:
            together(batch)


if __name__ == "__main__":
    main(*sys.argv[3:])
