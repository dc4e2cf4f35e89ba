"""Trains a convolutional network on handwritten digits with KFAC on several devices at once.

All GPUs of the machine are used under MirroredStrategy; a machine without GPUs is taken for
`--replicas` logical CPUs, to show that nothing but the scope is different. The images come from
`--data PATH_TO/mnist.npz`, else they are the digits of 8×8 pixels that scikit-learn ships. Run it
with

    python examples/mirrored_mnist.py
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from digits import convolutional_network, load_images

import tfkfac


def main() -> None:
    """Trains, and prints what came out."""
    arguments = parse_arguments()
    strategy = tf.distribute.MirroredStrategy(devices(arguments.replicas))
    (train_images, train_labels), (test_images, test_labels) = load_images(arguments.data)
    keras.utils.set_random_seed(arguments.seed)
    with strategy.scope():
        model = convolutional_network(train_images.shape[1:])
        model.compile(
            optimizer=tfkfac.KFAC(placement=arguments.placement, seed=arguments.seed),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    model.fit(
        train_images,
        train_labels,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        validation_data=(test_images, test_labels),
        verbose=2,
    )
    model.optimizer.layer_collection.placement_summary()
    scores = model.evaluate(test_images, test_labels, verbose=0)
    print(f"{strategy.num_replicas_in_sync} replicas: test accuracy {np.round(scores[1], 4)}")


def devices(replicas: int) -> list[str] | None:
    """All GPUs, or so many logical CPUs."""
    if tf.config.list_physical_devices("GPU"):
        return None
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    return [f"CPU:{index}" for index in range(replicas)]


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", help="mnist.npz")
    parser.add_argument("--replicas", type=int, default=2, help="without GPUs")
    parser.add_argument("--placement", default="comm_opt", help="comm_opt, hybrid or mem_opt")
    parser.add_argument("--batch-size", type=int, default=256, help="of all replicas together")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and KFAC")
    return parser.parse_args()


if __name__ == "__main__":
    main()
