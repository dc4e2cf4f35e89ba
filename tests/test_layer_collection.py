"""Which block each layer gets, and what the collection tells of them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkfac
from tfkfac.blocks import DiagonalBlock, KroneckerBlock, PlainGradient

Factory = Callable[[], keras.Model]
scan = tfkfac.LayerCollection.scan


def _built(factory: Factory) -> keras.Model:
    model = factory()
    model(models.data_of(factory)[0])
    return model


def _names(blocks: Any) -> list[str]:
    return [block.name for block in blocks]


# --- scanning ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (models.sequential, ["hidden", "logits"]),
        (models.functional, ["hidden", "logits"]),
        (models.WithTraining, ["hidden", "logits"]),
        (models.LayersFromBuild, ["hidden", "logits"]),
        (models.nested, ["first", "hidden", "logits", "last"]),
        (models.siamese, ["shared", "logits"]),
        (models.convolutional, ["conv_1", "conv_2", "logits"]),
    ],
)
def test_every_layer_is_found_once(factory: Factory, names: list[str]) -> None:
    model = _built(factory)
    collection = scan(model)
    assert sorted(_names(collection)) == sorted(names)
    assert len(collection) == len(names)
    assert all(isinstance(block, KroneckerBlock) for block in collection)
    assert collection.coverage() == 1.0
    covered = [id(variable) for block in collection for variable in block.variables]
    assert sorted(covered) == sorted(id(variable) for variable in model.trainable_variables)


def test_factor_shapes_are_those_of_the_kernel_as_a_matrix() -> None:
    collection = scan(_built(models.convolutional))
    assert collection["conv_1"].factor_shapes == {"A": (3 * 3 * 2 + 1,) * 2, "G": (3, 3)}
    assert collection["conv_2"].factor_shapes == {"A": (2 * 2 * 3 + 1,) * 2, "G": (2, 2)}
    assert collection["logits"].factor_shapes == {"A": (9, 9), "G": (models.CLASSES,) * 2}
    assert scan(models.linear())["logits"].factor_shapes["A"] == (models.FEATURES,) * 2


def test_block_is_found_by_name_and_by_path() -> None:
    model = _built(models.nested)
    collection = scan(model)
    hidden = next(layer for layer in model._flatten_layers() if layer.name == "hidden")
    assert collection["hidden"] is collection[hidden.path]
    assert collection["hidden"].layers == [hidden]
    assert hidden.path != "hidden"


def test_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"'dense_7'.*There are: hidden, logits"):
        _ = scan(models.sequential())["dense_7"]


def test_model_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no weights yet.*model.build\(input_shape\)"):
        scan(models.WithoutTraining())


def test_model_without_parameters_is_covered() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.ReLU()])
    assert len(scan(model)) == 0
    assert scan(model).coverage() == 1.0


# --- fallbacks -----------------------------------------------------------------------------


class Doubling(layers.Dense):
    """Computes something else than its parent."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return 2 * super().call(inputs)


class OddCell(layers.SimpleRNNCell):
    """A cell that no builder knows."""

    def call(self, sequence: Any, states: Any, training: bool | None = None) -> Any:
        return super().call(sequence, states)


class FrozenKernel(layers.Dense):
    """Trains its bias alone."""

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.kernel.trainable = False


def _then(*parts: keras.layers.Layer, shape: tuple[int, ...] = (models.FEATURES,)) -> keras.Model:
    """A model of some parts and a dense layer, "logits", which has a block."""
    stack = [keras.Input(shape), *parts, layers.Flatten(), layers.Dense(2, name="logits")]
    return keras.Sequential(stack)


def _renorm() -> keras.Model:
    if "renorm" not in inspect.signature(layers.BatchNormalization).parameters:
        pytest.skip("this Keras has no batch renormalisation")
    return _then(layers.BatchNormalization(renorm=True, name="odd"))


def _lora() -> keras.Model:
    model = _then(layers.Dense(6, name="odd"))
    model.get_layer("odd").enable_lora(2)
    return model


def _quantised() -> keras.Model:
    model = _then(layers.Dense(6, name="odd"))
    model.get_layer("odd").quantize("int8")
    return model


def _borrowed() -> keras.Model:
    lender = layers.Dense(models.FEATURES, name="lender")

    class Borrowing(layers.Dense):
        def build(self, input_shape: Any) -> None:
            super().build(input_shape)
            self._kernel = lender.kernel

    return _then(lender, Borrowing(models.FEATURES, name="odd"))


FALLBACKS: dict[str, tuple[Factory, dict[str, str]]] = {
    "renorm": (_renorm, {"odd": "renorm"}),
    "recurrent cell": (
        lambda: _then(layers.Reshape((1, -1)), layers.RNN(OddCell(2), name="odd")),
        {"odd": "its cell is of class OddCell"},
    ),
    "LoRA": (_lora, {"odd": "LoRA"}),
    "quantised": (_quantised, {"odd": "quantised to int8"}),
    "other call": (
        lambda: _then(Doubling(3, name="odd")),
        {"odd": "Doubling overrides Dense.call"},
    ),
    "SpectralNormalization": (
        lambda: _then(layers.SpectralNormalization(layers.Dense(3, name="odd"))),
        {"odd": "its kernel is reparameterised by SpectralNormalization"},
    ),
    "frozen kernel": (lambda: _then(FrozenKernel(3, name="odd")), {"odd": "its kernel is frozen"}),
    "shared kernel": (
        _borrowed,
        dict.fromkeys(["lender", "odd"], "shares a variable with another layer"),
    ),
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_layer_without_right_curvature_falls_back(kind: str) -> None:
    factory, expected = FALLBACKS[kind]
    model = factory()
    collection = scan(model)
    assert {block.name: block.reason for block in collection.fallbacks} == expected
    assert all(isinstance(block, DiagonalBlock) for block in collection.fallbacks)
    assert [b.name for b in collection if isinstance(b, KroneckerBlock)] == ["logits"]
    variables = [variable for block in collection for variable in block.variables]
    assert len(variables) == len(model.trainable_variables)
    covered = sum(np.prod(v.shape) for v in model.get_layer("logits").trainable_variables)
    assert collection.coverage() == covered / sum(np.prod(v.shape) for v in variables)


@pytest.mark.parametrize("kind", sorted(FALLBACKS.keys() - {"shared kernel", "quantised"}))
def test_fallback_divides_by_its_diagonal(kind: str) -> None:
    """``g / (F + λ)``, with F the square of the gradient of sampled targets, times N."""
    model = FALLBACKS[kind][0]()
    optimizer = models.kfac(learning_rate=0.5, momentum=0.0, damping=0.01)
    model.compile(optimizer, models.crossentropy())
    x, y = abs(models.vectors()[0]), models.vectors()[1] % 2
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    before = {id(variable): variable.numpy() for variable in model.trainable_variables}
    with pytest.warns(UserWarning, match="odd"):
        optimizer.apply(gradients, model.trainable_variables)
    found = dict(zip(before, gradients, strict=True))
    (block,) = optimizer.layer_collection.fallbacks
    diagonals = list(block.factors.values())
    assert sum(tf.reduce_sum(diagonal) for diagonal in diagonals) > 0
    for variable, diagonal in zip(block.variables, diagonals, strict=True):
        gradient = tf.convert_to_tensor(found[id(variable)])
        step = -0.5 * gradient / (tf.reshape(diagonal, gradient.shape) + 0.01)
        np.testing.assert_allclose(variable, before[id(variable)] + step, atol=1e-5)


def test_skipped_layer_follows_its_gradient_and_has_no_curvature_to_show() -> None:
    block = scan(models.sequential(), skip=["hidden"])["hidden"]
    assert isinstance(block, PlainGradient)
    assert block.factors == {}
    assert block.factor_shapes == {}
    assert block.state_size == 0
    gradients = [tf.ones(variable.shape) for variable in block.variables]
    for found in block.precondition(gradients, damping=0.1):
        np.testing.assert_array_equal(found, tf.ones(found.shape))
    with pytest.raises(ValueError, match=r"hidden.*no curvature"):
        block.to_dense()


def test_one_warning_names_everything_without_structure() -> None:
    model = _then(
        FrozenKernel(3, name="frozen"),
        Doubling(3, name="odd"),
        layers.Dense(3, name="fine"),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.compile(models.kfac(), models.crossentropy(), run_eagerly=True)
        x, y = models.vectors()
        model.fit(x, y % 2, batch_size=8, verbose=0)
    ours = [str(each.message) for each in caught if "tfkfac" in str(each.message)]
    assert len(ours) == 1
    told = "frozen (its kernel is frozen: diagonal), odd (Doubling overrides Dense.call: diagonal)"
    assert told in ours[0]
    assert "fine" not in ours[0] and "logits" not in ours[0]


def test_no_warning_without_fallbacks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan(models.sequential()).warn_of_fallbacks()


def test_frozen_layer_has_no_block_and_frozen_bias_no_row() -> None:
    model = models.sequential()
    model.get_layer("hidden").trainable = False
    assert _names(scan(model)) == ["logits"]
    model.get_layer("hidden").trainable = True
    model.get_layer("hidden").bias.trainable = False
    block = scan(model)["hidden"]
    assert block.variables == [model.get_layer("hidden").kernel]
    assert block.factor_shapes["A"] == (models.FEATURES,) * 2
    assert scan(model).coverage() == 1.0


@pytest.mark.parametrize(
    ("patterns", "skipped"),
    [
        (["hidden"], {"hidden"}),
        (["^inner/"], {"first", "hidden", "logits"}),
        (["la.t$", "first"], {"last", "first"}),
        (["."], {"first", "hidden", "logits", "last"}),
    ],
)
def test_skipped_layers_fall_back(patterns: list[str], skipped: set[str]) -> None:
    collection = scan(_built(models.nested), skip=patterns)
    assert set(_names(collection.fallbacks)) == skipped
    assert {block.reason for block in collection.fallbacks} == {"skipped by the user"}
    assert len(collection) == 4
