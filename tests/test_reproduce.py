"""The parts of the papers' experiments that can be checked without training for long."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkfac
from benchmarks.reproduce import __main__ as command_line
from benchmarks.reproduce import kaisa, martens, osawa, search, trials, ulbaek
from benchmarks.reproduce.panels import Panel, figure_of
from benchmarks.reproduce.recipe import Rescaled, WarmUpThenDecay, rescale_after_updates
from benchmarks.reproduce.trials import Batches, Study, Trial, first_look_at, looked_at
from benchmarks.zoo import networks
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.data import Examples

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 28, 28, 1)).astype("float32")


# --- Osawa's recipe


def test_rate_rises_evenly_and_falls_as_a_polynomial() -> None:
    schedule = WarmUpThenDecay(0.8, warm_up=4, updates=24, power=2.0)
    rates = [float(schedule(step)) for step in range(25)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates[14] == pytest.approx(0.8 * 0.5**2)
    assert rates[24] == 0.0 and float(schedule(30)) == 0.0
    assert np.argmax(rates) in (3, 4)
    same = WarmUpThenDecay.from_config(schedule.get_config())
    assert float(same(14)) == rates[14]
    with pytest.raises(ValueError, match=r"`warm_up` must be in \[0, updates\), got 24 of 24"):
        WarmUpThenDecay(0.8, warm_up=24, updates=24, power=1.0)


def test_momentum_falls_in_proportion_to_the_rate() -> None:
    options = {**osawa.KFAC, "learning_rate": 0.3}
    trial = Trial("convnet", "KFAC", options, Batches(8), Budget(40))
    optimizer = osawa.optimizer(trial, networks.normalised_convnet((2,)))
    ratios = []
    for step in (0, 3, 10, 30):
        optimizer._iterations.assign(step)
        ratios.append(float(optimizer.momentum) / float(optimizer.learning_rate))
    assert ratios == pytest.approx([osawa.MOMENTUM / 0.3] * 4)


def test_rescaling_changes_no_output_behind_a_normalisation() -> None:
    """In training, where the statistics are the batch's own."""
    model = networks.normalised_convnet((4, 8))
    assert len(rescale_after_updates(model)) == 2
    before = np.asarray(model(IMAGES, training=True))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(3.0 * layer.kernel)
            layer.kernel.assign(layer.kernel.constraint(layer.kernel))
            norm = np.linalg.norm(np.asarray(layer.kernel))
            assert norm == pytest.approx(math.sqrt(2 * layer.filters))
    np.testing.assert_allclose(model(IMAGES, training=True), before, atol=2e-3)


@pytest.mark.parametrize("make", [tfkfac.KFAC, lambda: keras.optimizers.SGD(0.1)])
def test_kernels_are_rescaled_after_every_update(make: Any) -> None:
    keras.utils.set_random_seed(0)
    model = networks.normalised_convnet((4,))
    rescale_after_updates(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make(), loss)
    before = np.asarray(model.layers[1].kernel)
    model.train_on_batch(IMAGES, RNG.integers(10, size=32))
    after = np.asarray(model.layers[1].kernel)
    assert np.linalg.norm(after) == pytest.approx(math.sqrt(8), rel=1e-5)
    assert not np.allclose(after / np.linalg.norm(after), before / np.linalg.norm(before))


def test_a_kernel_of_zeros_stays() -> None:
    np.testing.assert_array_equal(Rescaled()(tf.zeros([3, 3, 2, 4])), 0.0)


def test_stages_add_up_to_the_step() -> None:
    timed = {"sgd": 1.0, "no statistics": 3.0, "no inverses": 6.0, "everything": 10.0}
    timed |= {f"exchange {each}": 0.25 for each in ("gradients", "statistics", "directions")}
    *stages, (whole, sent) = osawa.stages_of(timed).values()
    assert [seconds for seconds, _ in stages] == [1.0, 3.0, 4.0, 2.0]
    assert sum(seconds for seconds, _ in stages) == whole == 10.0
    assert sum(exchange for _, exchange in stages) == sent == 0.75


# --- trainings


def test_batches_grow_exponentially() -> None:
    """m_k = m_1 exp((k − 1)/b), until there are no more."""
    grown = Batches(1000, 4000, 5).sizes(8)
    assert list(grown) == [1000, 1414, 2000, 2828, 4000, 4000, 4000, 4000]
    assert list(Batches(7).sizes(3)) == [7, 7, 7]


def test_growing_batches_see_every_example_once_a_pass() -> None:
    numbers = np.arange(10)
    data = trials.growing(Examples(numbers, numbers), Batches(2, 4, 3), 0)
    batches = [list(x) for x, _ in data.take(4).as_numpy_iterator()]
    assert [len(each) for each in batches] == [2, 3, 4, 4]
    assert sorted(np.concatenate(batches)[:10]) == list(numbers)
    assert data.element_spec[0].shape.as_list() == [None]  # One shape: traced once.


def test_looks_come_ever_more_seldom_and_at_the_end() -> None:
    assert looked_at(1, None) == [1]
    assert looked_at(10, None) == [1, 2, 3, 4, 6, 8, 10]
    assert looked_at(7, 3) == [3, 6, 7]


def test_the_target_is_reached_between_two_looks() -> None:
    rows = [(1, 8.0), (3, 4.0), (9, 1.0)]
    looks = [
        {"updates": n, "seconds": 2.0 * n, "examples": 100 * n, "loss": loss} for n, loss in rows
    ]
    found = first_look_at({"looks": looks}, 2.0)  # Half way from log 4 to log 1.
    assert found == pytest.approx({"updates": 6.0, "seconds": 12.0, "examples": 600.0})
    assert first_look_at({"looks": looks}, 9.0)["updates"] == 1
    assert math.isinf(first_look_at({"looks": looks}, 0.5)["seconds"])


def study(optimizer: Any) -> Study:
    images = RNG.normal(size=(64, 6)).astype("float32")
    labels = RNG.integers(3, size=64).astype("int32")
    return Study(
        "blobs",
        Examples(images, labels, 3),
        (images[:20], labels[:20]),
        lambda: networks.dense([6, 5, 3], "tanh"),
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer,
    )


def test_looks_judge_last_and_averaged_weights() -> None:
    """The averages of momentum 1 − ε are those of the beginning; training goes on from the last."""
    average = {"use_ema": True, "ema_momentum": 1 - 1e-7}
    budget = Budget(100, 60.0, until=9.0, at_least=7)  # Ends after 7, when no look is due.
    trial = Trial("blobs", "SGD", {"learning_rate": 0.5, **average}, Batches(16), budget)
    here = study(lambda trial, _: keras.optimizers.SGD(**trial.options))
    run = trials.train(here, here.examples, trial)
    json.dumps(run, allow_nan=False)
    assert [look["updates"] for look in run["looks"]] == [1, 2, 3, 4, 6, 7]
    assert run["looks"][-1]["examples"] == 7 * 16
    assert run["looks"][-1]["loss"] < 0.97 * run["looks"][0]["loss"]
    averaged = [look["averaged_loss"] for look in run["looks"]]
    assert averaged == pytest.approx([averaged[0]] * 6, rel=1e-3)
    assert 0 <= run["looks"][-1]["accuracy"] <= 1


def test_micro_batches_of_an_update_count_as_one() -> None:
    options = {"learning_rate": 0.1, "gradient_accumulation_steps": 4}
    trial = Trial("blobs", "SGD", options, Batches(4), Budget(3, 60.0))
    here = study(lambda trial, _: keras.optimizers.SGD(**trial.options))
    looks = trials.train(here, here.examples, trial)["looks"]
    assert [(look["updates"], look["examples"]) for look in looks] == [(1, 16), (2, 32), (3, 48)]


def test_a_training_that_kfac_gives_up_has_diverged() -> None:
    """After four updates every step is skipped, since the learning rate is no number."""
    trial = Trial("blobs", "KFAC", {}, Batches(16), Budget(200, 60.0))
    never = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, float("nan")])
    here = study(lambda *_: tfkfac.KFAC(learning_rate=never, max_consecutive_failures=4))
    run = trials.train(here, here.examples, trial)
    assert run["diverged"] and run["end"] is None and run["curve"]["updates"][-1] < 200
    assert math.isinf(trials.last_look(run))


# --- the search, and the whole


def test_the_search_proposes_the_same_again() -> None:
    """With the same answers; so what is in the file is not trained again."""
    pytest.importorskip("keras_tuner")
    space = {"rate": (1e-3, 1.0, "log"), "size": (10, 1000, "log integer")}
    proposed: list[list[Any]] = []
    for _ in range(2):
        proposed.append([])

        def answer(chosen: Any) -> float:
            proposed[-1].append(tuple(chosen.values()))
            return (math.log10(chosen["rate"]) + 2) ** 2

        search.searched(space, answer, trials=4, random=3)
    assert len(proposed[0]) == 4 and proposed[0] == proposed[1]
    assert all(1e-3 <= rate <= 1 and 10 <= size <= 1000 for rate, size in proposed[0])


def test_a_training_that_fails_ends_the_search() -> None:
    keras_tuner = pytest.importorskip("keras_tuner")

    def answer(_: Any) -> float:
        raise KeyError("no such layer")

    with pytest.raises(keras_tuner.errors.FatalError, match="no such layer"):
        search.searched({"rate": (1e-3, 1.0, "log")}, answer, trials=2, random=1)


def test_a_diverged_training_is_as_bad_as_none() -> None:
    assert search.answer_of(math.inf, 2.0) == search.answer_of(7.0, 2.0) == math.log(2)
    assert search.rounded_values({"a": 0.123456, "b": 9543}) == {"a": 0.123, "b": 9543}


def kfac_looks(updates: int, loss: float, **more: float) -> dict[str, Any]:
    return {"updates": updates, "seconds": 1.0, "examples": 10, "loss": loss, **more}


def test_findings_hold_or_do_not() -> None:
    def run(name: str, loss: float, batch: int, rate: float) -> dict[str, Any]:
        options = {"learning_rate": rate, "momentum": 0.5}
        options |= {"damping": 1e-3} if name == "KFAC" else {}
        told = {"optimizer": name, "options": options, "batches": {"first": batch}}
        return told | {"looks": [kfac_looks(9, loss)], "diverged": False}

    found = {
        "autoencoder": {
            "KFAC": [run("KFAC", 0.01, 5000, 0.1), run("KFAC", 0.02, 6000, 0.2)],
            "SGD": [
                run("SGD", 0.03, 100, 0.01),
                run("SGD", 0.04, 900, 1.0),
                run("SGD", math.nan, 1, 1e-9) | {"diverged": True},  # Counts for nothing.
            ],
        }
    }
    series = [
        ulbaek.Series("batch size", {25.0: (0.1, 0.1), 1000.0: (0.01, 0.01)}),
        ulbaek.Series("artificial", {1000.0: (0.02, 0.02)}),
        ulbaek.Series("damping", {1e-7: (0.05, None), 1e-3: (0.01, None)}),
    ]
    lines = ulbaek.verdicts(found, series, {25: 0.1, 100: 0.05}, 0.12).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == ["yes"] * 3 + ["no"] + ["yes"] * 2
    assert "in the same updates, at 1000: 0.02 and 0.01" in lines[-1]


def test_searches_are_compared_after_as_many_updates() -> None:
    slow = {"looks": [kfac_looks(4, 0.5), kfac_looks(9, 0.3), kfac_looks(18, 0.2)]}
    soon = {"looks": [kfac_looks(5, 0.4), kfac_looks(6, 0.35)]}
    late = {"looks": [kfac_looks(7, 0.1)]}
    found = {"autoencoder": {"KFAC": [slow, soon], "SGD": [late]}}
    lines = ulbaek.by_updates(found, {"autoencoder": soon}).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines]
    assert cells == [
        ["KFAC", "0.4", "0.3", "0.2"],
        ["SGD", "–", "0.1", "0.1"],
        ["KFAC()", "0.4", "0.35", "0.35"],
    ]


def test_kaisa_is_judged_by_the_median_seed_of_sgd() -> None:
    """Of the best accuracies 0.4, 0.6 and 0.5; other seeds have the colour of the first."""

    def run(*accuracies: float) -> dict[str, Any]:
        looks = [
            {"updates": 2 * epoch, "seconds": 3.0 * epoch, "accuracy": accuracy, "loss": 1.0}
            for epoch, accuracy in enumerate(accuracies, start=1)
        ]
        curve = {"updates": [1, 2], "losses": [2.0, 1.0]}
        return {"options": {}, "looks": looks, "end": 1.0, "curve": curve, "diverged": False}

    runs = {
        "SGD": run(0.2, 0.4, 0.3),
        "KFAC()": run(0.3, 0.5, 0.7),
        "SGD, seed 1": run(0.3, 0.4, 0.6),
        "SGD, seed 2": run(0.5, 0.3, 0.3),
    }
    size = kaisa.Size(images=32, batch=16, epochs=3)
    lines = kaisa.tables(runs, size).splitlines()
    assert "epochs to 50.0 %" in lines[2]
    ends = {line.split("|")[1].strip(): line.split("|")[-3:-1] for line in lines[4:]}
    assert {label: [cell.strip() for cell in cells] for label, cells in ends.items()} == {
        "SGD": ["–", "–"],
        "KFAC()": ["2", "6"],
        "SGD, seed 1": ["3", "9"],
        "SGD, seed 2": ["1", "3"],
    }
    (styles, *_) = (panel.styles for panel in kaisa.panels(runs, size))
    assert styles["SGD"] == (0, "-") and styles["SGD, seed 2"] == (0, ":")
    assert styles["KFAC()"] == (1, "-")


def test_a_series_names_all_its_values() -> None:
    """Also those without a point."""
    panel = Panel("batch size", "loss", {"a": ([25, 500], [math.nan, 0.1])}, "log", marker="o")
    (axes,) = [each for each in figure_of([panel]).axes if each.get_visible()]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["25", "500"]
    assert not axes.xaxis.get_minorticklocs().size
    _, crosses = axes.lines
    assert crosses.get_label() == "diverged" and list(crosses.get_xdata()) == [25]


def test_an_experiment_goes_on_where_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Martens', with trainings that are not made; the frame of a page stays."""
    made: list[Trial] = []

    def train(study: Study, _: Examples, trial: Trial) -> dict[str, Any]:
        made.append(trial)
        fast = 1.0 if trial.optimizer == "SGD" else 5.0
        looks = [
            {
                **kfac_looks(n, 200 / (1 + fast * n), averaged_loss=190 / (1 + fast * n)),
                "seconds": n,
            }
            for n in (1, 2, 4, 8)
        ]
        told = {"looks": looks, "others": None, "diverged": False, "end": 1.0}
        return trial.in_file() | told

    monkeypatch.setattr(command_line, "train", train)
    images = np.zeros((50, 28, 28), "uint8")
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=np.zeros(50, "uint8"))
    page = tmp_path / "martens.md"
    page.write_text("# Frame\n\n<!-- begin table -->\n<!-- end table -->\n\n## Why\n")
    arguments = ["martens", "--quick", "--data", str(tmp_path), "--output", str(tmp_path / "NAME")]
    command_line.main(arguments)
    assert "about 2 minutes on two quiet cores" in capsys.readouterr().out
    count = len(made)
    assert count == len(set(made)) == 2 + 2 + 2 + 7  # One of the compared is the best of the tuned.
    command_line.main(arguments)
    assert len(made) == count
    text = page.read_text()
    assert text.startswith("# Frame\n") and text.endswith("## Why\n")
    assert "](martens.png)" in text
    report = json.loads((tmp_path / "martens.json").read_text())
    assert all({"threads", "keras", "commit"} <= run["machine"].keys() for run in report["runs"])
    assert (tmp_path / "martens.png").stat().st_size > 1000


def test_polyak_averages_count_as_well() -> None:
    run = {"looks": [kfac_looks(1, 9.0, averaged_loss=9.5), kfac_looks(2, 8.0, averaged_loss=4.0)]}
    assert martens.end(run | {"diverged": False}) == 4.0
    assert martens.to_target(run, 8.5)["updates"] < 2
    assert math.isinf(martens.to_target(run, 3.0)["updates"])


def test_bad_command_lines(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["martens", "kaisa", "--output", "one"], "several experiments need NAME in it"),
        (["kaisa", "--data", str(tmp_path)], "cifar10.npz is needed, and --data"),
        (["everything"], "invalid choice: 'everything'"),
    ):
        with pytest.raises(SystemExit):
            command_line.main(arguments)
        assert message in " ".join(capsys.readouterr().err.split())
