"""Hyper-parameters by Bayesian optimisation: KerasTuner proposes, trainings of ours are the answer.

The search is the same every time it is made with the same answers: started again, it proposes what
it did before, finds these trainings in the file, and goes on where they end.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

Space = Mapping[str, tuple[float, float, str]]
"""Hyper-parameter → least, greatest, and "log", "linear" or "log integer"."""


def searched(
    space: Space, answer: Callable[[Mapping[str, Any]], float], *, trials: int, random: int
) -> None:
    """Asks for the answer to so many proposals; who answers keeps them.

    Args:
        space: What is searched.
        answer: From hyper-parameters to what is to be small.
        trials: Proposals altogether.
        random: The first of them, which are drawn at random.

    Raises:
        ValueError: KerasTuner is not installed.
    """
    try:
        import keras_tuner
    except ImportError as error:
        raise ValueError(
            'Bayesian optimisation needs KerasTuner: pip install keras-tuner, or ".[benchmarks]".'
        ) from error

    class Tuner(keras_tuner.BayesianOptimization):
        def run_trial(self, trial: Any, *_: Any, **__: Any) -> float:
            try:
                return answer(rounded_values(trial.hyperparameters.values))
            except Exception as error:  # Or KerasTuner would go on without this answer.
                raise keras_tuner.errors.FatalError(str(error)) from error

    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(
            max_trials=trials,
            num_initial_points=random,
            seed=1,  # 0 would be none.
            hyperparameters=_declared(keras_tuner.HyperParameters(), space),
            directory=folder,
        )
        tuner.search(verbose=0)


def _declared(found: Any, space: Space) -> Any:
    for name, (least, greatest, kind) in space.items():
        if kind == "log integer":
            found.Int(name, int(least), int(greatest), sampling="log")
        else:
            found.Float(name, float(least), float(greatest), sampling=kind)
    return found


def rounded_values(values: Mapping[str, float]) -> dict[str, float]:
    """Three digits are enough."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.3g}")
        for name, value in values.items()
    }


def answer_of(loss: float, untrained: float) -> float:
    """What the search sees of a loss: its logarithm, at most that of a model that is not trained.

    Training that diverged would hide from the Gaussian process how all others differ.
    """
    return math.log(min(loss, untrained))
