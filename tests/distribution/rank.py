"""What every rank of Horovod runs: trainings on its part of the data; rank 0 writes the weights.

horovodrun -np 2 python rank.py FOLDER PLACEMENT CASE [CASE ...]
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import dataclasses

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from cases import CASES, Case, weights_of


def main(folder: str, placement: str, *names: str) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    hvd.init(process_sets="dynamic")
    if hvd.size() == 4:
        hvd.add_process_set([0, 1])  # of the user's own, which KFAC shares
    for name in names:
        arguments = {**CASES[name].arguments, "placement": placement}
        case = dataclasses.replace(CASES[name], arguments=arguments)
        model, data = case.compiled(), part_of(case)
        model.fit(data, epochs=case.epochs(len(data)), verbose=0)
        of_all = hvd.allgather_object(weights_of(model))
        assert all(np.array_equal(each, of_all[0]) for each in of_all), name
        if hvd.rank() == 0:
            np.save(pathlib.Path(folder) / f"{name}.npy", of_all[0])
            print(name, "done", flush=True)


def part_of(case: Case) -> tf.data.Dataset:
    """This rank's rows of every batch, which may be none."""
    arrays = tuple(case.arrays())
    count = len(tf.nest.flatten(arrays)[0])

    def batches() -> Iterator[Any]:
        for start in range(0, count, case.batch):
            rows = np.arange(start, min(start + case.batch, count))
            own = np.array_split(rows, hvd.size())[hvd.rank()]
            yield tf.nest.map_structure(lambda array, own=own: array[own], arrays)

    signature = tf.nest.map_structure(
        lambda array: tf.TensorSpec([None, *array.shape[1:]], array.dtype), arrays
    )
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(-(-count // case.batch)))


if __name__ == "__main__":
    main(*sys.argv[1:])
