"""Convolutions in chunks: every piece within the budget, and the sum that of the whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from convolutions import Case, Convolution, input_error, statistics

from tfkfac.blocks import chunks as chunking
from tfkfac.blocks.window import Window

CHUNKED = [
    Case(Convolution((3, 2), padding="same"), batch=5, image=(6, 4)),
    Case(Convolution((3, 2), strides=(2, 1), groups=2), batch=4, image=(9, 4), weights="places"),
    Case(
        Convolution((2, 3), dilation=(2, 1), padding="same", channels_first=True),
        batch=3,
        image=(7, 5),
        bias=False,
        weights="examples",
    ),
]
chunked = pytest.mark.parametrize("case", CHUNKED, ids=["same", "strided-groups", "dilated"])


def row_bytes(case: Case) -> int:
    """What the patches of one output row take."""
    taps = case.geometry.size[0] * case.geometry.size[1]
    return case.places[1] * taps * case.channels * 8


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of all patches that are made, in traced graphs too."""
    sizes: list[int] = []
    cut = Window.patches

    def note(size: np.ndarray) -> np.ndarray:
        sizes.append(int(size))
        return size

    def cut_and_note(*args: Any, **kwargs: Any) -> list[tf.Tensor]:
        patches = cut(*args, **kwargs)
        size = tf.add_n([tf.size(patch) for patch in patches]) * patches[0].dtype.size
        tf.numpy_function(note, [size], tf.int32)
        return patches

    monkeypatch.setattr(Window, "patches", cut_and_note)
    return sizes


@chunked
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 12, 14, 20, 1000])
def test_chunks_sum_to_the_whole_within_the_budget(
    case: Case, rows: int, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From single output rows over images to the whole batch at once, in as few pieces as fit."""
    budget = rows * row_bytes(case)
    monkeypatch.setattr(chunking, "PATCH_BYTES", budget)
    rng = np.random.default_rng(rows)
    images, omega = case.images(rng), case.omega(rng)
    weights = None if omega is None else tf.constant(omega)
    found = statistics(case.block(), tf.constant(images), weights, case.places)
    assert input_error(case, found, images, omega) < 1e-12
    assert max(made) <= budget
    height = case.places[0]
    bands, images_at_once = -(-height // rows), max(1, rows // height)
    assert len(made) == -(-case.batch // images_at_once) * bands


def traced_statistics(case: Case, known: str, *, jit: bool) -> Any:
    """(images, ω) → Ā, for images with "all", an "image's", or no sizes known."""
    shape = case.images(np.random.default_rng(0)).shape
    channel_axis = 1 if case.geometry.channels_first else 3
    sizes = {
        "all": shape,
        "image": (None, *shape[1:]),
        "nothing": [n if axis == channel_axis else None for axis, n in enumerate(shape)],
    }
    block = case.block()
    return tf.function(
        lambda images, omega: statistics(
            block, images, None if case.weights == "none" else omega, case.places
        ),
        input_signature=[
            tf.TensorSpec(sizes[known], tf.float64),
            tf.TensorSpec([None, None, None], tf.float64),
        ],
        jit_compile=jit,
    )


@chunked
@pytest.mark.parametrize(
    ("known", "rows", "jit"),
    [
        ("all", 2, True),
        ("image", 2, True),
        ("image", 14, False),
        ("image", 14, True),
        ("nothing", 2, True),
    ],
)
def test_chunks_in_a_traced_graph(
    case: Case, known: str, rows: int, jit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of any size share one trace."""
    monkeypatch.setattr(chunking, "PATCH_BYTES", rows * row_bytes(case))
    rng = np.random.default_rng(0)
    images, omega = case.images(rng), case.omega(rng)
    traced = traced_statistics(case, known, jit=jit)
    for batch in [case.batch] if known == "all" or jit else [case.batch, 1]:
        smaller = dataclasses.replace(case, batch=batch)
        weights = np.ones((batch, 1, 1)) if omega is None else omega[:batch]
        found = traced(tf.constant(images[:batch]), tf.constant(weights))
        assert input_error(smaller, found, images[:batch], weights) < 1e-12


@chunked
@pytest.mark.parametrize("known", ["image", "nothing"])
def test_unknown_sizes_stay_within_the_budget(
    case: Case, known: str, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = 2 * row_bytes(case)
    monkeypatch.setattr(chunking, "PATCH_BYTES", budget)
    rng = np.random.default_rng(0)
    images, omega = case.images(rng), case.omega(rng)
    weights = np.ones((case.batch, 1, 1)) if omega is None else omega
    found = traced_statistics(case, known, jit=False)(tf.constant(images), tf.constant(weights))
    assert input_error(case, found, images, weights) < 1e-12
    assert max(made) <= budget


def test_the_default_budget_is_half_of_64_megabytes() -> None:
    """Patches and their weighted copy are alive together (issue 1)."""
    assert 2 * chunking.PATCH_BYTES <= 64 * 2**20
