"""One step of KFAC against its equations, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from steps import Arrays, apply, attached, gradients, train

from tfkfac.blocks import CurvatureBlock, KroneckerBlock


def _assert_close(ours: Arrays, expected: Arrays, **tolerances: float) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 1e-6, **tolerances})


def _differ(ours: Arrays, expected: Arrays) -> bool:
    return not all(np.allclose(a, b, atol=1e-4) for a, b in zip(ours, expected, strict=True))


def _directions(model: keras.Model, gradients: Sequence[tf.Tensor]) -> Arrays:
    """F⁻¹g by the blocks' public method."""
    collection = model.optimizer.layer_collection
    of = dict(zip((id(v) for v in model.trainable_variables), gradients, strict=True))
    found = {}
    for block in collection:
        directions = block.precondition([of[id(v)] for v in block.variables])
        found.update(zip((id(v) for v in block.variables), directions, strict=True))
    return [found[id(variable)].numpy() for variable in model.trainable_variables]


def test_a_step_takes_every_block_with_its_own_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ "auto" is another one for each block, and all of them are read at once."""
    told: dict[str, tuple[float, float]] = {}

    def spied(kind: type[CurvatureBlock]) -> Callable[..., list[tf.Tensor]]:
        made = kind.direction

        def direction(
            self: CurvatureBlock, gradients: Sequence[tf.Tensor], damping: tf.Tensor
        ) -> list[tf.Tensor]:
            told[self.name] = float(damping), float(optimizer.damping_of(self))
            return made(self, gradients, damping)

        return direction

    for kind in (CurvatureBlock, KroneckerBlock):
        monkeypatch.setattr(kind, "direction", spied(kind))
    model = keras.Sequential(
        [
            keras.Input((models.FEATURES,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(models.CLASSES),
        ]
    )
    optimizer = models.kfac(damping="auto")
    model.compile(optimizer, models.crossentropy(), run_eagerly=True)
    model.fit(*models.vectors(), batch_size=8, epochs=2, verbose=0)
    assert len({damping for damping, _ in told.values()}) == len(told) == 5
    for damping, own in told.values():
        assert damping == own


@pytest.mark.parametrize("method", ["cholesky", "eigen", "ekfac"])
@pytest.mark.parametrize("kl_clip", [None, 1e-3, 1e3])
def test_step_is_momentum_minus_clipped_natural_gradient(method: str, kl_clip: float) -> None:
    """``δ = μ·d − ν·α·p`` with ``ν = min(1, √(c / (α² gᵀp)))``."""
    α, μ = 0.1, 0.8
    optimizer = models.kfac(
        learning_rate=α, momentum=μ, kl_clip=kl_clip, method=method, inverse_update_every=1
    )
    model = attached(optimizer)
    expected = model.get_weights()
    d = [np.zeros_like(weight) for weight in expected]
    clipped = []
    for _ in range(3):
        g = gradients(model)
        apply(model, g)
        p = _directions(model, g)
        length = α**2 * sum(float(np.sum(a * b)) for a, b in zip(g, p, strict=True))
        ν = 1.0 if kl_clip is None else min(1.0, (kl_clip / length) ** 0.5)
        clipped.append(ν < 1)
        d = [μ * before - ν * α * direction for before, direction in zip(d, p, strict=True)]
        expected = [weight + step for weight, step in zip(expected, d, strict=True)]
        _assert_close(model.get_weights(), expected)
    assert all(clipped) if kl_clip == 1e-3 else not any(clipped)


def test_directions_are_not_gradients() -> None:
    """Guards the test above: the blocks have statistics and precondition by them."""
    model = attached(models.kfac(damping=1e-2))
    g = gradients(model)
    apply(model, g)
    p = _directions(model, g)
    flat_g, flat_p = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (g, p))
    cosine = flat_g @ flat_p / np.linalg.norm(flat_g) / np.linalg.norm(flat_p)
    assert 0 < cosine < 0.99


# --- what Keras' optimizers do too ---------------------------------------------------------


def test_weight_decay_is_decoupled() -> None:
    """Without a gradient it is all that happens, at the rate α·w, and not to what is excluded."""
    optimizer = models.kfac(learning_rate=0.5, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = attached(optimizer)
    for layer in model.layers:
        layer.bias.assign(tf.ones_like(layer.bias))
    before = model.get_weights()
    apply(model, [tf.zeros_like(gradient) for gradient in gradients(model)])
    kernels_only = [weight * (0.95 if weight.ndim == 2 else 1.0) for weight in before]
    _assert_close(model.get_weights(), kernels_only)


def test_weight_decay_is_not_preconditioned() -> None:
    """It adds ``−α·w·θ`` to the step, whatever the curvature, and has no part in the momentum."""
    α, w = 0.1, 0.2
    plain = attached(models.kfac(learning_rate=α))
    decayed = attached(models.kfac(learning_rate=α, weight_decay=w))
    before = plain.get_weights()
    expected = [weight - α * w * old for weight, old in zip(train(plain, 1), before, strict=True)]
    _assert_close(train(decayed, 1), expected)
    for slot, other in zip(plain.optimizer._velocities, decayed.optimizer._velocities, strict=True):
        np.testing.assert_array_equal(slot, other)


CLIPS: dict[str, Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]] = {
    "clipnorm": lambda gradients: [tf.clip_by_norm(g, 0.05) for g in gradients],
    "clipvalue": lambda gradients: [tf.clip_by_value(g, -0.05, 0.05) for g in gradients],
    "global_clipnorm": lambda gradients: tf.clip_by_global_norm(gradients, 0.05)[0],
}


@pytest.mark.parametrize("name", CLIPS)
def test_gradients_are_clipped_before_they_are_preconditioned(name: str) -> None:
    ours, by_hand, free = (
        attached(models.kfac(**arguments)) for arguments in ({name: 0.05}, {}, {})
    )
    for _ in range(2):
        apply(by_hand, CLIPS[name](gradients(by_hand)))
    weights = train(ours, 2)
    _assert_close(weights, by_hand.get_weights())
    assert _differ(weights, train(free, 2))


@pytest.mark.parametrize("frequency", [None, 2])
def test_moving_average_of_weights(frequency: int | None) -> None:
    """Keras' rule: the first weights, then ``m·average + (1 − m)·weights``."""
    arguments = {"use_ema": True, "ema_momentum": 0.6, "ema_overwrite_frequency": frequency}
    model = attached(models.kfac(**arguments))
    reference = attached(models.kfac())
    average: Arrays = []
    for step in range(1, 4):
        train(model, 1)
        weights = train(reference, 1)
        average = [0.6 * a + 0.4 * w for a, w in zip(average or weights, weights, strict=True)]
        overwritten = frequency is not None and step % frequency == 0
        if overwritten:
            reference.set_weights(average)
        _assert_close(model.optimizer._model_variables_moving_average, average)
        _assert_close(model.get_weights(), average if overwritten else weights)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    _assert_close(model.get_weights(), average)


def test_loss_scale_is_undone() -> None:
    scaled, plain = (attached(models.kfac(loss_scale_factor=f)) for f in (64.0, None))
    for _ in range(2):
        apply(scaled, [64.0 * gradient for gradient in gradients(scaled)])
    _assert_close(scaled.get_weights(), train(plain, 2))


def test_layer_that_is_frozen_later_stays_as_it_is() -> None:
    model = attached(models.kfac())
    train(model, 1)
    model.get_layer("hidden").trainable = False
    before = model.get_weights()
    after = train(model, 1)
    _assert_close(after[:2], before[:2], atol=0)
    assert _differ(after[2:], before[2:])


def test_frozen_bias_counts_as_one_without_gradient() -> None:
    frozen, reference = attached(models.kfac()), attached(models.kfac())
    for model in (frozen, reference):
        train(model, 1)
    bias = frozen.get_layer("hidden").bias
    bias.trainable = False
    before = bias.numpy()
    kernels = [weight for weight in train(frozen, 1) if weight.ndim == 2]
    np.testing.assert_array_equal(bias, before)
    found = gradients(reference)
    apply(reference, [found[0], tf.zeros_like(found[1]), *found[2:]])
    _assert_close(kernels, [weight for weight in reference.get_weights() if weight.ndim == 2])


# --- units ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_sum_over_the_batch_is_the_same_as_its_mean(fisher: str) -> None:
    def trained(reduction: str) -> Arrays:
        keras.utils.set_random_seed(0)
        model = models.sequential()
        optimizer = models.kfac(fisher=fisher, kl_clip=0.01)
        model.compile(optimizer, models.crossentropy(reduction=reduction), run_eagerly=True)
        return train(model)

    _assert_close(trained("sum"), trained("sum_over_batch_size"), atol=1e-5)
