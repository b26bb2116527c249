"""Rotary position embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_floating, wide
from m2ml.ops.inputs import normal
from m2ml.ops.rope_frequencies import rope_frequencies

Array = jax.Array


@op(shapes="x[*b heads dim], positions[*b], inverse_frequencies[f] -> [*b heads dim]")
def rope(
    x: Array, positions: Array, inverse_frequencies: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Array:
    """Rotate pairs of dimensions by ``positions * inverse_frequencies`` radians (Su et al., 2021).

    ``x`` is ``[*b, heads, dim]``, usually ``[batch, length, heads, dim]``; ``positions`` ``[*b]``, integers or floats,
    one per token, so that each row may start anywhere (``offsets[:, None] + jnp.arange(length)``);
    ``inverse_frequencies`` ``[f]`` come from `rope_frequencies`. The first ``2 f`` dimensions are rotated, the others
    passed on. Pairs are ``(i, i + f)``, as in LLaMA, GPT-NeoX and MLX's default, or ``(2 i, 2 i + 1)`` when
    ``interleaved``, as in GPT-J and MLX's ``traditional``. ``magnitude`` multiplies what is rotated: yarn's attention
    factor. The result has ``x``'s shape and dtype; angles, sines and products are float32, rounded once, so that an
    angle of ``a`` radians is off by up to ``a * 2**-24``. Raises ValueError where ``2 f`` exceeds ``dim``, TypeError
    where ``x`` or the frequencies are not floating.
    """
    types(x, positions, inverse_frequencies)
    count = inverse_frequencies.shape[0]
    angles = wide(positions)[..., None, None] * wide(inverse_frequencies)
    cos, sin = jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude
    first, second = _pairs(wide(x), count, interleaved)
    turned = _together(first * cos - second * sin, second * cos + first * sin, interleaved)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * count :]], axis=-1)


@rope.give_types
def types(x: Any, positions: Any, inverse_frequencies: Any, **static: Any) -> jax.ShapeDtypeStruct:
    require_floating("rope", x=x, inverse_frequencies=inverse_frequencies)
    count, dim = inverse_frequencies.shape[0], x.shape[-1]
    require("rope", 2 * count <= dim, f"{count} inverse_frequencies rotate {2 * count} dimensions but x has {dim}")
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _pairs(x: Array, count: int, interleaved: bool) -> tuple[Array, Array]:
    """The first and the second element of each of ``count`` pairs, ``[..., count]``."""
    turned = x[..., : 2 * count]
    return (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :count], turned[..., count:])


def _together(first: Array, second: Array, interleaved: bool) -> Array:
    """The inverse of `_pairs`."""
    if not interleaved:
        return jnp.concatenate([first, second], axis=-1)
    return jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], 2 * first.shape[-1])


@rope.defbackward
def rope_backward(
    args: Sequence[Any], outputs: Any, cotangents: Sequence[Any], *, interleaved: bool, magnitude: float
) -> tuple[Any, ...]:
    """Rotate the cotangent back; an angle moves a pair ``(a, b)`` by ``(-b, a)``."""
    x, positions, inverse_frequencies = args
    (given,), count = cotangents, inverse_frequencies.shape[0]
    static = {"interleaved": interleaved, "magnitude": magnitude}
    turned_back = rope(given, positions, -inverse_frequencies, **static)
    a, b = _pairs(rope.definition(wide(x), positions, inverse_frequencies, **static), count, interleaved)
    da, db = _pairs(wide(given), count, interleaved)
    by_angle = jnp.sum(a * db - b * da, axis=-2)
    by_position = jnp.sum(by_angle * wide(inverse_frequencies), axis=-1)
    by_frequency = jnp.sum(by_angle * wide(positions)[..., None], axis=tuple(range(positions.ndim)))
    return turned_back, by_position if jnp.issubdtype(positions.dtype, jnp.floating) else None, by_frequency


@rope.give_samples
def samples() -> Iterator[Sample]:
    plain = [("rows of offsets", (2, 3), 2, 8, 8), ("one position", (), 1, 2, 2), ("no heads", (3,), 0, 4, 4)]
    plain += [("no tokens", (0,), 2, 4, 4), ("odd dim", (5,), 3, 7, 6), ("nothing rotated", (2,), 1, 3, 0)]
    plain += [("partial", (2, 3), 2, 10, 4), ("wide heads", (4,), 1, 66, 64), ("three axes", (2, 1, 2), 1, 4, 4)]
    for i, (name, shape, heads, dim, rotated) in enumerate(plain):
        positions = np.random.default_rng(i).integers(0, 50, shape, np.int32)
        inverse = rope_frequencies(rotated).inverse if rotated else np.zeros(0, np.float32)
        for interleaved in (False, True):
            static = {"interleaved": interleaved, "magnitude": 1.0 if i % 2 else 1.25}
            yield Sample(f"{name}, {interleaved=}", (normal((*shape, heads, dim), i), positions, inverse), static)
    far, inverse = np.array([0, 1, 4095, 131071], np.int32), rope_frequencies(6).inverse
    yield Sample("far positions", (normal((4, 2, 6), 20), far, inverse))
    yield Sample("positions between", (normal((4, 2, 6), 21), np.linspace(0, 9, 4, dtype=np.float32), inverse))
    yield Sample("negative positions", (normal((2, 1, 6), 22, 1e6), np.array([-3, -1], np.int32), inverse))


@rope.law
def lengths_of_heads_are_kept(op: Any, x: Any, positions: Any, inverse: Any, **static: Any) -> None:
    y = np.asarray(op(x, positions, inverse, **{**static, "magnitude": 1.0}), float)
    before, after = (np.sum(np.square(v, dtype=float), -1) for v in (x, y))
    np.testing.assert_allclose(after, before, rtol=20 * float(jnp.finfo(x.dtype).eps))


@rope.law
def products_depend_on_distances_alone(op: Any, x: Any, positions: Any, inverse: Any, **static: Any) -> None:
    """<rope(x, p), rope(x, 0)> = <rope(x, p + 5), rope(x, 5)>; small positions, whose angles are exact enough."""
    if x.dtype == np.float32 and x.size and np.max(np.abs(positions)) < 100:
        zero = np.zeros_like(positions)
        near, far = (
            np.sum(np.multiply(op(x, positions + s, inverse, **static), op(x, zero + s, inverse, **static)), -1)
            for s in (zero, zero + 5)
        )
        np.testing.assert_allclose(near, far, atol=1e-4 * np.square(x).sum(-1).max())


@rope.law
def worked_numbers(op: Any, *args: Any, **static: Any) -> None:
    """A quarter turn, forward: (1, 2) becomes (-2, 1); the third pair of dimensions stays."""
    x, quarter = np.arange(1, 7, dtype=np.float32)[None, None], np.array([np.pi / 2, np.pi / 2], np.float32)
    one = np.ones(1, np.int32)
    np.testing.assert_allclose(op(x, one, quarter)[0, 0], [-3, -4, 1, 2, 5, 6], atol=1e-6)
    np.testing.assert_allclose(op(x, one, quarter, interleaved=True)[0, 0], [-2, 1, -4, 3, 5, 6], atol=1e-6)
    np.testing.assert_allclose(op(x, 2 * one, quarter, magnitude=2.0)[0, 0], [-2, -4, -6, -8, 5, 6], atol=1e-5)


@rope.give_main
def main_sizes() -> Iterator[Sample]:
    positions, inverse = np.arange(128, dtype=np.int32), rope_frequencies(128).inverse
    yield Sample("128 tokens, 16 heads of 128", (normal((128, 16, 128)), positions, inverse))


rope.give_cost(
    lambda x, positions, inverse_frequencies, **static: (3 * x.size, 2 * x.size * x.dtype.itemsize + 4 * positions.size)
)


@rope.fault
def pairs_of_the_other_kind(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    return rope.definition(x, p, inverse, interleaved=not interleaved, magnitude=magnitude)


@rope.fault
def turned_backwards(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    return rope.definition(x, p, -inverse, interleaved=interleaved, magnitude=magnitude)


@rope.fault
def rows_start_at_zero(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    counted = jnp.broadcast_to(jnp.arange(p.shape[-1]), p.shape) if p.ndim else p * 0
    return rope.definition(x, counted, inverse, interleaved=interleaved, magnitude=magnitude)


@rope.fault
def one_position_late(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    return rope.definition(x, p + 1, inverse, interleaved=interleaved, magnitude=magnitude)


@rope.fault
def magnitude_ignored(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    return rope.definition(x, p, inverse, interleaved=interleaved)


@rope.fault
def magnitude_on_every_dimension(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    return rope.definition(x, p, inverse, interleaved=interleaved) * magnitude


@rope.fault
def first_head_alone(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    turned = rope.definition(x, p, inverse, interleaved=interleaved, magnitude=magnitude)
    return jnp.concatenate([turned[..., :1, :], x[..., 1:, :]], axis=-2)


@rope.fault
def angles_in_half_precision(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    rounded = (inverse.astype(jnp.bfloat16)).astype(inverse.dtype)
    return rope.definition(x, p, rounded, interleaved=interleaved, magnitude=magnitude)


@rope.fault
def shrinking(x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0) -> Any:
    return rope.definition(x, p, inverse, interleaved=interleaved, magnitude=magnitude * 0.999)


@rope.fault
def table_of_eight_positions(
    x: Array, p: Array, inverse: Array, /, *, interleaved: bool = False, magnitude: float = 1.0
) -> Any:
    return rope.definition(x, jnp.clip(p, 0, 7), inverse, interleaved=interleaved, magnitude=magnitude)
