"""Draw the next token from logits, the same one on every backend.

Floating-point functions differ between backends in their last bits, and a token that hangs on such a bit would
differ too. Two operations are rounded here, a difference and a product, each once and everywhere alike; what follows
is integer arithmetic: logarithms in units of 2**-20 octaves, weights in units of 2**-26 of the likeliest token's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2ml.op import Sample, op
from m2ml.ops.arguments import require, require_floating, require_integers
from m2ml.ops.inputs import normal

Array = jax.Array

_NAME = "sample_token"

#: An octave, a factor of two between probabilities, has 2**OCTAVE units; none of a row is this far below its top.
OCTAVE, _FAR = 20, 2**30

#: Sums of weights have two limbs, the lower of this many bits; the upper ones of so many tokens fit into 32.
_LIMB, _MOST_TOKENS = 13, 500_000

#: 2**-f in units of 2**-31, for the upper ten bits of a fraction f of an octave and for the lower ten.
_HALF = 2 ** (OCTAVE // 2)
COARSE = np.array([round(2 ** (31 - i / _HALF)) for i in range(_HALF)], np.uint32)
FINE = np.array([round(2 ** (31 - i / _HALF**2)) for i in range(_HALF)], np.uint32)


@op(shapes="logits[*b v], bits?[*b], tokens?[*b n] -> [*b]")
def sample_token(
    logits: Array,
    bits: Array | None = None,
    tokens: Array | None = None,
    /,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Array:
    """Tokens, int32 ``[*b]``, drawn from ``softmax(logits / temperature)`` by uniform random ``bits``.

    ``logits`` are ``[*b, vocabulary]``; ``bits`` uint32 ``[*b]``, as `jax.random.bits` gives them; ``tokens``
    ``[*b, n]`` are those that came before, negative ones being padding. In this order, as in Hugging Face's
    ``generate``:

    - ``repetition_penalty``: a positive logit of one of ``tokens`` is divided by it, a negative one multiplied, once;
    - ``temperature``: 0 takes the largest logit, the first of equals, and needs no bits;
    - ``top_k``: the k likeliest tokens stay, of equals those of lower index;
    - ``top_p``: of these the likeliest stay whose predecessors add up to less than ``top_p`` of all;
    - ``min_p``: tokens stay that are at least ``min_p`` times as likely as the likeliest.

    The token is the first, by index, at which the sum of what stays exceeds ``bits / 2**32`` of the whole. Equal bits
    give equal tokens on every backend, though not on the reference, which does not round. Tokens below 2**-27 of the
    likeliest are never drawn; those within 2**-20 octaves of each other may count as equals. A row whose largest logit
    is not finite gives -1. There is no gradient. Raises ValueError for illegal static arguments, missing bits or
    tokens, and more than 500,000 tokens; TypeError for wrong dtypes.
    """
    require_floating(_NAME, logits=logits)
    require_integers(_NAME, bits=bits, tokens=tokens)
    _check_static(temperature, top_k, top_p, min_p, repetition_penalty)
    _check_given(logits, bits, tokens, temperature, repetition_penalty)
    exact = logits.astype(jnp.float32)
    top = jnp.max(exact, axis=-1, keepdims=True)
    numbers = ~jnp.any(jnp.isnan(exact), axis=-1, keepdims=True)  # XLA's maximum of a long row may leave NaN out
    usable = (exact > -jnp.inf) & (top < jnp.inf) & numbers
    seen = jnp.zeros(logits.shape, bool)
    if tokens is not None and repetition_penalty != 1:
        seen = _seen(tokens, logits.shape)
    if temperature == 0:
        found = jnp.argmax(_penalised(exact, seen, repetition_penalty), axis=-1)
        return jnp.where(jnp.any(usable, axis=-1), found, -1).astype(jnp.int32)
    assert bits is not None
    below = _octaves_below_top(exact, top, usable, seen, temperature, repetition_penalty)
    if (top_k or logits.shape[-1]) < logits.shape[-1] or top_p < 1 or min_p > 0:
        below = jnp.where(_kept(below, top_k, top_p, min_p), below, _FAR)
    return _drawn(_weights(below), bits)


def _check_static(temperature: float, top_k: int | None, top_p: float, min_p: float, penalty: float) -> None:
    warm = temperature == 0 or 1e-6 <= temperature < math.inf
    require(_NAME, warm, f"temperature is {temperature}; it must be 0 or a finite number from 1e-6 on")
    require(_NAME, top_k is None or top_k >= 1, f"top_k is {top_k}; it must be at least 1, or None for all")
    require(_NAME, 0 < top_p <= 1, f"top_p is {top_p}; it must be above 0 and at most 1")
    require(_NAME, 0 <= min_p <= 1, f"min_p is {min_p}; it must be from 0 to 1")
    require(_NAME, 0 < penalty < math.inf, f"repetition_penalty is {penalty}; it must be a positive number")


def _check_given(logits: Array, bits: Any, tokens: Any, temperature: float, penalty: float) -> None:
    size = logits.shape[-1]
    require(_NAME, 0 < size <= _MOST_TOKENS, f"logits are of {size} tokens; it takes 1 to {_MOST_TOKENS}")
    require(_NAME, bits is not None or temperature == 0, "bits are missing; only temperature 0 needs none")
    require(_NAME, tokens is not None or penalty == 1, "tokens are missing; repetition_penalty needs those before")
    if bits is not None and bits.dtype != jnp.uint32:
        raise TypeError(f"{_NAME}: bits are {bits.dtype.name}; it takes uint32")


def _seen(tokens: Array, shape: tuple[int, ...]) -> Array:
    """Which tokens of the vocabulary are among ``tokens``."""
    size, n = shape[-1], tokens.shape[-1]
    rows = tokens.reshape(math.prod(shape[:-1]), n)
    places = jnp.where(rows < 0, size, rows)  # beyond the end, where they are dropped
    found = jnp.zeros((len(rows), size), bool).at[jnp.arange(len(rows))[:, None], places].set(True, mode="drop")
    return found.reshape(shape)


def _penalised(logits: Array, seen: Array, penalty: float) -> Array:
    return jnp.where(seen, logits * jnp.where(logits > 0, np.float32(1 / penalty), np.float32(penalty)), logits)


def _octaves_below_top(
    logits: Array, top: Array, usable: Array, seen: Array, temperature: float, penalty: float
) -> Array:
    """How much less likely each token is than the likeliest, int32 in units of 2**-20 octaves, `_FAR` where unusable.

    The penalty is added as an integer: were it a product in the difference, some backends would fuse and round once.
    """
    octave = 2**OCTAVE / math.log(2) / temperature

    def units(x: Array) -> Array:
        return jnp.where(usable, jnp.clip(x, -_FAR // 2, _FAR // 2), 0).astype(jnp.int32)

    likely = units((logits - top) * np.float32(octave))
    if penalty != 1:
        by = jnp.where(logits > 0, np.float32((1 / penalty - 1) * octave), np.float32((penalty - 1) * octave))
        likely += jnp.where(seen, units(logits * by), 0)
    likeliest = jnp.max(jnp.where(usable, likely, -2 * _FAR), axis=-1, keepdims=True)
    return jnp.where(usable, jnp.minimum(likeliest - likely, _FAR), _FAR)


def _product_high(a: Array, b: Array) -> Array:
    """The upper 32 bits of the product of two uint32."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    one, other = a_low * b_high, a_high * b_low
    middle = (a_low * b_low >> 16) + (one & 0xFFFF) + (other & 0xFFFF)
    return a_high * b_high + (one >> 16) + (other >> 16) + (middle >> 16)


def _weights(below: Array) -> Array:
    """``2**-below`` in units of 2**-26, rounded to nearest: uint32."""
    coarse, fine = (below >> OCTAVE // 2) & (_HALF - 1), below & (_HALF - 1)
    power = _product_high(_entry(COARSE, coarse), _entry(FINE, fine))
    return ((power >> 3 >> jnp.minimum(below >> OCTAVE, 31).astype(jnp.uint32)) + 1) >> 1


def _entry(table: np.ndarray[Any, Any], index: Array) -> Array:
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def _sums(weights: Array) -> tuple[Array, Array]:
    """Running sums along the last axis, as an upper and a lower limb."""
    low = jnp.cumsum(weights & (2**_LIMB - 1), axis=-1, dtype=jnp.uint32)
    high = jnp.cumsum(weights >> _LIMB, axis=-1, dtype=jnp.uint32) + (low >> _LIMB)
    return high, low & (2**_LIMB - 1)


def _kept(below: Array, top_k: int | None, top_p: float, min_p: float) -> Array:
    """Which tokens stay: always the first few in the order of their probability and then of their index."""
    size = below.shape[-1]
    index = jax.lax.broadcasted_iota(jnp.int32, below.shape, below.ndim - 1)
    ordered, order = jax.lax.sort((below, index), num_keys=1, is_stable=True)
    most = min(top_k or size, size)
    count = jnp.full((*below.shape[:-1], 1), most, jnp.int32)
    if top_p < 1:
        high, low = _sums(_weights(ordered))
        sums = high.astype(jnp.float32) * 2**_LIMB + low.astype(jnp.float32)
        before = jnp.concatenate([jnp.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
        needed = before < np.float32(top_p) * sums[..., most - 1 : most]
        count = jnp.minimum(count, jnp.sum(needed, axis=-1, keepdims=True, dtype=jnp.int32))
    if min_p > 0:
        likely = ordered <= math.floor(-math.log2(min_p) * 2**OCTAVE)
        count = jnp.minimum(count, jnp.sum(likely, axis=-1, keepdims=True, dtype=jnp.int32))
    last = jnp.maximum(count - 1, 0)
    limit, place = (jnp.take_along_axis(x, last, axis=-1) for x in (ordered, order))
    return (below < limit) | ((below == limit) & (index <= place))


def _drawn(weights: Array, bits: Array) -> Array:
    """The first index at which the running sum exceeds ``bits / 2**32`` of the whole; -1 where the whole is 0."""
    high, low = _sums(weights)
    bits, all_high, all_low = bits[..., None], high[..., -1:], low[..., -1:]
    product, part = bits * all_high, bits * all_low
    lower = (product << _LIMB) + part
    carried = (product >> (32 - _LIMB)) + _product_high(bits, all_low) + (lower < part).astype(jnp.uint32)
    share_high = _product_high(bits, all_high) + (carried >> _LIMB)
    share_low = carried & (2**_LIMB - 1)
    passed = (high < share_high) | ((high == share_high) & (low <= share_low))
    token = jnp.sum(passed, axis=-1, dtype=jnp.int32)
    return jnp.where(token < weights.shape[-1], token, -1)


_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.5},
    {"temperature": 0.0},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.3},
    {"repetition_penalty": 3.0},
    {"repetition_penalty": 0.5, "temperature": 2.0},
    {"repetition_penalty": 2.0, "temperature": 0.0},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.6, "min_p": 0.05, "repetition_penalty": 1.3},
    {"top_k": 2, "top_p": 0.55},
)


def _bits(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)


@sample_token.give_samples
def samples() -> Iterator[Sample]:
    for i, static in enumerate(_SETTINGS):
        shape = (2, 3, 33) if i % 3 == 2 else (7, 5)
        tokens = np.random.default_rng(i).integers(-1, shape[-1], (*shape[:-1], 4), np.int32)
        yield Sample(f"{shape}, {static}", (normal(shape, i, 3.0), _bits(shape[:-1], i), tokens), static)
    yield Sample("257 tokens", (normal((257,), 1), _bits((), 1), None), {"top_p": 0.9})
    yield Sample("one token", (normal((9, 1), 2), _bits((9,), 2), None), {"top_k": 5})
    yield Sample("no rows", (normal((0, 5)), _bits((0,), 3), None))
    yield Sample("far apart", (normal((8, 9), 4, 1e6), _bits((8,), 4), None))
    yield Sample("close together", (normal((8, 9), 5, 1e-6), _bits((8,), 5), None))
    masked = np.where(normal((8, 9), 6) > 0, normal((8, 9), 7), np.float32(-np.inf))
    masked[0] = -np.inf
    yield Sample("masked", (masked, _bits((8,), 6), None), {"top_p": 0.8})


def _frequencies(op: Any, logits: Any, tokens: Any = None, **static: Any) -> Any:
    """How often each token comes of bits evenly spread over all there are."""
    times = 256
    bits = (np.arange(times, dtype=np.uint64) * 2**32 // times).astype(np.uint32)
    given = None if tokens is None else np.broadcast_to(np.array(tokens, np.int32), (times, len(tokens)))
    many = np.broadcast_to(np.array(logits, np.float32), (times, len(logits)))
    return np.bincount(np.asarray(op(many, bits, given, **static)), minlength=len(logits)) / times


@sample_token.law
def tokens_come_as_often_as_they_are_likely(op: Any, logits: Any, *args: Any, **static: Any) -> None:
    """Independent of the sample, so once is enough; likewise below."""
    if logits.shape == (7, 5) and not static:
        given = np.array([0.5, -1.0, 2.0, 0.0, 1.0])
        likely = np.exp(given / 0.7) / np.exp(given / 0.7).sum()
        np.testing.assert_allclose(_frequencies(op, given, temperature=0.7), likely, atol=1 / 256)


@sample_token.law
def tokens_are_cut_where_the_docstring_says(op: Any, logits: Any, *args: Any, **static: Any) -> None:
    """Of tokens of 1/2, 1/4, 1/8, 1/16 and 1/16."""
    if logits.shape != (7, 5) or static:
        return
    given = np.log([1 / 8, 1 / 2, 1 / 16, 1 / 4, 1 / 16])
    for settings, expected in (
        ({"top_k": 4}, [2 / 15, 8 / 15, 1 / 15, 4 / 15, 0]),
        ({"top_p": 0.5}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3, 0]),
        ({"min_p": 0.24}, [1 / 7, 4 / 7, 0, 2 / 7, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0, 0]),
        ({"repetition_penalty": 2.0, "tokens": [1, 1, -1]}, [1 / 6, 1 / 3, 1 / 12, 1 / 3, 1 / 12]),
    ):
        np.testing.assert_allclose(_frequencies(op, given, **settings), expected, atol=1 / 64)


@sample_token.law
def the_coldest_is_the_largest(op: Any, logits: Any, *args: Any, **static: Any) -> None:
    best = np.argmax(logits.astype(float), -1)
    best = np.where(np.isfinite(np.max(logits.astype(float), -1)), best, -1)
    np.testing.assert_array_equal(op(logits, None, None, temperature=0.0), best)
    alone = np.asarray(op(logits, np.full(best.shape, 2**32 - 1, np.uint32), None, top_k=1))
    np.testing.assert_array_equal(alone < 0, best < 0)
    chosen, largest = (np.take_along_axis(logits.astype(float), x[..., None].clip(0), -1) for x in (alone, best))
    known = best[..., None] >= 0
    assert np.all(chosen[known] >= largest[known] - 2 ** (1 - OCTAVE) * math.log(2))  # nearer ones are equally likely


@sample_token.give_main
def main_sizes() -> Iterator[Sample]:
    yield Sample("a vocabulary of 32000", (normal((1, 32000), 8, 3.0), _bits((1,), 8), None))
    settings = {"temperature": 0.7, "top_k": 50, "top_p": 0.9}
    yield Sample("49152, top_k and top_p", (normal((1, 49152), 8, 3.0), _bits((1,), 8), None), settings)


sample_token.give_cost(lambda logits, *rest, **static: (200 * logits.size, logits.size * logits.dtype.itemsize))


@sample_token.fault
def temperature_ignored(*args: Any, temperature: float, **static: Any) -> Any:
    return sample_token.definition(*args, temperature=float(temperature > 0), **static)


@sample_token.fault
def temperature_multiplied(*args: Any, temperature: float, **static: Any) -> Any:
    return sample_token.definition(*args, temperature=1 / temperature if temperature else 0.0, **static)


@sample_token.fault
def one_token_too_many(*args: Any, top_k: int | None, **static: Any) -> Any:
    return sample_token.definition(*args, top_k=top_k and top_k + 1, **static)


@sample_token.fault
def top_p_ignored(*args: Any, top_p: float, **static: Any) -> Any:
    return sample_token.definition(*args, **static)


@sample_token.fault
def min_p_of_the_whole(*args: Any, min_p: float, **static: Any) -> Any:
    """Compared with 1 and not with the likeliest token."""
    return sample_token.definition(*args, min_p=min(2 * min_p, 1.0), **static)


@sample_token.fault
def penalty_divides_every_logit(
    logits: Array, bits: Any, tokens: Any, *, repetition_penalty: float, **static: Any
) -> Any:
    if tokens is None:
        return sample_token.definition(logits, bits, tokens, repetition_penalty=repetition_penalty, **static)
    divided = jnp.where(_seen(tokens, logits.shape), logits / repetition_penalty, logits)
    return sample_token.definition(divided, bits, tokens, **static)


@sample_token.fault
def penalty_ignored(*args: Any, repetition_penalty: float, **static: Any) -> Any:
    return sample_token.definition(*args, **static)


@sample_token.fault
def padding_is_the_last_token(logits: Array, bits: Any, tokens: Any, **static: Any) -> Any:
    given = None if tokens is None else jnp.where(tokens < 0, logits.shape[-1] - 1, tokens)
    return sample_token.definition(logits, bits, given, **static)


@sample_token.fault
def last_of_equals(logits: Array, bits: Any, tokens: Any, **static: Any) -> Any:
    size = logits.shape[-1]
    given = None if tokens is None else jnp.where(tokens < 0, -1, size - 1 - tokens)
    found = sample_token.definition(logits[..., ::-1], None if bits is None else ~bits, given, **static)
    return jnp.where(found < 0, found, size - 1 - found)


@sample_token.fault
def always_the_likeliest(*args: Any, temperature: float, **static: Any) -> Any:
    return sample_token.definition(*args, temperature=0.0, **static)


@sample_token.fault
def upper_half_of_the_bits(logits: Array, bits: Any, tokens: Any, **static: Any) -> Any:
    """As after a signed shift."""
    return sample_token.definition(logits, None if bits is None else bits >> 1, tokens, **static)
