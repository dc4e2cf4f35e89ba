"""The autoencoder benchmark: what is run, and what its table says, with runs made by hand."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks import autoencoder
from benchmarks.zoo.training import Setting

LENGTHS = autoencoder.Lengths(sifted=5, whole=30, kfac=15)


def made(settings: list[Setting]) -> Any:
    """Runs whose loss falls evenly: Adam's to 1 with a rate of 1e-3, KFAC's to 0, all from 11."""

    def get(setting: Setting) -> dict[str, Any]:
        settings.append(setting)
        updates = setting.budget.updates
        rate = setting.learning_rate
        end = 0.0 if rate is None else 1 + abs(rate - 1e-3) + (setting.optimizer != "Adam")
        if rate == 3e-2:
            end = None
        curve = {
            "updates": list(range(updates + 1)),
            "losses": [11 + ((end or 0) - 11) * i / updates for i in range(updates + 1)],
            "seconds": [(4.0 if rate is None else 1.0) * i for i in range(updates + 1)],
        }
        found = {"end": end, "evaluated": end, "diverged": end is None, "first_step": 2.0}
        return setting.in_file() | found | {"curve": curve, "others": None}

    return get


def test_rates_are_sifted_and_kfac_is_told_the_target() -> None:
    settings: list[Setting] = []
    runs = autoencoder.all_runs(["Adam", "SGD"], LENGTHS, made(settings))
    adam = {(s.learning_rate, s.budget.updates) for s in settings if s.optimizer == "Adam"}
    assert {rate for rate, updates in adam if updates == 30} == {1e-3, 3e-4}
    assert len({rate for rate, updates in adam if updates == 5}) == 7
    kfac = settings[-1]
    assert (kfac.optimizer, kfac.budget.updates, kfac.budget.until) == ("KFAC", 15, 1.0)
    assert kfac.budget.at_least == 15 and not kfac.budget.is_spent(14, 0.0, 0.5)
    assert list(runs) == ["KFAC", "Adam", "SGD"]


def test_table_says_how_soon_kfac_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """KFAC falls 11 in 15 updates of 4 s, Adam 10 in 30 of 1 s: 14 against 30, 56 s against 30."""
    monkeypatch.setattr(autoencoder, "SHOWN", (3, 6, 100))
    text = autoencoder.table(autoencoder.all_runs(["Adam", "SGD"], LENGTHS, made([])))
    assert "Target: a loss of 1, at which the best first-order run ends (Adam)." in text
    assert "| KFAC | – | 15 | 0 | 0 | 14 | 56.0 | 2.0 |" in text
    assert "| Adam | 0.001 | 30 | 1 | 1 | 30 | 30.0 | 2.0 |" in text
    assert "| SGD | 0.001 | 30 | 2 | 2 | – | – | 2.0 |" in text
    assert "Adam takes 2.14 times KFAC's updates, and 0.54 times its seconds." in text
    assert "KFAC's loss: 8.8 after 3, 6.6 after 6 updates." in text


def test_when_all_diverge_there_is_nothing_to_reach() -> None:
    def diverged(setting: Setting) -> dict[str, Any]:
        return made([])(setting) | {"end": None}

    with pytest.raises(ValueError, match="All first-order runs diverged; use longer ones"):
        autoencoder.all_runs(["Adam"], LENGTHS, diverged)


@pytest.mark.parametrize("named", ["mnist.npz", ""])
def test_command_line_takes_the_file_or_its_folder(
    named: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains nothing here, and writes everything."""
    settings: list[Setting] = []
    monkeypatch.setattr("benchmarks.zoo.runner.train", lambda *given: made(settings)(given[-1]))
    images = np.zeros((3, 28, 28), "uint8")
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=np.zeros(3, "uint8"))
    output = tmp_path / "autoencoder"
    for count in (7 + 2 + 1, 0):
        settings.clear()
        autoencoder.main(
            ["--data", str(tmp_path / named), "--output", str(output), "--optimizers", "Adam"]
        )
        assert len(settings) == count
    assert "at which the best first-order run ends (Adam)" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").stat().st_size > 1000


def test_missing_file_is_named(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, message in (
        (tmp_path / "mnist.npz", "mnist.npz is needed, and --data"),
        (tmp_path / "digits.npz", "the file must be called mnist.npz; rename it"),
    ):
        with pytest.raises(SystemExit):
            autoencoder.main(["--data", str(path), "--output", str(tmp_path / "out")])
        assert message in " ".join(capsys.readouterr().err.split())
