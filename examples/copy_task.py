"""Trains an LSTM to copy what it read, with three forms of KFAC, Adam and SGD.

The network reads random symbols, then a mark, and must then write the symbols down again: the
longer the sequence, the further the gradients have to reach (Martens, Ba & Johnson 2018). Lengths
from 10 to 60 are usual. The program prints a table and writes the loss curves to a PNG. Run it with

    python examples/copy_task.py --length 20
"""

import argparse

import keras
import numpy as np
from comparison import SECONDS, UPDATES, Quantity, at_rates, compare, plot, table
from recurrent_optimizers import recurrent_optimizers

BITS = Quantity("bits", "bits a symbol", ".3f")
ACCURACY = Quantity("val_accuracy", "symbols right", ".1%")
SYMBOLS = 8


def main() -> None:
    """Trains, prints the table, writes the plot."""
    arguments = parse_arguments()
    rng = np.random.default_rng(arguments.seed)
    inputs, targets = sequences(rng, arguments.examples, arguments.length)
    runs = compare(
        at_rates(
            recurrent_optimizers(kl_clip=arguments.kl_clip),
            LEARNING_RATES,
            names=arguments.optimizers,
            tried=arguments.learning_rate,
            seed=arguments.seed,
        ),
        lambda optimizer: copying_network(arguments, optimizer),
        seed=arguments.seed,
        x=inputs,
        y=targets,
        validation_data=sequences(rng, 500, arguments.length),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
    )
    print("\n" + table(runs, [BITS, ACCURACY, SECONDS, UPDATES]))
    plot(
        runs,
        title=f"Copying {arguments.length} symbols",
        rows=[BITS, ACCURACY],
        columns=[UPDATES, SECONDS],
        output=arguments.output,
    )
    print(f"\nThe curves are in {arguments.output}")


LEARNING_RATES = {
    "KFAC": 0.3,
    "KFAC lggm_symmetric": 0.3,
    "KFAC lggm_limit": 0.3,
    "Adam": 1e-2,
    "SGD": 1.0,
}


def copying_network(
    arguments: argparse.Namespace, optimizer: keras.optimizers.Optimizer
) -> keras.Model:
    """Returns the compiled network; its outputs are the logits of the symbols."""
    network = keras.Sequential(
        [
            keras.Input((2 * arguments.length, SYMBOLS + 1)),
            keras.layers.LSTM(arguments.units, return_sequences=True),
            keras.layers.Lambda(lambda hidden: hidden[:, arguments.length :]),
            keras.layers.Dense(SYMBOLS),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer, loss, metrics=["accuracy", bits])
    return network


def bits(symbols: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the loss of every symbol in bits: 3 is that of a guess."""
    losses = keras.ops.sparse_categorical_crossentropy(symbols, logits, from_logits=True)
    return losses / np.log(2)


def sequences(rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns symbols, one-hot, each followed by marks [count, 2·length, ...], and the symbols."""
    symbols = rng.integers(SYMBOLS, size=(count, length))
    read = np.concatenate([symbols, np.full_like(symbols, SYMBOLS)], axis=1)
    return np.eye(SYMBOLS + 1, dtype="float32")[read], symbols


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--length", type=int, default=10, help="symbols to copy")
    add("--epochs", type=int, default=20, help="epochs of each training")
    add("--examples", type=int, default=5000, help="sequences of an epoch")
    add("--batch-size", type=int, default=100, help="sequences of an update")
    add("--units", type=int, default=100, help="of the LSTM")
    add(
        "--optimizers",
        nargs="+",
        choices=LEARNING_RATES,
        default=list(LEARNING_RATES),
        help="what to compare",
    )
    add(
        "--kl-clip",
        type=float,
        default=3e-3,
        help="how far one step of KFAC may move the predictions; 3e-4 suits 30 symbols",
    )
    add("--learning-rate", type=float, nargs="+", help="train each optimizer at each of these")
    add("--seed", type=int, default=0, help="of sequences, weights and KFAC")
    add("--output", default="copy_task.png", help="the PNG to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
