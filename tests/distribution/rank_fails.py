"""Rank 1 fails in the middle of training: it dies, falls asleep, or has no more data.

horovodrun -np 2 python rank_fails.py dies|sleeps|ends
"""

from __future__ import annotations

import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import horovod.tensorflow as hvd
import keras
import tensorflow as tf
from cases import CASES

from tfkfac.callbacks import StopIfLate

FAILURES = {"dies": lambda: os._exit(7), "sleeps": lambda: time.sleep(300), "ends": lambda: None}


class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if batch == 1 and hvd.rank() == 1:
            FAILURES[sys.argv[1]]()


hvd.init()
model = CASES["numbers"].compiled()
callbacks = [Fails(), StopIfLate(seconds=25)]
data = tf.data.Dataset.from_tensor_slices(tuple(CASES["numbers"].arrays())).batch(4)
if sys.argv[1] == "ends":
    data = data.take(5 - 2 * hvd.rank()).filter(lambda x, y: True)  # of unknown length
model.fit(data, epochs=50, verbose=0, callbacks=callbacks)
