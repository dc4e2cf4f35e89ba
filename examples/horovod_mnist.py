"""Trains a convolutional network on handwritten digits with KFAC on all ranks of Horovod.

Every rank runs this program on its part of the data. The images come from `--data
PATH_TO/mnist.npz`, else they are the digits of 8×8 pixels that scikit-learn ships. Run it with

    horovodrun --gloo -np 2 python examples/horovod_mnist.py
"""

import argparse

import horovod.tensorflow as hvd
import keras
import tensorflow as tf
from digits import convolutional_network, load_images

import tfkfac


def main() -> None:
    """Trains, and prints on rank 0 what came out."""
    arguments = parse_arguments()
    hvd.init(process_sets="dynamic")  # plain hvd.init() serves "comm_opt" and "mem_opt"
    use_gpu_of_this_rank()
    train, test = load_images(arguments.data)
    keras.utils.set_random_seed(arguments.seed)
    model = convolutional_network(train[0].shape[1:])
    model.compile(
        optimizer=tfkfac.KFAC(placement=arguments.placement, seed=arguments.seed),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    callbacks = [tfkfac.callbacks.GatherState(), tfkfac.callbacks.CheckWorkers()]
    if hvd.rank() == 0:
        callbacks.append(keras.callbacks.ModelCheckpoint(arguments.output))
    model.fit(
        part_of_this_rank(*train, arguments.batch_size),
        epochs=arguments.epochs,
        callbacks=callbacks,
        verbose=2 if hvd.rank() == 0 else 0,
    )
    loss, accuracy = model.evaluate(*test, verbose=0)
    if hvd.rank() == 0:
        model.optimizer.layer_collection.placement_summary()
        print(f"{hvd.size()} ranks: test loss {loss:.4f}, accuracy {accuracy:.4f}")
        print(f"The model is in {arguments.output}")


def part_of_this_rank(images, labels, batch_size: int) -> tf.data.Dataset:
    """Batches of the examples of this rank, of which all ranks have equally many.

    Args:
        images: All.
        labels: All.
        batch_size: Of all ranks together.
    """
    count = len(images) // hvd.size() * hvd.size()
    data = tf.data.Dataset.from_tensor_slices((images[:count], labels[:count]))
    own = data.shard(hvd.size(), hvd.rank())
    return own.shuffle(len(own), seed=0).batch(batch_size // hvd.size())


def use_gpu_of_this_rank() -> None:
    """One GPU for each rank of a machine, if there are any."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", help="mnist.npz")
    parser.add_argument("--placement", default="mem_opt", help="comm_opt, hybrid or mem_opt")
    parser.add_argument("--batch-size", type=int, default=256, help="of all ranks together")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and KFAC")
    parser.add_argument("--output", default="horovod_mnist.keras", help="the model, from rank 0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
