"""Trains the deep MNIST autoencoder of the K-FAC papers with KFAC, SGD-Nesterov and Adam.

784-1000-500-250-30 and back (Hinton & Salakhutdinov 2006), tanh, and the binary cross-entropy of
the pixels, averaged over pixels and images. The images come from `--data PATH_TO/mnist.npz`, else
from `keras.datasets.mnist`, else, offline, from the digits of 64 pixels that scikit-learn ships,
with a smaller network. The program prints a table and writes the curves to a PNG. Run it with

    python examples/mnist_autoencoder.py
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from comparison import SECONDS, UPDATES, Quantity, at_rates, compare, plot, table
from sklearn.datasets import load_digits

import tfkfac

TRAINING_LOSS = Quantity("loss", "training loss", ".5f", scale="log")
TEST_LOSS = Quantity("val_loss", "test loss", ".5f", scale="log")
TEST_ERROR = Quantity("val_reconstruction_error", "reconstruction error", ".3f", scale="log")


@dataclass(frozen=True)
class Problem:
    """Images to reconstruct, [n, pixels] in [0, 1], and the network and batch that suit them."""

    name: str
    train_images: np.ndarray
    test_images: np.ndarray
    encoder_units: tuple[int, ...]
    batch_size: int

    @property
    def pixels(self) -> int:
        """The pixels of one image."""
        return self.train_images.shape[1]


def main() -> None:
    """Trains, prints the table, writes the plot."""
    arguments = parse_arguments()
    problem = load_problem(arguments.data)
    runs = compare(
        at_rates(
            OPTIMIZERS,
            LEARNING_RATES,
            names=arguments.optimizers,
            tried=arguments.learning_rate,
            seed=arguments.seed,
        ),
        lambda optimizer: compiled_model(problem, optimizer),
        seed=arguments.seed,
        x=problem.train_images,
        y=problem.train_images,
        validation_data=(problem.test_images, problem.test_images),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size or problem.batch_size,
    )
    print("\n" + table(runs, [TRAINING_LOSS, TEST_LOSS, TEST_ERROR, SECONDS, UPDATES]))
    print("\ntraining loss: its mean during the last epoch, per pixel")
    print("reconstruction error: squared error of a test image, summed over its pixels")
    plot(
        runs,
        title=f"Deep autoencoder on {problem.name}",
        rows=[TRAINING_LOSS],
        columns=[UPDATES, SECONDS],
        output=arguments.output,
    )
    print(f"\nThe curves are in {arguments.output}")


# Each optimizer with its learning rate; KFAC is as it is without arguments. The others' are the
# best that were tried on MNIST: SGD 1, 3 and 10 over 30 epochs (10 diverges), Adam 0.0003, 0.001
# and 0.002 over 8.
LEARNING_RATES = {"KFAC": "auto", "SGD": 1.0, "Adam": 1e-3}
OPTIMIZERS: dict[str, Callable[[Any, int], keras.optimizers.Optimizer]] = {
    "KFAC": lambda rate, seed: tfkfac.KFAC(rate, seed=seed),
    "SGD": lambda rate, seed: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "Adam": lambda rate, seed: keras.optimizers.Adam(rate),
}


def compiled_model(problem: Problem, optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """Returns the autoencoder, ready to `fit`; its outputs are logits."""
    *wide, code = problem.encoder_units
    hidden_units = [*wide, code, *reversed(wide)]
    model = keras.Sequential(
        [
            keras.Input((problem.pixels,)),
            *(
                keras.layers.Dense(units, activation="tanh", name=f"hidden_{number}")
                for number, units in enumerate(hidden_units, start=1)
            ),
            keras.layers.Dense(problem.pixels, name="pixels"),
        ]
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[reconstruction_error],
    )
    return model


def reconstruction_error(images: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the squared error of each image [n], summed over its pixels."""
    return keras.ops.sum(keras.ops.square(images - keras.ops.sigmoid(logits)), axis=-1)


def load_problem(data: str | None) -> Problem:
    """Returns the images of the file `data`, else MNIST by download, else the digits."""
    if data == "digits":
        return digits()
    if data is not None:
        with np.load(data) as arrays:
            return mnist(arrays["x_train"], arrays["x_test"])
    try:
        (train_images, _), (test_images, _) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises bare Exceptions when a download fails.
        print(f"MNIST cannot be downloaded ({error}).")
        print("Training on scikit-learn's digits instead; --data names a local mnist.npz.")
        return digits()
    return mnist(train_images, test_images)


def mnist(train_images: np.ndarray, test_images: np.ndarray) -> Problem:
    """Returns the autoencoder problem of the papers, from images [n, 28, 28] in 0..255."""
    train_images, test_images = (
        images.reshape(len(images), -1).astype("float32") / 255.0
        for images in (train_images, test_images)
    )
    return Problem("MNIST", train_images, test_images, (1000, 500, 250, 30), batch_size=1000)


def digits() -> Problem:
    """Returns the small problem that needs no download: every fourth image tests."""
    images = load_digits().data.astype("float32") / 16.0
    tests = np.arange(len(images)) % 4 == 0
    return Problem(
        "8×8 digits", images[~tests], images[tests], encoder_units=(100, 50, 25, 10), batch_size=128
    )


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="PATH", help='an mnist.npz, or "digits" for the small problem')
    add("--epochs", type=int, default=10, help="epochs of each training")
    add("--batch-size", type=int, help="examples an update (default: 1000, digits: 128)")
    add(
        "--optimizers",
        nargs="+",
        choices=OPTIMIZERS,
        default=list(OPTIMIZERS),
        help="what to compare",
    )
    add("--learning-rate", type=float, nargs="+", help="train each optimizer at each of these")
    add("--seed", type=int, default=0, help="of weights, batches and KFAC")
    add("--output", default="mnist_autoencoder.png", help="the PNG to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
