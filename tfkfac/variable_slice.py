"""Parts of a variable, for layers that keep several matrices in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class VariableSlice:
    """A range of a trainable variable, which blocks take for a variable.

    Attributes:
        variable: The whole.
        index: A slice for each axis of it; an integer takes the axis away.
        part: What the part is called.
    """

    variable: Any
    index: tuple[slice | int, ...]
    part: str

    @property
    def name(self) -> str:
        """Of the variable and the part."""
        return f"{self.variable.name}_{self.part}"

    @property
    def path(self) -> str:
        """Unique among the parts of a model."""
        return f"{self.variable.path}_{self.part}"

    @property
    def dtype(self) -> str:
        """Of the variable."""
        return str(self.variable.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""
        pairs = zip(self.index, self.variable.shape, strict=True)
        return tuple(
            len(range(*each.indices(size))) for each, size in pairs if isinstance(each, slice)
        )

    def of(self, whole: tf.Tensor) -> tf.Tensor:
        """The part of a tensor of the variable's shape."""
        return whole[self.index]

    def into_zeros(self, part: tf.Tensor) -> tf.Tensor:
        """A tensor of the variable's shape that is zero outside the part."""
        paddings, sizes = [], []
        for each, size in zip(self.index, self.variable.shape, strict=True):
            start, stop, _ = (each if isinstance(each, slice) else slice(each, each + 1)).indices(
                size
            )
            paddings.append([start, size - stop])
            sizes.append(stop - start)
        return tf.pad(tf.reshape(part, sizes), paddings)


def whole_of(variable: Any) -> Any:
    """The variable itself, or the one that it is a part of."""
    return variable.variable if isinstance(variable, VariableSlice) else variable


def take(variable: Any, given: Mapping[int, Any]) -> Any:
    """What is given for a variable or a part of it.

    Args:
        variable: A variable or a part of one.
        given: id of a whole variable → tensor.
    """
    value = given[id(whole_of(variable))]
    return variable.of(value) if isinstance(variable, VariableSlice) else value


def put(variables: Sequence[Any], values: Sequence[Any]) -> dict[int, Any]:
    """The reverse of `take`: id of each whole variable → tensor; parts of one are put together."""
    wholes: dict[int, Any] = {}
    for variable, value in zip(variables, values, strict=True):
        key = id(whole_of(variable))
        if not isinstance(variable, VariableSlice):
            wholes[key] = value
        else:
            padded = variable.into_zeros(value)
            wholes[key] = wholes[key] + padded if key in wholes else padded
    return wholes
