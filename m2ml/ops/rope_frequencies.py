"""The frequencies of rotary position embeddings, scaled as checkpoints ask for it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from m2ml.ops.arguments import require_positive

Array = np.ndarray[Any, Any]


class RopeFrequencies(NamedTuple):
    """What `m2ml.ops.rope` takes: ``inverse`` frequencies, float32[dim / 2] radians per position, and ``magnitude``."""

    inverse: Array
    magnitude: float


def rope_frequencies(dim: int, base: float = 10000.0, scaling: Mapping[str, Any] | None = None) -> RopeFrequencies:
    """``base ** (-2 i / dim)`` for i in [0, dim / 2) (Su et al., 2021), scaled for longer contexts.

    ``dim`` is the number of rotated dimensions and even. ``scaling`` is the ``rope_scaling`` of a Hugging Face
    configuration: ``rope_type`` (or ``type``) is ``default``, ``linear``, ``llama3`` (Dubey et al., 2024) or ``yarn``
    (Peng et al., 2023), whose attention factor is the ``magnitude``; the other keys are those of the configuration.
    They are worked out in float64 and rounded once. Raises ValueError for an odd ``dim``, another type, or a key that
    the type needs and ``scaling`` lacks.

    >>> rope_frequencies(4, 100.0).inverse
    array([1. , 0.1], dtype=float32)
    """
    if not isinstance(dim, numbers.Integral) or dim <= 0 or dim % 2:
        raise ValueError(f"rope_frequencies: dim is {dim}; it must be even and positive")
    require_positive("rope_frequencies", base=base)
    settings = dict(scaling or {})
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in _SCALED:
        raise ValueError(f"rope_frequencies: rope_type is {kind!r}; known are {', '.join(_SCALED)}")
    given = {name: settings[name] for name in _POSITIVE if settings.get(name) is not None}
    require_positive("rope_frequencies", **given)
    inverse = float(base) ** (-np.arange(0, dim, 2) / dim)
    try:
        scaled, magnitude = _SCALED[kind](inverse, float(base), settings)
    except KeyError as error:
        raise ValueError(f"rope_frequencies: rope_type {kind!r} needs {error.args[0]!r} in scaling") from None
    return RopeFrequencies(scaled.astype(np.float32), magnitude)


#: Numbers of ``scaling`` that make no sense unless they are positive.
_POSITIVE = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")


def _default(inverse: Array, base: float, settings: Mapping[str, Any]) -> tuple[Array, float]:
    return inverse, 1.0


def _linear(inverse: Array, base: float, settings: Mapping[str, Any]) -> tuple[Array, float]:
    return inverse / settings["factor"], 1.0


def _llama3(inverse: Array, base: float, settings: Mapping[str, Any]) -> tuple[Array, float]:
    """Long waves are stretched by ``factor``, short ones kept, those between blended by their turns in the context."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * inverse / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return inverse * (kept + (1 - kept) / settings["factor"]), 1.0


def _yarn(inverse: Array, base: float, settings: Mapping[str, Any]) -> tuple[Array, float]:
    """As `_llama3`, but blended along the dimensions, between those that turn ``beta_fast`` and ``beta_slow`` times."""
    half, context = len(inverse), settings["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return half * math.log(context / (turns * 2 * math.pi)) / math.log(base)

    low, high = dimension(settings.get("beta_fast") or 32), dimension(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    stretched = np.clip((np.arange(half) - low) / (high - low if high != low else 0.001), 0, 1)
    return inverse * (1 - stretched + stretched / settings["factor"]), _attention_factor(settings)


def _attention_factor(settings: Mapping[str, Any]) -> float:
    given = settings.get("attention_factor")
    if given is not None:
        return float(given)

    def factor(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1 if settings["factor"] > 1 else 1.0

    weight, of_all = settings.get("mscale"), settings.get("mscale_all_dim")
    return factor(weight) / factor(of_all) if weight and of_all else factor(1.0)


_SCALED: Mapping[str, Callable[[Array, float, Mapping[str, Any]], tuple[Array, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
