"""Every problem of the zoo reads its data, and its model's output fits its loss."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.zoo import data
from benchmarks.zoo.budget import Budget
from benchmarks.zoo.problems import PROBLEMS
from benchmarks.zoo.training import Setting, compiled

AT_FIRST = {
    "mnist-autoencoder": 784 * np.log(2),
    "mnist-rotation": 1.0,
    "ptb-lstm": np.log(12),
    "copy-task": np.log(8),
    "gpt-ptb": np.log(27),
}
"""What a model that knows nothing loses, where that is not log 10."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Stand-ins for all files: noise, and sentences of few words."""
    made = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def images(count: int, *shape: int) -> dict[str, np.ndarray]:
        labels = rng.integers(10, size=count).astype("uint8")
        return {
            "x_train": rng.integers(256, size=(count, *shape), dtype="uint8"),
            "y_train": labels,
        }

    np.savez(made / "mnist.npz", **images(1000, 28, 28))
    np.savez(made / "cifar10.npz", **images(500, 32, 32, 3))
    (made / "ptb").mkdir()
    words = ["".join(chr(97 + (i * 5 + j) % 26) for j in range(5)) for i in range(10)]
    for name, lines in (("train", 400), ("valid", 20)):
        chosen = rng.choice(words, size=(lines, 4))
        (made / "ptb" / f"ptb.{name}.txt").write_text("\n".join(" ".join(line) for line in chosen))
    return made


@pytest.mark.parametrize("name", PROBLEMS)
def test_output_fits_the_loss(name: str, folder: pathlib.Path) -> None:
    """The first loss is about that of a guess; its gradient reaches every variable."""
    problem = PROBLEMS[name]
    examples = problem.examples(folder)
    model = compiled(problem, examples, Setting(name, "SGD", 0.1, 0, Budget(1)))
    batches = list(examples.evaluation(problem.batch_size).take(1))
    inputs, targets = (np.asarray(each) for each in batches[0])
    if not examples.streams:
        inputs, targets = inputs[:32], targets[:32]
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=True)
        loss = model.compute_loss(y=targets, y_pred=outputs)
    assert float(loss) == pytest.approx(AT_FIRST.get(name, np.log(10)), rel=0.5)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    assert len(problem.loss()(targets, outputs).shape) == 0
    assert model.metrics == [model._loss_tracker]  # Others would take time in every step.


def test_cifar_is_read_from_jpegs_as_well(tmp_path: pathlib.Path) -> None:
    """Smooth grey images, which a JPEG keeps nearly as they are."""
    ramps = np.linspace(0, 250, 32)[None, :, None, None] * np.ones(3)
    images = (ramps * np.linspace(0.5, 1, 6)[:, None, None, None]).repeat(32, axis=2)
    images, labels = images.astype("uint8"), np.arange(6)
    files = [tf.io.encode_jpeg(image, quality=100).numpy() for image in images]
    (tmp_path / "jpeg").mkdir()
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=labels[:, None])
    np.savez(
        tmp_path / "jpeg" / "cifar10_jpeg.npz",
        jpeg_train=np.frombuffer(b"".join(files), "uint8"),
        offsets_train=np.cumsum([0, *map(len, files)]),
        y_train=labels,
    )
    (plain, labels), (decoded, same) = (
        data.cifar10(folder, 5) for folder in (tmp_path, tmp_path / "jpeg")
    )
    assert plain.shape == (5, 32, 32, 3) and list(labels) == list(same) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(plain, decoded, atol=0.1)
    np.testing.assert_allclose(plain.mean((0, 1, 2)), 0, atol=1e-4)


def test_angles_have_unit_variance_and_turn_the_images() -> None:
    images = np.zeros((500, 9, 9), "float32")
    images[:, 4, :] = 1
    turned, angles = data.rotated(images)
    assert np.std(angles) == pytest.approx(1, rel=0.1)
    flat, steep = np.argmin(np.abs(angles[:, 0])), np.argmax(np.abs(angles[:, 0]))
    np.testing.assert_allclose(turned[flat], images[0], atol=0.1)
    assert turned[steep][4].sum() < 0.6 * turned[flat][4].sum()


def test_next_characters(folder: pathlib.Path) -> None:
    examples = data.characters(folder, 7, 100)
    assert examples.inputs.shape == examples.targets.shape == (14, 7)
    np.testing.assert_array_equal(
        examples.inputs.reshape(-1)[1:], examples.targets.reshape(-1)[:-1]
    )


def test_streams_go_on_and_other_data_is_shuffled() -> None:
    """Whole batches only; the same order with the same seed; all examples in a pass."""
    numbers = np.arange(7)
    streams = data.Examples(numbers, numbers, streams=True).training(3, 0)
    assert [list(x) for x, _ in streams.take(4).as_numpy_iterator()] == 2 * [[0, 1, 2], [3, 4, 5]]
    shuffled = data.Examples(numbers[:6], numbers[:6])
    first, same, other = (
        np.concatenate([x for x, _ in shuffled.training(3, seed).take(2).as_numpy_iterator()])
        for seed in (0, 0, 1)
    )
    assert list(first) == list(same) != list(other)
    assert sorted(first) == sorted(other) == list(range(6))


def test_words_are_forgotten_at_the_end_of_a_pass(folder: pathlib.Path) -> None:
    """At the first batch of every pass, and at no other."""
    from benchmarks.zoo.training import FreshStreams

    forgotten = []

    class Noted(keras.layers.LSTM):
        def reset_state(self) -> None:
            forgotten.append(batch)

    words = keras.Input(batch_shape=(1, 2, 3))
    streams = FreshStreams(3)
    streams.set_model(keras.Model(words, Noted(2, stateful=True)(words)))
    for batch in range(8):
        streams.on_train_batch_begin(batch)
    assert forgotten == [0, 3, 6]
