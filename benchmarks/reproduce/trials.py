"""One training of an experiment: its setting as data, and what became of it as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import machine
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.curves import LossCurve, rounded
from benchmarks.zoo.data import Examples
from benchmarks.zoo.results import Run
from benchmarks.zoo.training import outcome


@dataclasses.dataclass(frozen=True)
class Batches:
    """How many examples an update sees: the same number, or exponentially more.

    ``m_k = min(first · exp((k − 1)/b), last)`` with b such that update `grown_at` is the first to
    have `last` (Martens & Grosse 2015, §13).

    Attributes:
        first: In the first update.
        last: In the end; None does not grow.
        grown_at: The update from which on there are so many.
    """

    first: int
    last: int | None = None
    grown_at: int = 1

    def sizes(self, updates: int) -> np.ndarray:
        """Of the first so many updates."""
        if self.last is None:
            return np.full(updates, self.first)
        share = np.arange(updates) / max(1, self.grown_at - 1)
        grown = self.first * (self.last / self.first) ** np.minimum(share, 1.0)
        return np.minimum(np.round(grown).astype(int), self.last)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a training depends on.

    Attributes:
        problem: The name of a `Study`.
        optimizer: A name that the study knows.
        options: What the study makes the optimizer with.
        batches: Examples of the updates.
        seed: Of weights, order of the examples and sampled targets.
        budget: How long it may take.
    """

    problem: str
    optimizer: str
    options: Mapping[str, Any]
    batches: Batches
    budget: Budget
    seed: int = 0

    def __hash__(self) -> int:
        """Of what it says: options are a dict."""
        return hash(repr(self.in_file()))

    def __str__(self) -> str:
        """For the progress bar."""
        told = [f"{key} {value:.3g}" for key, value in self.options.items() if _is_number(value)]
        size = f"batch {self.batches.first}" + ("…" if self.batches.last else "")
        return ", ".join([self.optimizer, *told, size, f"seed {self.seed}"])

    def in_file(self) -> dict[str, Any]:
        """As in the file."""
        return dataclasses.asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Study:
    """A network, its data, and the optimizers that train it.

    Attributes:
        name: For tables.
        examples: It is trained on.
        judged: Inputs and targets on which its loss is measured now and then.
        network: Makes the model.
        loss: Makes the loss.
        optimizer: From a trial and its model to the optimizer.
        loss_weight: Factor of the loss.
        callbacks: From a trial to what changes the training further.
        every: Updates between two looks at the judged examples; None looks ever more seldom.
        smoothed: Examples over whose losses the mean is taken.
    """

    name: str
    examples: Examples
    judged: tuple[np.ndarray, np.ndarray]
    network: Callable[[], keras.Model]
    loss: Callable[[], keras.losses.Loss]
    optimizer: Callable[[Trial, keras.Model], keras.optimizers.Optimizer]
    loss_weight: float | None = None
    callbacks: Callable[[Trial], Sequence[keras.callbacks.Callback]] = lambda _: ()
    every: int | None = None
    smoothed: int = 2000

    def training(self, batches: Batches, seed: int) -> tf.data.Dataset:
        """Batches without end."""
        if batches.last is None:
            return self.examples.training(batches.first, seed)
        return growing(self.examples, batches, seed)


def growing(examples: Examples, batches: Batches, seed: int) -> tf.data.Dataset:
    """Batches of growing size, with one shape for all of them, so that nothing is traced twice.

    Args:
        examples: They are drawn from; every pass has another order.
        batches: How many each.
        seed: Of the order.
    """
    count = len(examples.inputs)

    def numbers() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        order, update = rng.permutation(count), 0
        while True:
            update += 1
            size = int(batches.sizes(update)[-1])
            while len(order) < size:
                order = np.concatenate([order, rng.permutation(count)])
            chosen, order = order[:size], order[size:]
            yield chosen

    inputs, targets = tf.constant(examples.inputs), tf.constant(examples.targets)
    drawn = tf.data.Dataset.from_generator(
        numbers, output_signature=tf.TensorSpec([None], tf.int64)
    )
    options = tf.data.Options()
    options.autotune.enabled = False  # Its thread would take turns with the training.
    return (
        drawn.map(lambda chosen: (tf.gather(inputs, chosen), tf.gather(targets, chosen)))
        .prefetch(2)
        .with_options(options)
    )


def train(study: Study, _: Examples, trial: Trial) -> Run:
    """Trains, and returns what became of it: JSON, in which None stands for what is not finite.

    With the same seed, the weights are the same for every optimizer. The clock runs in training
    steps alone; the first counts as long as the second. A training that KFAC gives up has diverged.
    """
    keras.utils.set_random_seed(trial.seed)
    model = study.network()
    model.compile(study.optimizer(trial, model), study.loss(), loss_weights=study.loss_weight)
    smoothing = max(1, study.smoothed // trial.batches.first)
    curve = LossCurve(dataclasses.replace(trial.budget, updates=_steps(trial)), smoothing)
    looks = Looks(study, trial, curve)
    others = machine.OtherWork()
    try:
        model.fit(
            study.training(trial.batches, trial.seed),
            steps_per_epoch=_steps(trial),
            callbacks=[*study.callbacks(trial), curve, looks],
            shuffle=False,  # Done already.
            verbose=0,
        )
    except FloatingPointError:  # Step after step was skipped; others would go on with no numbers.
        curve.diverged = True
    share = others.share()
    keras.backend.clear_session()
    gc.collect()
    found = outcome(curve, smoothing) | {"looks": looks.rows, "others": share and rounded(share)}
    return trial.in_file() | found


def _steps(trial: Trial) -> int:
    """Micro-batches, if several make an update."""
    return trial.budget.updates * int(trial.options.get("gradient_accumulation_steps") or 1)


class Looks(keras.callbacks.Callback):
    """Measures loss and accuracy on the judged examples now and then, beside the clock.

    Args:
        study: What is trained.
        trial: How.
        curve: The clock; it comes before in the list of callbacks.

    Attributes:
        rows: Updates, seconds and examples until then; the loss, that of the averaged weights if
            there are any, and accuracies if the targets are classes.
    """

    def __init__(self, study: Study, trial: Trial, curve: LossCurve) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self._study, self._curve = study, curve
        self._due = set(looked_at(trial.budget.updates, study.every))
        self._seen = np.cumsum(trial.batches.sizes(_steps(trial)))
        self._micro_batches = _steps(trial) // trial.budget.updates
        self._loss = study.loss()
        self._forward: Any = None
        self._averaging: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Makes the graph of the forward pass."""
        self._forward = tf.function(lambda inputs: self.model(inputs, training=False))
        if self.model.optimizer.use_ema:
            self._averaging = keras.callbacks.SwapEMAWeights()
            self._averaging.set_model(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks if it is time, and if the clock has just ended the training.

        After the last batch it would be too late: Keras puts the averages in place of the weights.
        """
        made, within = divmod(len(self._curve.losses), self._micro_batches)
        due = made in self._due and within == 0
        if (due or self.model.stop_training) and made and not self._curve.diverged:
            self._look()

    def _look(self) -> None:
        steps = len(self._curve.losses)
        row = {
            "updates": steps // self._micro_batches,
            "seconds": round(self._curve.seconds[-1], 4),
            "examples": int(self._seen[steps - 1]),
            **self._judged(),
        }
        if self._averaging is not None:
            with averaged_weights(self._averaging):
                row |= {f"averaged_{key}": value for key, value in self._judged().items()}
        self.rows.append(row)

    def _judged(self) -> dict[str, float | None]:
        """Loss and accuracy; None if they are not finite."""
        inputs, targets = self._study.judged
        losses, right, count = 0.0, 0.0, len(inputs)
        for start in range(0, count, CHUNK):
            chunk = slice(start, start + CHUNK)
            outputs = self._forward(tf.constant(inputs[chunk]))
            losses += float(self._loss(targets[chunk], outputs)) * len(inputs[chunk])
            if self._study.examples.classes:
                right += float(np.sum(np.argmax(outputs, axis=-1) == targets[chunk]))
        loss = losses / count * (self._study.loss_weight or 1.0)
        found: dict[str, float | None] = {"loss": rounded(loss) if math.isfinite(loss) else None}
        return found | (
            {"accuracy": rounded(right / count)} if self._study.examples.classes else {}
        )


CHUNK = 1000
"""Examples that are judged at once."""


@contextlib.contextmanager
def averaged_weights(averaging: keras.callbacks.SwapEMAWeights) -> Iterator[None]:
    """The model has the averages of its weights meanwhile, as Keras evaluates them."""
    averaging.on_test_begin()
    try:
        yield
    finally:
        averaging.on_test_end()


def looked_at(updates: int, every: int | None) -> list[int]:
    """Updates after which the judged examples are looked at: each √2 times the one before.

    Args:
        updates: Of the training.
        every: Or evenly, so many updates apart.
    """
    if every is not None:
        return [*range(every, updates, every), updates]
    count = 1 + 2 * math.ceil(math.log2(updates)) if updates > 1 else 1
    return sorted({min(updates, round(2 ** (k / 2))) for k in range(count)} | {updates})


def last_look(run: Run, key: str = "loss") -> float:
    """What was seen last; infinite if the training diverged."""
    found = run["looks"][-1].get(key) if run["looks"] else None
    return math.inf if found is None or run["diverged"] else float(found)


def first_look_at(run: Run, target: float, key: str = "loss") -> dict[str, float]:
    """Updates, seconds and examples until a loss was at the target; infinite if it never was.

    Between two looks the logarithm of the loss is taken to fall evenly.
    """
    before: Mapping[str, Any] | None = None
    counted = ("updates", "seconds", "examples")
    for look in run["looks"]:
        loss = look.get(key)
        if loss is not None and loss <= target:
            if before is None or not before.get(key):
                return {each: float(look[each]) for each in counted}
            fallen = math.log(before[key]) - math.log(loss)
            share = (math.log(before[key]) - math.log(target)) / fallen
            return {each: before[each] + share * (look[each] - before[each]) for each in counted}
        before = look
    return dict.fromkeys(counted, math.inf)
