"""Whole architectures train; ``python -m benchmarks.coverage`` runs all there are.

The smallest model of each family of ``keras.applications`` is here. Those that take long are
marked slow.
"""

from __future__ import annotations

import pytest

from benchmarks.architectures import applications, others
from benchmarks.coverage import train
from tfkfac.layer_collection import MAX_FACTOR_SIZE

ENTRIES = {entry.name: entry for entry in (*others(), *applications())}
QUICK = [entry.name for entry in others()] + ["MobileNetV3Small"]
SLOW = [
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
]


LARGEST = 2048
"""Inverses of wider factors would take minutes; benchmarks/coverage.py trains with whole ones."""


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
@pytest.mark.filterwarnings("ignore:tfkfac knows no Kronecker structure")
def test_architecture_trains_and_is_covered(name: str) -> None:
    largest = MAX_FACTOR_SIZE if name == "VGG16" else LARGEST
    result = train(ENTRIES[name], max_factor_size=largest)
    assert result.covered >= 0.99
    assert result.before is not None and result.after is not None
    assert result.after < result.before


def test_every_family_has_its_smallest_model_here() -> None:
    """But InceptionResNetV2 and ConvNeXt, whose smallest are large."""
    left_to_the_script = {"InceptionResNetV2", "ConvNeXt"}
    families = {entry.family for entry in applications()} - left_to_the_script
    assert {ENTRIES[name].family for name in (*QUICK, *SLOW)} >= families
