"""Trains a small convolutional network on real handwritten digits with KFAC, Adam and SGD.

The digits are the 1797 images of 8×8 pixels that scikit-learn ships, so nothing is downloaded. The
three trainings start from the same weights, see the same batches and take the same number of
epochs. The program prints a table and writes the curves to a PNG. Run it with

    python examples/quickstart.py
"""

import argparse

import keras
import numpy as np
from comparison import EPOCHS, SECONDS, UPDATES, Quantity, compare, plot, table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfkfac

TRAINING_LOSS = Quantity("loss", "training loss", scale="log")
TEST_LOSS = Quantity("val_loss", "test loss")
TEST_ACCURACY = Quantity("val_accuracy", "test accuracy")


def main() -> None:
    """Trains, prints the table, writes the plot."""
    arguments = parse_arguments()
    train_images, test_images, train_labels, test_labels = load_data()
    runs = compare(
        optimizers(arguments.seed),
        compiled_model,
        seed=arguments.seed,
        x=train_images,
        y=train_labels,
        validation_data=(test_images, test_labels),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
    )
    print("\n" + table(runs, [TEST_LOSS, TEST_ACCURACY, SECONDS, UPDATES]))
    plot(
        runs,
        title="A small convolutional network on handwritten digits",
        rows=[TRAINING_LOSS, TEST_ACCURACY],
        columns=[EPOCHS, SECONDS],
        output=arguments.output,
    )
    print(f"\nThe curves are in {arguments.output}")


def optimizers(seed: int) -> dict[str, keras.optimizers.Optimizer]:
    """Returns the optimizers to compare."""
    # KFAC as it is without arguments; the others at the lowest training loss of a small grid, where
    # the test loss was no worse: Adam 0.001 to 0.01, SGD 0.01 to 0.2.
    return {
        "KFAC": tfkfac.KFAC(seed=seed),
        "Adam": keras.optimizers.Adam(learning_rate=3e-3),
        "SGD": keras.optimizers.SGD(learning_rate=0.1, momentum=0.9, nesterov=True),
    }


def compiled_model(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """Returns the network, ready to `fit`: with KFAC nothing is different."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load_data() -> list[np.ndarray]:
    """Returns training images, test images [n, 8, 8, 1] in [0, 1], and their labels [n]."""
    digits = load_digits()
    images = digits.images[..., np.newaxis].astype("float32") / 16.0
    return train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each training")
    parser.add_argument("--batch-size", type=int, default=128, help="examples an update")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and KFAC")
    parser.add_argument("--output", default="quickstart.png", help="the PNG to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
