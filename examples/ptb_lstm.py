"""Trains a word-level language model, two LSTM layers, with three forms of KFAC, Adam and SGD.

Every stream of words is read in pieces of 35, the state of the LSTM going on from piece to piece
(truncated backpropagation through time). KFAC takes the steps for independent, or models the
correlation of neighbouring steps in one of two ways (`recurrent=`). The words come from the text
files in `--data FOLDER` (Penn Treebank, say): the largest trains, the next one validates. Without
it, offline, they come from Python's own help. The program prints a table and writes the
perplexities to a PNG. Run it with

    python examples/ptb_lstm.py --data PATH_TO/ptb
"""

import argparse
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from comparison import SECONDS, UPDATES, Quantity, Run, at_rates, compare, plot, table
from recurrent_optimizers import recurrent_optimizers

TRAINING_PERPLEXITY = Quantity("perplexity", "training perplexity", ".1f", scale="log")
VALIDATION_PERPLEXITY = Quantity("val_perplexity", "validation perplexity", ".1f", scale="log")
UNKNOWN, END = "<unk>", "<eos>"


@dataclass(frozen=True)
class Corpus:
    """Words as numbers, and how many words there are."""

    name: str
    training: np.ndarray
    validation: np.ndarray
    vocabulary: int


def main() -> None:
    """Trains, prints the table, writes the plot."""
    arguments = parse_arguments()
    corpus = load_corpus(arguments.data)
    print(f"{corpus.name}: {len(corpus.training):,} words, {corpus.vocabulary:,} different ones")
    runs = compare(
        at_rates(
            optimizers(),
            LEARNING_RATES,
            names=arguments.optimizers,
            tried=arguments.learning_rate,
            seed=arguments.seed,
        ),
        lambda optimizer: language_model(corpus, arguments, optimizer),
        seed=arguments.seed,
        callbacks=[FreshStreams()],
        x=Pieces(corpus.training, arguments.batch_size, arguments.steps),
        validation_data=Pieces(corpus.validation, arguments.batch_size, arguments.steps),
        epochs=arguments.epochs,
        shuffle=False,
    )
    runs = [with_perplexities(run) for run in runs]
    print("\n" + table(runs, [TRAINING_PERPLEXITY, VALIDATION_PERPLEXITY, SECONDS, UPDATES]))
    plot(
        runs,
        title=f"Two-layer LSTM on {corpus.name}",
        rows=[TRAINING_PERPLEXITY, VALIDATION_PERPLEXITY],
        columns=[UPDATES, SECONDS],
        output=arguments.output,
    )
    print(f"\nThe curves are in {arguments.output}")


LEARNING_RATES = {
    "KFAC": 0.3,
    "KFAC lggm_symmetric": 0.3,
    "KFAC lggm_limit": 0.3,
    "Adam": 1e-4,
    "SGD": 3.0,
}
KL_CLIP = 3e-2
"""How far one step of KFAC may move the predictions."""


def optimizers(
    kl_clip: float = KL_CLIP,
) -> dict[str, Callable[[float, int], keras.optimizers.Optimizer]]:
    """Returns a name → a function of a learning rate and a seed."""
    # The factor of the words is as wide as there are words: its diagonal has to do.
    return recurrent_optimizers(kl_clip=kl_clip, max_factor_size=2048)


def language_model(
    corpus: Corpus, arguments: argparse.Namespace, optimizer: keras.optimizers.Optimizer
) -> keras.Model:
    """Returns the compiled model; its outputs are the logits of the next word at every step."""
    words = keras.Input(batch_shape=(arguments.batch_size, arguments.steps), dtype="int32")
    hidden = keras.layers.Embedding(corpus.vocabulary, arguments.units)(words)
    for _ in range(2):
        hidden = keras.layers.LSTM(arguments.units, return_sequences=True, stateful=True)(hidden)
    model = keras.Model(words, keras.layers.Dense(corpus.vocabulary)(hidden))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class FreshStreams(keras.callbacks.Callback):
    """Lets the LSTMs forget what they read, before every epoch and every validation."""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Forgets."""
        self._forget()

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Forgets."""
        self._forget()

    def _forget(self) -> None:
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.LSTM):
                layer.reset_state()


class Pieces(keras.utils.PyDataset):
    """Streams of words, side by side, in pieces of equal length; the target is the next word."""

    def __init__(self, words: np.ndarray, streams: int, steps: int) -> None:
        super().__init__()
        length = (len(words) - 1) // streams
        self._inputs = words[: streams * length].reshape(streams, length)
        self._targets = words[1 : streams * length + 1].reshape(streams, length)
        self._steps = steps

    def __len__(self) -> int:
        """The number of pieces; what is left of the streams is not read."""
        return self._inputs.shape[1] // self._steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The piece with this number, [streams, steps] twice."""
        steps = slice(index * self._steps, (index + 1) * self._steps)
        return self._inputs[:, steps], self._targets[:, steps]


def with_perplexities(run: Run) -> Run:
    """Returns the run with e to the power of its losses."""
    perplexities = {
        key.replace("loss", "perplexity"): list(np.exp(run.history[key]))
        for key in ("loss", "val_loss")
    }
    return Run(run.name, {**run.history, **perplexities})


def load_corpus(folder: str | None) -> Corpus:
    """Returns the words of the two largest text files of a folder, else of Python's own help."""
    if folder is None:
        texts = language_reference()
        name, training, validation = "Python's help", texts[:40], texts[40:50]
    else:
        files = sorted(pathlib.Path(folder).glob("*.txt"), key=lambda path: -path.stat().st_size)
        if len(files) < 2:
            raise SystemExit(f"--data {folder}: a folder with two text files (*.txt) is needed.")
        name = pathlib.Path(folder).name
        training, validation = [files[0].read_text()], [files[1].read_text()]
    known = [word for word, _ in Counter([UNKNOWN, *words_of(training)]).most_common()]
    numbers = {word: number for number, word in enumerate(known)}

    def encoded(texts: Sequence[str]) -> np.ndarray:
        return np.array([numbers.get(word, numbers[UNKNOWN]) for word in words_of(texts)])

    return Corpus(name, encoded(training), encoded(validation), len(known))


def words_of(texts: Sequence[str]) -> list[str]:
    """Returns the words of some texts, with a mark at the end of every line."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return [word for line in lines for word in (*line.lower().split(), END)]


def language_reference() -> list[str]:
    """Returns what Python's own help says about its language, topic by topic."""
    from pydoc_data import topics

    return [text for _, text in sorted(topics.topics.items())]


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        metavar="FOLDER",
        help="text files: the largest trains, the next one validates (default: Python's own help)",
    )
    add("--epochs", type=int, default=6, help="epochs of each training")
    add("--batch-size", type=int, default=20, help="streams that are read side by side")
    add("--steps", type=int, default=35, help="words of a piece")
    add("--units", type=int, default=200, help="of each LSTM, and of the embedding")
    add(
        "--optimizers",
        nargs="+",
        choices=LEARNING_RATES,
        default=list(LEARNING_RATES),
        help="what to compare",
    )
    add("--learning-rate", type=float, nargs="+", help="train each optimizer at each of these")
    add("--seed", type=int, default=0, help="of weights and KFAC")
    add("--output", default="ptb_lstm.png", help="the PNG to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
