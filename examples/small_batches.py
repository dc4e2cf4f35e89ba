"""Trains the deep autoencoder on batches of 25: plain, accumulated, and with averaged weights.

Where memory allows small batches only, `gradient_accumulation_steps` lets KFAC make one update of
several: gradients and curvature are those of all their examples. `use_ema` averages the weights
over the last updates (Polyak averaging), and Keras' SwapEMAWeights evaluates that average. All
trainings see the same examples in the same order; apart from these arguments KFAC has none. The
images are scikit-learn's digits, or come from `--data PATH_TO/mnist.npz`. The program prints a
table and writes two PNGs: the curves, and what CurvatureMonitor saw of the accumulated training.
Run it with

    python examples/small_batches.py
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace

import keras
from comparison import EPOCHS, SECONDS, UPDATES, Quantity, compare, plot, table
from mnist_autoencoder import TEST_ERROR, TEST_LOSS, compiled_model, load_problem

import tfkfac

DAMPING = Quantity("damping", "damping λ", ".1e", scale="log")
MONITORED = ("hidden_1", "hidden_4", "pixels")
"""The first layer, the code and the last layer."""


def main() -> None:
    """Trains, prints the table, writes the plots."""
    arguments = parse_arguments()
    problem = load_problem(arguments.data)
    runs, monitors = [], []
    for name, optimizer in optimizers(arguments).items():
        monitors.append(tfkfac.callbacks.CurvatureMonitor(layers=MONITORED))
        # The progress bar comes before the monitor, whose numbers would make it very long.
        callbacks = [*averaging(optimizer), keras.callbacks.ProgbarLogger(), monitors[-1]]
        runs += compare(
            {name: optimizer},
            lambda optimizer: compiled_model(problem, optimizer),
            seed=arguments.seed,
            callbacks=callbacks,
            x=problem.train_images,
            y=problem.train_images,
            validation_data=(problem.test_images, problem.test_images),
            validation_batch_size=problem.batch_size,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
        )
    print("\n" + table(runs, [TEST_LOSS, TEST_ERROR, DAMPING, SECONDS, UPDATES]))
    runs[-1] = replace(runs[-1], line="--")  # Its damping is that of the one before.
    plot(
        runs,
        title=f"Deep autoencoder on {problem.name}, batches of {arguments.batch_size}",
        rows=[TEST_LOSS, DAMPING],
        columns=[EPOCHS, replace(UPDATES, scale="log")],
        output=arguments.output,
    )
    monitors[1].plot(arguments.monitor)
    print(f"\nThe curves are in {arguments.output}, the curvature is in {arguments.monitor}")


def optimizers(arguments: argparse.Namespace) -> Mapping[str, keras.optimizers.Optimizer]:
    """Returns the three ways to train."""
    batches = {"gradient_accumulation_steps": arguments.accumulate}
    average = {"use_ema": True, "ema_momentum": arguments.ema_momentum}
    size = arguments.batch_size
    return {
        f"batches of {size}": tfkfac.KFAC(seed=arguments.seed),
        f"{size} × {arguments.accumulate}": tfkfac.KFAC(seed=arguments.seed, **batches),
        f"{size} × {arguments.accumulate}, averaged": tfkfac.KFAC(
            seed=arguments.seed, **batches, **average
        ),
    }


def averaging(optimizer: keras.optimizers.Optimizer) -> list[keras.callbacks.Callback]:
    """Returns what evaluates the averaged weights, if the optimizer has them."""
    return [keras.callbacks.SwapEMAWeights()] if optimizer.use_ema else []


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", metavar="PATH", default="digits", help='an mnist.npz, or "digits"')
    add("--epochs", type=int, default=30, help="epochs of each training")
    add("--batch-size", type=int, default=25, help="examples that fit into memory")
    add("--accumulate", type=int, default=10, help="batches an update; 40 suits MNIST")
    add("--ema-momentum", type=float, default=0.9, help="of the average of the weights")
    add("--seed", type=int, default=0, help="of weights, batches and KFAC")
    add("--output", default="small_batches.png", help="the PNG of the curves to write")
    add("--monitor", default="small_batches_curvature.png", help="the PNG of the curvature")
    return parser.parse_args()


if __name__ == "__main__":
    main()
