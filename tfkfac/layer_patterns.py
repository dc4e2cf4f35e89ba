"""Regular expressions of layers' paths: whom an argument of the user's means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from tfkfac.chain_inverses import RECURRENT
from tfkfac.hyperparameters import require_choice, require_patterns


def require_recurrent(recurrent: Any) -> str | dict[str, str]:
    """The argument `recurrent`, checked.

    Raises:
        ValueError: It is neither a form nor a dict of regular expressions → form.
    """
    if isinstance(recurrent, Mapping):
        require_patterns("the keys of recurrent", list(recurrent))
        for pattern, form in recurrent.items():
            require_choice(f"recurrent[{pattern!r}]", form, RECURRENT)
        return dict(recurrent)
    if not isinstance(recurrent, str):
        raise ValueError(
            "Argument `recurrent` must be one of "
            f"{', '.join(map(repr, RECURRENT))}, or a dict of regular expressions of layers' paths "
            f"→ one of them; got recurrent={recurrent!r}."
        )
    require_choice("recurrent", recurrent, RECURRENT)
    return recurrent


def matching(argument: str, layers: Sequence[Any], patterns: Iterable[str]) -> set[int]:
    """ids of the layers whose path is matched by one of the patterns."""
    matched: set[int] = set()
    for pattern in patterns:
        found = {id(layer) for layer in layers if re.search(pattern, layer.path or layer.name)}
        if not found:
            paths = ", ".join(layer.path or layer.name for layer in layers)
            raise ValueError(
                f"Argument `{argument}`: pattern {pattern!r} matches no layer. The layers' "
                f"paths are: {paths}."
            )
        matched |= found
    return matched


def recurrent_forms(layers: Sequence[Any], recurrent: str | Mapping[str, str]) -> dict[int, str]:
    """id of a recurrent layer → the form of its curvature; the first matching pattern counts."""
    layers = [layer for layer in layers if isinstance(layer, keras.layers.RNN)]
    forms = {id(layer): "independent" for layer in layers}
    patterns = recurrent if isinstance(recurrent, Mapping) else {"": recurrent}
    for pattern, form in reversed(list(patterns.items())):
        matched = matching("recurrent", layers, [pattern] if layers or pattern else [])
        forms.update(dict.fromkeys(matched, form))
    return forms
