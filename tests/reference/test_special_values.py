"""Elementwise primitives on zeros, infinities, NaN and integer extremes, as XLA's CPU defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from m2ml_reference.engine import ReferenceBackend

from m2ml import compat
from m2ml.equivalence import measured_bounds
from m2ml.equivalence.judgement import judge
from m2ml.program import Program

Array = np.ndarray[Any, Any]

_FINITE = (0, 1, 0.5, 2.5, 1.5, 3, 1e-30, 1e30, 3.4e38, 100, 20)
FLOATS = np.array([*_FINITE, *(-x for x in _FINITE), np.inf, -np.inf, np.nan], np.float32)
FLOAT_PAIRS = [x.ravel() for x in np.meshgrid(FLOATS, FLOATS)]
INTEGER_DTYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32)

UNARY = """neg sign floor ceil is_finite exp exp2 expm1 log log1p logistic tanh sin cos tan asin acos atan sinh cosh
asinh acosh atanh sqrt rsqrt cbrt square erf erfc erf_inv lgamma digamma bessel_i0e bessel_i1e abs""".split()
BINARY = "add sub mul div rem max min pow atan2 nextafter eq ne lt le gt ge".split()
INTEGER_UNARY = "neg sign population_count clz bitwise_not square".split()
INTEGER_BINARY = """add sub mul div rem max min shift_left shift_right_logical shift_right_arithmetic bitwise_and
bitwise_or bitwise_xor eq lt""".split()


def program_of(function: Callable[..., Any], *args: Array) -> Program:
    closed, out_tree, donated = compat.trace(jax.jit(function), args, {})
    return Program("special", closed, jax.tree.structure((args, {})), out_tree, donated)


def check(function: Callable[..., Any], *args: Array) -> None:
    """The reference agrees with XLA, in which elements are NaN, infinite or a negative zero, too."""
    program = program_of(function, *args)
    want = np.asarray(jax.jit(function)(*args))
    bound = measured_bounds(program, args)[0]
    report = judge("result", want, bound)
    where = [x[report.index] for x in args if x.shape == want.shape]
    assert report.ok, f"XLA gives {want[report.index]} for {where}, the reference {bound.expected[report.index]}"
    if want.dtype.kind == "f":
        zeros = (want == 0) & (bound.expected == 0)
        np.testing.assert_array_equal(np.signbit(want[zeros]), np.signbit(bound.expected[zeros]))


def test_complex_numbers_divided_by_zeros_of_either_sign() -> None:
    parts = np.float32([0.0, -0.0, 1.0, -2.0, np.inf, -np.inf, np.nan])
    x, zero = (lax.complex(*(g.ravel() for g in np.meshgrid(p, p))) for p in (parts, parts[:2]))
    check(lax.div, *(np.asarray(g).ravel() for g in np.meshgrid(x, zero)))
    check(lambda z: lax.integer_pow(z, -1), np.asarray(zero))


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    # XLA's digamma at zero was NaN up to jax 0.10 and is infinite in jax 0.12; the reference has NaN at every pole.
    check(getattr(lax, name), FLOATS[FLOATS != 0] if name == "digamma" else FLOATS)


@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    check(getattr(lax, name), *FLOAT_PAIRS)


@pytest.mark.parametrize("exponent", [-3, -1, 0, 1, 2, 3, 7])
def test_integer_power_of_floats(exponent: int) -> None:
    check(lambda x: lax.integer_pow(x, exponent), FLOATS)


def test_clamp() -> None:
    check(lambda x, low: lax.clamp(low, x, jnp.float32(1)), *FLOAT_PAIRS)


@pytest.mark.parametrize("method", list(lax.RoundingMethod))
def test_round(method: lax.RoundingMethod) -> None:
    halves = np.array([0.5, 1.5, -0.5, -1.5, -2.5, 0.49999997, -0.0, 2.5, 1e10], np.float32)
    check(lambda x: lax.round(x, method), np.concatenate([FLOATS, halves]))


@pytest.mark.parametrize("dtype", [*INTEGER_DTYPES, np.bool_])
def test_float_to_integer_saturates(dtype: type) -> None:
    edges = np.array([127.5, 128, -128.9, 255.7, 256, 2**31, -(2**31), 4e9, 2**32, -0.9, 65536], np.float32)
    check(lambda x: x.astype(dtype), np.concatenate([FLOATS, edges]))


@pytest.mark.parametrize("bits", [(5, 10), (8, 7), (4, 3), (5, 2), (8, 23), (8, 3), (11, 52), (3, 2)])
def test_reduce_precision(bits: tuple[int, int]) -> None:
    edges = [65504, 65520, 65519, 1e-8, 6e-8, 6.1e-5, 0.1, 1 / 3, 240, 248, 256, 447, 448, 2e-38, 1.2e-38, 3.39e38]
    check(lambda x: lax.reduce_precision(x, *bits), np.concatenate([FLOATS, np.array(edges, np.float32)]))


@pytest.mark.parametrize("name", "exp log tanh sin cos sqrt abs sign square expm1 logistic tan sinh cosh".split())
def test_complex(name: str) -> None:
    check(getattr(lax, name), np.array([0, 1, -1, 1j, -1j, 1 + 1j, 2 - 3j, -0.5 + 0.1j, 5 + 2j], np.complex64))


@pytest.mark.parametrize("name", ["max", "min"])
def test_complex_numbers_compare_by_real_part_first(name: str) -> None:
    numbers = np.array([0, 1, -1, np.inf, 1j * np.inf, np.nan, complex(1, np.nan), 1 + 2j, 1 - 2j], np.complex64)
    check(getattr(lax, name), *(x.ravel() for x in np.meshgrid(numbers, numbers)))


def _integers(dtype: type) -> Array:
    info = np.iinfo(dtype)
    values = np.array([0, 1, -1, 2, -2, 3, 7, 8, 31, 32, 33, 64, -128, 127, 100, -100]).astype(dtype)
    return np.concatenate([values, np.array([info.min, info.max], dtype)])


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
@pytest.mark.parametrize("name", INTEGER_UNARY)
def test_integer_unary(name: str, dtype: type) -> None:
    check(getattr(lax, name), _integers(dtype))


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_integer_binary(dtype: type) -> None:
    pairs = [x.ravel() for x in np.meshgrid(_integers(dtype), _integers(dtype))]
    check(lambda x, y: jnp.stack([getattr(lax, n)(x, y).astype(dtype) for n in INTEGER_BINARY]), *pairs)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 5])
def test_integer_power_wraps(exponent: int, dtype: type) -> None:
    check(lambda x: lax.integer_pow(x, exponent), _integers(dtype))


QUANTISED = np.array([0.3, 17.3, 449.0, 1e4, -0.0, np.nan], np.float32)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bit_floats_round_where_they_are_made(dtype: str) -> None:
    check(lambda x: x.astype(dtype).astype(np.float32), QUANTISED)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_wider_floats_stay_exact_inside_a_run(dtype: str) -> None:
    program = program_of(lambda x: x.astype(dtype).astype(np.float32), QUANTISED)
    np.testing.assert_array_equal(ReferenceBackend().run_exact(program, [QUANTISED])[0], QUANTISED.astype(np.float64))


def test_sorting_puts_nan_last_and_keeps_equal_zeros_in_order() -> None:
    negative_nan = np.copysign(np.float32(np.nan), -1)
    x = np.array([1, np.nan, np.inf, -np.inf, 0.0, -0.0, negative_nan, -0.0, 2], np.float32)
    check(lambda x: lax.sort([x, lax.iota(np.int32, len(x))], num_keys=1)[1], x)
    check(lambda x: lax.top_k(x, len(x))[1], x)
    check(lambda x: jnp.stack([jnp.argmax(x), jnp.argmin(x)]), x)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint16])
def test_reductions_of_nothing_give_their_identity(dtype: type) -> None:
    x = np.zeros((0, 3), dtype)
    check(lambda x: jnp.sum(x, axis=0), x)
    check(lambda x: jnp.prod(x, axis=0), x)
    check(lambda x: lax.reduce(x, jnp.array(7, x.dtype), lax.max, (0,)), x)
    check(lambda x: lax.reduce_window(x, jnp.array(7, x.dtype), lax.min, (1, 1), (1, 1), "VALID"), x)
