"""Loss against updates and seconds of recurrent networks: KFAC's three forms, Adam and SGD.

The networks and data are those of `examples/ptb_lstm.py` and `examples/copy_task.py`. One number of
each optimizer is tuned with one seed, the learning rate of Adam and SGD, `kl_clip` of KFAC (its
steps are at this bound almost always); the results use several seeds. Seconds are those of one more
run of each optimizer, for which nothing else should be running: `--pace` makes these. Runs are kept
in a JSON file as they end: started again, the program goes on where it was.

    python -m benchmarks.recurrent --data PATH_TO/ptb --output docs/results/recurrent
    python -m benchmarks.recurrent --data PATH_TO/ptb --output docs/results/recurrent --pace

Needs: ptb/, text files of the Penn Treebank; about three hours.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import matplotlib
import numpy as np
import rich.progress
import tensorflow as tf

from benchmarks import machine
from benchmarks.command_line import parser_of

matplotlib.use("Agg")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))

import copy_task
import ptb_lstm
from recurrent_optimizers import recurrent_optimizers

SMOOTHING = 25
"""Updates over whose losses the mean is taken."""

FIRST_ORDER = ("Adam", "SGD")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A recurrent network with its data.

    Attributes:
        name: For tables.
        updates: Of one training.
        train: Makes a model with an optimizer and trains it, with callbacks, for some epochs;
            returns the loss on data that it was not trained on.
        batches: Updates of an epoch.
        optimizers: Name → function of the tuned number and a seed.
        tried: Name → the numbers that are tried.
    """

    name: str
    updates: int
    train: Callable[[keras.optimizers.Optimizer, Sequence[keras.callbacks.Callback], int], float]
    batches: int
    optimizers: Mapping[str, Callable[[float, int], keras.optimizers.Optimizer]]
    tried: Mapping[str, Sequence[float]]


def penn_treebank(folder: str | None, updates: int) -> Problem:
    """Two LSTM layers of 200 units on words, 20 streams in pieces of 35."""
    corpus = ptb_lstm.load_corpus(folder)
    training, unseen = (
        _dataset(ptb_lstm.Pieces(words, 20, 35)) for words in (corpus.training, corpus.validation)
    )

    def train(optimizer: Any, callbacks: Sequence[Any], epochs: int) -> float:
        sizes = argparse.Namespace(batch_size=20, steps=35, units=200)
        model = ptb_lstm.language_model(corpus, sizes, optimizer)
        streams = ptb_lstm.FreshStreams()
        model.fit(
            training, epochs=epochs, callbacks=[streams, *callbacks], shuffle=False, verbose=0
        )
        return float(model.evaluate(unseen, callbacks=[streams], verbose=0))

    return Problem(
        "ptb",
        updates,
        train,
        len(training),
        _tunable(ptb_lstm.optimizers),
        _tried(kl_clip=(1e-2, 3e-2, 1e-1), adam=(3e-5, 1e-4, 3e-4, 1e-3), sgd=(1.0, 3.0, 10.0)),
    )


def _dataset(pieces: keras.utils.PyDataset) -> tf.data.Dataset:
    """The pieces in memory; between epochs tf.data waits long for its tuner otherwise."""
    inputs, targets = map(np.stack, zip(*(pieces[i] for i in range(len(pieces))), strict=True))
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices((inputs, targets)).with_options(options)


def copying(length: int, updates: int) -> Problem:
    """An LSTM of 100 units that copies a sequence of symbols."""
    rng = np.random.default_rng(0)
    inputs, targets = copy_task.sequences(rng, 5000, length)
    unseen = copy_task.sequences(rng, 500, length)

    def train(optimizer: Any, callbacks: Sequence[Any], epochs: int) -> float:
        network = copy_task.copying_network(argparse.Namespace(length=length, units=100), optimizer)
        network.fit(
            inputs, targets, batch_size=100, epochs=epochs, callbacks=list(callbacks), verbose=0
        )
        return float(network.evaluate(*unseen, batch_size=100, verbose=0)[0])

    kl_clips = (1e-3, 3e-3, 1e-2) if length < 30 else (1e-4, 3e-4, 1e-3)
    return Problem(
        f"copy {length}",
        updates,
        train,
        50,
        _tunable(recurrent_optimizers),
        _tried(kl_clip=kl_clips, adam=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1), sgd=(0.1, 0.3, 1.0, 3.0)),
    )


def _tunable(
    optimizers: Callable[..., Mapping[str, Callable[[float, int], keras.optimizers.Optimizer]]],
) -> dict[str, Callable[[float, int], keras.optimizers.Optimizer]]:
    """Functions of the learning rate (Adam, SGD) or `kl_clip` (KFAC, learning rate 0.3)."""
    names = list(optimizers())

    def bounded(name: str) -> Callable[[float, int], keras.optimizers.Optimizer]:
        return lambda kl_clip, seed: optimizers(kl_clip=kl_clip)[name](0.3, seed)

    return {name: optimizers()[name] if name in FIRST_ORDER else bounded(name) for name in names}


def _tried(
    kl_clip: Sequence[float], adam: Sequence[float], sgd: Sequence[float]
) -> dict[str, Sequence[float]]:
    of_first_order = {"Adam": adam, "SGD": sgd}
    return {name: of_first_order.get(name, kl_clip) for name in recurrent_optimizers()}


class LossCurve(keras.callbacks.Callback):
    """The loss of every batch, and the seconds in training steps until then."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._updates = updates
        self._seen = (0, 0.0)
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras' mean of the losses begins anew."""
        self._seen = (0, 0.0)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """The clock runs in steps only: what tf.data does between epochs is no optimizer's work."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """The loss of one batch from the mean over the batches of the epoch so far."""
        count, total = batch + 1, (batch + 1) * float((logs or {})["loss"])
        self.losses.append(total - self._seen[1])
        self._seen = (count, total)
        before = self.seconds[-1] if self.seconds else 0.0
        self.seconds.append(before + time.perf_counter() - self._start)
        if len(self.losses) >= self._updates:
            self.model.stop_training = True


def run(problem: Problem, name: str, tuned: float, seed: int) -> dict[str, Any]:
    """One training, as it goes into the file."""
    keras.utils.set_random_seed(seed)
    curve = LossCurve(problem.updates)
    unseen = problem.train(
        problem.optimizers[name](tuned, seed), [curve], -(-problem.updates // problem.batches)
    )
    keras.backend.clear_session()
    gc.collect()
    return {
        "problem": problem.name,
        "optimizer": name,
        "tuned": tuned,
        "seed": seed,
        "unseen": round(unseen, 5),
        "losses": [round(loss, 5) for loss in curve.losses[: problem.updates]],
        "seconds": [round(second, 3) for second in curve.seconds[: problem.updates]],
    }


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """The mean loss of the last updates, at every update; infinite where training diverged."""
    losses = np.nan_to_num(np.asarray(losses, float), nan=np.inf, posinf=np.inf)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - SMOOTHING)
    return (sums[ends] - sums[starts]) / (ends - starts)


class Results:
    """The runs in a JSON file.

    Args:
        path: The file; what is in it already is kept.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        document = json.loads(path.read_text()) if path.exists() else {}
        self.runs: list[dict[str, Any]] = document.get("runs", [])
        self.paces: dict[str, dict[str, list[float]]] = document.get("paces", {})

    def get(self, problem: Problem, name: str, tuned: float, seed: int) -> dict[str, Any]:
        """The run with these settings, made now if it is not there."""
        wanted = {"problem": problem.name, "optimizer": name, "tuned": tuned, "seed": seed}
        for each in self.runs:
            if wanted.items() <= each.items():
                return each
        made = run(problem, name, tuned, seed) | {"machine": machine.description()}
        self.runs.append(made)
        self._write()
        return self.runs[-1]

    def best(self, problem: Problem, name: str) -> float:
        """The tried number with the least loss at the end, with the first seed."""

        def loss_at_end(tuned: float) -> float:
            return float(smoothed(self.get(problem, name, tuned, 0)["losses"])[-1])

        return min(problem.tried[name], key=loss_at_end)

    def measure_pace(self, problem: Problem, name: str) -> None:
        """Trains once more, for the clock alone."""
        again = run(problem, name, self.best(problem, name), 0)
        self.paces.setdefault(problem.name, {})[name] = again["seconds"]
        self._write()

    def pace(self, problem: Problem, name: str) -> list[float]:
        """Seconds in training steps after every update, tracing included."""
        measured = self.paces.get(problem.name, {}).get(name)
        return measured or self.get(problem, name, self.best(problem, name), 0)["seconds"]

    def _write(self) -> None:
        document = {"machine": machine.description(), "paces": self.paces, "runs": self.runs}
        self._path.write_text(json.dumps(document))


def table(runs: Mapping[str, list[dict[str, Any]]], paces: Mapping[str, list[float]]) -> str:
    """A line an optimizer: loss at the end, updates and seconds to the best first-order loss."""
    ends = {name: [smoothed(each["losses"])[-1] for each in of] for name, of in runs.items()}
    target = min(float(np.median(ends[name])) for name in FIRST_ORDER)
    lines = [
        f"Target: a loss of {target:.3f}, at which the better of Adam and SGD ends (median).",
        "",
        "| optimizer | tuned | loss at the end | loss on unseen data | updates to the target | "
        "seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, of in runs.items():
        updates = [_first_below(each["losses"], target) for each in of]
        seconds = [np.inf if np.isinf(n) else paces[name][int(n) - 1] for n in updates]
        lines.append(
            f"| {name} | {of[0]['tuned']:g} | {_spread(ends[name], '.3f')} | "
            f"{_spread([each['unseen'] for each in of], '.3f')} | {_spread(updates, '.0f')} | "
            f"{_spread(seconds, '.1f')} |"
        )
    return "\n".join(lines)


def _first_below(losses: Sequence[float], target: float) -> float:
    """Updates until the loss is below the target for the first time."""
    below = np.flatnonzero(smoothed(losses) <= target)
    return float(below[0] + 1) if len(below) else np.inf


def _spread(values: Sequence[float], form: str) -> str:
    """Median (least … greatest)."""
    middle, low, high = (
        "–" if np.isinf(value) else format(value, form)
        for value in (np.median(values), np.min(values), np.max(values))
    )
    return f"{middle} ({low} … {high})"


def plot(
    results: Mapping[str, Mapping[str, list[dict[str, Any]]]],
    paces: Mapping[str, Mapping[str, list[float]]],
    path: pathlib.Path,
) -> None:
    """A row a problem: the median loss against updates and seconds, and the seeds' spread."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(results), 2, figsize=(10, 3.4 * len(results)), squeeze=False, layout="constrained"
    )
    for (problem, runs), (left, right) in zip(results.items(), panels, strict=True):
        for name, of in runs.items():
            curves = np.array([smoothed(each["losses"]) for each in of])
            middle = np.median(curves, axis=0)
            updates = np.arange(1, curves.shape[1] + 1)
            for axes, x in ((left, updates), (right, paces[problem][name])):
                (line,) = axes.plot(x, middle, label=name, linewidth=1.6)
                axes.fill_between(
                    x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15
                )
                axes.grid(alpha=0.3)
                axes.spines[["top", "right"]].set_visible(False)
        left.set_ylabel(f"{problem}: training loss")
        left.set_xlabel("updates")
        right.set_xlabel("seconds")
    panels[0, -1].legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs.

    Args:
        arguments: Of the command line.
    """
    parser = parser_of(
        "recurrent",
        __doc__,
        data="folder of text files for the language model",
        seeds=5,
        quick="3 symbols to copy, 10 updates, one seed",
    )
    parser.add_argument("--problems", nargs="+", default=["ptb", "copy"], choices=["ptb", "copy"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[10, 30, 60], help="to copy")
    parser.add_argument("--ptb-updates", type=int, default=300)
    parser.add_argument("--copy-updates", type=int, default=500)
    parser.add_argument("--optimizers", nargs="+", help="only run these, and print nothing")
    parser.add_argument("--pace", action="store_true", help="measure the seconds")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.problems, chosen.lengths, chosen.copy_updates, chosen.seeds = ["copy"], [3], 10, 1
    problems = []
    if "ptb" in chosen.problems:
        problems.append(penn_treebank(chosen.data and str(chosen.data), chosen.ptb_updates))
    if "copy" in chosen.problems:
        problems += [copying(length, chosen.copy_updates) for length in chosen.lengths]
    results = Results(chosen.output.with_suffix(".json"))
    found = all_runs(problems, results, chosen.seeds, chosen.optimizers, chosen.pace)
    if chosen.optimizers:
        return
    paces = {p.name: {name: results.pace(p, name) for name in p.optimizers} for p in problems}
    for problem in problems:
        print(f"\n### {problem.name}\n\n{table(found[problem.name], paces[problem.name])}")
    plot(found, paces, chosen.output.with_suffix(".png"))
    print(f"\nWritten: {chosen.output}.json, {chosen.output}.png")


def all_runs(
    problems: Sequence[Problem],
    results: Results,
    seeds: int,
    only: Sequence[str] | None,
    pace: bool,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Problem → optimizer → the runs of all seeds with the best of the numbers tried."""
    chosen = [(p, name) for p in problems for name in p.optimizers if not only or name in only]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {p.name: {} for p in problems}
    total = sum(len(p.tried[name]) + seeds - 1 + pace for p, name in chosen)
    with rich.progress.Progress() as progress:
        task = progress.add_task("runs", total=total)
        for problem, name in chosen:
            best = results.best(problem, name)
            progress.update(task, advance=len(problem.tried[name]))
            found[problem.name][name] = []
            for seed in range(seeds):
                found[problem.name][name].append(results.get(problem, name, best, seed))
                progress.update(task, advance=int(seed > 0))
        for problem, name in chosen if pace else ():
            results.measure_pace(problem, name)
            progress.update(task, advance=1)
    return found


if __name__ == "__main__":
    main()
