"""Which blocks recurrent layers have, what falls back, and ``KFAC(recurrent=...)``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest
from keras import layers
from reference import relative_error

import tfkfac
from tfkfac.blocks import Block, RecurrentBlock
from tfkfac.chain_inverses import LimitChainInverse, SymmetricChainInverse
from tfkfac.factors import CholeskyInverse, EigenInverse
from tfkfac.layer_collection import LayerCollection
from tfkfac.variable_slice import VariableSlice

N, T, FEATURES, UNITS = 4, 5, 3, 2


def model_of(*stack: Any) -> keras.Model:
    return keras.Sequential([keras.Input((T, FEATURES)), *stack])


def blocks_of(*stack: Any, **options: Any) -> list[Block]:
    return list(LayerCollection.scan(model_of(*stack), **options))


def parts_of(block: Block) -> list[str]:
    """The block's variables, each with the columns (or row) of it that is meant."""
    return [
        f"{v.variable.name}[{v.part}]" if isinstance(v, VariableSlice) else v.name
        for v in block.variables
    ]


# --- which parts -------------------------------------------------------------------------------

WHOLE = [["kernel", "bias"], ["recurrent_kernel"]]
RESETS = [["kernel", "bias"], ["recurrent_kernel[01]"], ["recurrent_kernel[2]"]]
EACH = [[f"recurrent_kernel[{gate}]"] for gate in range(4)]
PARTS: dict[str, tuple[Any, list[list[str]]]] = {
    "lstm": (lambda: layers.LSTM(UNITS), WHOLE),
    "simple": (lambda: layers.SimpleRNN(UNITS, dropout=0.1, recurrent_dropout=0.1), WHOLE),
    "no-bias": (lambda: layers.LSTM(UNITS, use_bias=False), [["kernel"], ["recurrent_kernel"]]),
    "gru": (
        lambda: layers.GRU(UNITS),
        [["kernel", "bias[row0]"], ["recurrent_kernel", "bias[row1]"]],
    ),
    "gru-no-bias": (lambda: layers.GRU(UNITS, use_bias=False), [["kernel"], ["recurrent_kernel"]]),
    "gru-reset-before": (lambda: layers.GRU(UNITS, reset_after=False), RESETS),
    "dropout": (lambda: layers.LSTM(UNITS, dropout=0.1), WHOLE),
    "recurrent-dropout": (
        lambda: layers.LSTM(UNITS, recurrent_dropout=0.1),
        [["kernel", "bias"], *EACH],
    ),
    "dropout-by-gate": (
        lambda: layers.LSTM(UNITS, dropout=0.1, implementation=1),
        [*([f"kernel[{gate}]", f"bias[{gate}]"] for gate in range(4)), ["recurrent_kernel"]],
    ),
    "gru-recurrent-dropout": (
        lambda: layers.GRU(UNITS, recurrent_dropout=0.1),
        [
            ["kernel", "bias[row0]"],
            *([f"recurrent_kernel[{gate}]", f"bias[row1{gate}]"] for gate in range(3)),
        ],
    ),
    "gru-reset-before-recurrent-dropout": (
        lambda: layers.GRU(UNITS, recurrent_dropout=0.1, reset_after=False),
        [["kernel", "bias"], *EACH[:3]],
    ),
    "dropout-of-all": (lambda: layers.LSTM(UNITS, dropout=1.0), WHOLE),
}


@pytest.mark.parametrize(("make", "parts"), PARTS.values(), ids=PARTS)
def test_every_matrix_with_inputs_of_its_own_has_a_block(make: Any, parts: Any) -> None:
    collection = LayerCollection.scan(model_of(make()))
    assert all(isinstance(block, RecurrentBlock) for block in collection)
    assert [parts_of(block) for block in collection] == parts
    assert collection.coverage() == 1.0
    sizes = [v.shape for block in collection for v in block.variables]
    assert sum(int(np.prod(shape)) for shape in sizes) == model_of(make()).count_params()


def test_cells_of_a_stack_have_blocks_of_their_own() -> None:
    cells = [layers.LSTMCell(2), layers.GRUCell(3)]
    blocks = blocks_of(layers.RNN(cells, name="stack"))
    assert [block.layers[-1] for block in blocks] == [cells[0]] * 2 + [cells[1]] * 2
    assert {block.name for block in blocks} == {"stack"}
    assert len({block.state_name for block in blocks}) == 4  # type: ignore[attr-defined]


def test_both_directions_have_blocks() -> None:
    layer = layers.Bidirectional(layers.LSTM(UNITS))
    blocks = blocks_of(layer)
    for one in (layer.forward_layer, layer.backward_layer):
        assert [parts_of(b) for b in blocks if b.layers == [one, one.cell]] == WHOLE
    assert len(blocks) == 4


# --- frozen variables --------------------------------------------------------------------------

FROZEN = {
    "lstm": (layers.LSTM, {"kernel": [["recurrent_kernel"]], "recurrent_kernel": [WHOLE[0]]}),
    "gru": (layers.GRU, {"kernel": [["recurrent_kernel"]], "recurrent_kernel": [["kernel"]]}),
}


@pytest.mark.parametrize("frozen", ["kernel", "recurrent_kernel"])
@pytest.mark.parametrize(("make", "parts"), FROZEN.values(), ids=FROZEN)
def test_what_is_left_of_a_partly_frozen_layer(make: Any, parts: Any, frozen: str) -> None:
    """A bias that two kernels share out is covered whole or not at all."""
    model = model_of(make(UNITS, name="partly"))
    cell = model.layers[0].cell
    getattr(cell, frozen).trainable = False
    collection = LayerCollection.scan(model)
    kept = [parts_of(b) for b in collection if isinstance(b, RecurrentBlock)]
    assert kept == parts[frozen]
    left = [parts_of(b) for b in collection.fallbacks]
    assert left == ([] if ["kernel", "bias"] in kept else [["bias"]])


def test_a_partly_frozen_layer_trains() -> None:
    for make in (layers.LSTM, layers.GRU):
        model = model_of(make(UNITS), layers.Dense(1))
        kernel = model.layers[0].cell.kernel
        kernel.trainable = False
        before = kernel.numpy()
        with pytest.warns(UserWarning, match="knows no Kronecker structure"):
            losses = fit(model, tfkfac.KFAC(0.05, damping=0.1, seed=0))
        assert losses[-1] < losses[0]
        assert np.array_equal(kernel, before)


def test_a_layer_with_frozen_kernels_falls_back() -> None:
    model = model_of(layers.GRU(UNITS, name="frozen"))
    for kernel in ("kernel", "recurrent_kernel"):
        getattr(model.layers[0].cell, kernel).trainable = False
    (block,) = LayerCollection.scan(model)
    assert (block.reason, parts_of(block)) == ("its kernels are frozen", ["bias"])


# --- refusals ----------------------------------------------------------------------------------


class OwnCell(layers.SimpleRNNCell):
    """May compute anything."""


class OwnLoop(layers.LSTM):
    """Steps of its own."""

    def inner_loop(self, *args: Any, **kwargs: Any) -> Any:
        return super().inner_loop(*args, **kwargs)


class OwnStack(layers.StackedRNNCells):
    """A stack with residual connections, say."""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return super().call(*args, **kwargs)


REFUSED = {
    "own-cell": (lambda: layers.RNN(OwnCell(UNITS)), "its cell is of class OwnCell"),
    "own-cell-in-a-stack": (
        lambda: layers.RNN([layers.LSTMCell(2), OwnCell(UNITS)]),
        "its cell is of class OwnCell",
    ),
    "own-loop": (lambda: OwnLoop(UNITS), "OwnLoop overrides LSTM.inner_loop"),
    "own-stack": (
        lambda: layers.RNN(OwnStack([layers.LSTMCell(2), layers.LSTMCell(2)])),
        "OwnStack overrides StackedRNNCells.call",
    ),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_layer_that_is_not_keras_own_falls_back_with_a_reason(make: Any, reason: str) -> None:
    model = model_of(make(), layers.Dense(1))
    collection = LayerCollection.scan(model)
    (block,) = collection.fallbacks
    assert block.reason == reason
    assert len(block.variables) == len(model.layers[0].trainable_variables)
    with pytest.warns(UserWarning, match=reason):
        losses = fit(model, tfkfac.KFAC(0.05, damping=0.1, seed=0))
    assert losses[-1] < losses[0]


def test_convolutional_recurrence_falls_back() -> None:
    model = keras.Sequential([keras.Input((T, 4, 4, 1)), layers.ConvLSTM2D(2, 2)])
    (block,) = LayerCollection.scan(model)
    assert block in LayerCollection(model, [block]).fallbacks
    assert "ConvLSTM" in str(block.reason)


# --- forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recurrent", "kind", "factors"),
    [
        ("independent", CholeskyInverse, ["A", "G"]),
        ("lggm_symmetric", SymmetricChainInverse, ["A", "G", "A1", "G1"]),
        ("lggm_limit", LimitChainInverse, ["A", "G", "A1", "G1"]),
    ],
)
def test_form_decides_what_a_block_keeps(recurrent: str, kind: type, factors: list[str]) -> None:
    for block in blocks_of(layers.LSTM(UNITS), recurrent=recurrent):
        assert isinstance(block, RecurrentBlock)
        assert type(block.inverse) is kind
        assert list(block.factor_shapes) == factors
        assert block.label == recurrent


def test_method_counts_where_steps_are_independent() -> None:
    for recurrent, kind in (("independent", EigenInverse), ("lggm_limit", LimitChainInverse)):
        for block in blocks_of(layers.LSTM(UNITS), recurrent=recurrent, method="eigen"):
            assert type(block.inverse) is kind  # type: ignore[attr-defined]


@pytest.mark.parametrize(("steps", "longest"), [(5, 5), (600, 512), (None, 512)])
def test_lengths_are_told_apart_up_to_a_limit(steps: int | None, longest: int) -> None:
    model = keras.Sequential([keras.Input((steps, FEATURES)), layers.LSTM(UNITS)])
    for block in LayerCollection.scan(model, recurrent="lggm_symmetric"):
        assert block._averages.shapes["lengths"] == (longest + 1,)


def test_chains_need_both_factors_whole() -> None:
    """Else the steps are independent. LSTM: A is FEATURES + 1, G four times UNITS wide."""
    limit, stack = 4 * 2, [layers.LSTM(2, name="fits"), layers.LSTM(3, name="wide")]
    stack[0].return_sequences = True
    collection = LayerCollection.scan(
        model_of(*stack), recurrent="lggm_symmetric", max_factor_size=limit
    )
    labels = {block.name: block.label for block in collection}
    assert labels == {"fits": "lggm_symmetric", "wide": "independent"}
    assert collection["wide"].factor_shapes == {"A": (3, 3), "G": (12,)}


def test_first_pattern_that_matches_counts() -> None:
    names = ("encoder", "encoder_2", "decoder")
    stack = [layers.LSTM(UNITS, name=name, return_sequences=True) for name in names]
    patterns = {"encoder_2": "lggm_limit", "encoder": "lggm_symmetric"}
    collection = LayerCollection.scan(model_of(*stack), recurrent=patterns)
    found = [collection[name].label for name in names]
    forms = ["lggm_symmetric", "lggm_limit", "independent"]
    assert found == list(forms)


@pytest.mark.parametrize(
    ("recurrent", "message"),
    [
        ("lggm", r"`recurrent` must be one of .*'lggm_symmetric'"),
        ({"lstm": "symmetric"}, r"`recurrent\['lstm'\]` must be one of .*'lggm_symmetric'"),
        ({1: "independent"}, r"`the keys of recurrent` must be .*regular expressions, got \[1\]"),
        (3, r"`recurrent` must be .*'lggm_symmetric'.* or a dict of regular expressions"),
        (None, r"or a dict of regular expressions.*recurrent=None"),
        (["independent"], r"or a dict of regular expressions.*recurrent=\['independent'\]"),
    ],
)
def test_form_that_does_not_exist(recurrent: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfkfac.KFAC(recurrent=recurrent)


def test_pattern_that_matches_no_recurrent_layer() -> None:
    model = model_of(layers.LSTM(UNITS, name="encoder"), layers.Dense(1, name="head"))
    with pytest.raises(ValueError, match=r"`recurrent`: pattern 'head' matches no .*encoder"):
        LayerCollection.scan(model, recurrent={"head": "lggm_limit"})


def test_form_for_a_model_without_recurrent_layers() -> None:
    collection = LayerCollection.scan(models.sequential(), recurrent="lggm_limit")
    assert collection.coverage() == 1.0


# --- training, files, rebuilding ---------------------------------------------------------------


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(N, T, FEATURES)).astype("float32")
    return x, x.sum((1, 2))[:, None]


def fit(model: keras.Model, optimizer: Any = None, epochs: int = 3) -> list[float]:
    if optimizer is not None:
        model.compile(optimizer, "mse", run_eagerly=True)
    return model.fit(*data(), batch_size=N, epochs=epochs, verbose=0).history["loss"]


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    stack = [layers.GRU(UNITS, name="first", return_sequences=True), layers.LSTM(2, name="second")]
    return model_of(*stack, layers.Dense(1, name="head"))


FORMS = {"first": "lggm_symmetric", "second": "lggm_limit"}


def optimizer_of(**options: Any) -> tfkfac.KFAC:
    return tfkfac.KFAC(0.05, damping=0.1, seed=0, recurrent=FORMS, **options)


def trained(**options: Any) -> np.ndarray:
    model = network()
    model.compile(optimizer_of(), "mse", **options)
    losses = fit(model, epochs=3)
    assert losses[-1] < losses[0]
    return np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("reset_after", [False, True])
def test_factors_in_half_precision_are_those_of_single(reset_after: bool, policy: str) -> None:
    factors = []
    for dtype in ("float32", policy):
        keras.utils.set_random_seed(0)
        gru = layers.GRU(UNITS, reset_after=reset_after, dtype=dtype)
        optimizer = tfkfac.KFAC(0.0, seed=0, fisher="exact", recurrent="lggm_symmetric")
        fit(model_of(gru, layers.Dense(1)), optimizer, epochs=1)
        blocks = [b for b in optimizer.layer_collection if isinstance(b, RecurrentBlock)]
        assert {value.dtype.name for b in blocks for value in b.factors.values()} == {"float32"}
        factors.append([value for block in blocks for value in block.factors.values()])
    for single, half in zip(*factors, strict=True):
        assert relative_error(half, single) < 0.05


def test_graph_and_eager_mode_train_alike() -> None:
    np.testing.assert_allclose(trained(run_eagerly=True), trained(), atol=1e-5)


@pytest.mark.slow
def test_compiled_training_is_that_of_the_graph() -> None:
    np.testing.assert_allclose(trained(jit_compile=True), trained(), atol=1e-5)


@pytest.mark.parametrize("recurrent", ["lggm_limit", FORMS])
def test_configuration_tells_the_form(recurrent: Any) -> None:
    config = json.loads(json.dumps(tfkfac.KFAC(recurrent=recurrent).get_config()))
    again = tfkfac.KFAC.from_config(config)
    assert again.recurrent == recurrent
    if isinstance(recurrent, dict):
        assert list(again.recurrent) == list(recurrent)  # the first that matches counts


def test_loaded_model_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = network()
    fit(model, optimizer_of())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.recurrent == FORMS
    labels = [[block.label for block in m.optimizer.layer_collection] for m in (model, loaded)]
    assert labels[0] == labels[1]
    assert len({label for label in labels[0] if "lggm" in label}) == 2
    for each in (model, loaded):
        fit(each, epochs=2)
    for found, expected in zip(
        [*loaded.get_weights(), *loaded.optimizer.variables],
        [*model.get_weights(), *model.optimizer.variables],
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_rebuilt_optimizer_keeps_the_curvature_of_every_part() -> None:
    """Parts of one variable have states of their own."""
    gru = layers.GRU(UNITS, recurrent_dropout=0.2, reset_after=False, seed=0)
    model, optimizer = model_of(gru, layers.Dense(1)), tfkfac.KFAC(0.05, damping=0.1, seed=0)
    optimizer.recurrent = "lggm_symmetric"
    fit(model, optimizer)
    before = {
        block.state_name: [variable.numpy() for variable in block.state]
        for block in optimizer.layer_collection.curvature_blocks
    }
    assert len(before) == 5
    optimizer.rebuild(model)
    for block in optimizer.layer_collection.curvature_blocks:
        for found, expected in zip(block.state, before.pop(block.state_name), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert not before
    fit(model, optimizer, epochs=1)


def test_rebuilt_optimizer_takes_up_a_kernel_that_was_frozen() -> None:
    model, optimizer = network(), optimizer_of()
    cell = model.get_layer("second").cell
    cell.kernel.trainable = False
    with pytest.warns(UserWarning, match="second"):  # its bias
        fit(model, optimizer)
    kept = next(b for b in optimizer.layer_collection if b.layers[-1] is cell)
    state = [variable.numpy() for variable in kept.state]
    cell.kernel.trainable = True
    optimizer.rebuild(model)
    blocks = [b for b in optimizer.layer_collection if b.layers[-1] is cell]
    assert [parts_of(block) for block in blocks] == WHOLE
    for found, expected in zip(blocks[1].state, state, strict=True):
        np.testing.assert_array_equal(found, expected)
    fit(model, optimizer, epochs=1)
