"""What the reference backend promises: dtypes at its edge, exact values inside, a hook after every equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from m2ml_reference.engine import ReferenceBackend
from m2ml_reference.values import narrow, round_to_dtype

from m2ml import compat
from m2ml.errors import ExecutionError, UnsupportedPrimitive
from m2ml.program import Program

BACKEND = ReferenceBackend()


def traced(function: Callable[..., Any], *args: Any) -> tuple[Program, list[np.ndarray[Any, Any]]]:
    closed, out_tree, donated = compat.trace(jax.jit(function), args, {})
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(args)]
    return Program("program", closed, jax.tree.structure((args, {})), out_tree, donated), leaves


def run(function: Callable[..., Any], *args: Any) -> list[np.ndarray[Any, Any]]:
    program, leaves = traced(function, *args)
    return list(BACKEND.compile(program)(*leaves))


def same_as_xla(function: Callable[..., Any], *args: Any) -> None:
    for got, want in zip(run(function, *args), jax.tree.leaves(jax.jit(function)(*args)), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8", "uint32", "bool", "complex64"])
def test_arrays_enter_and_leave_in_their_declared_dtype(dtype: str) -> None:
    x = np.array([0, 1, 3]).astype(jnp.dtype(dtype))
    (y,) = run(lambda x: jnp.concatenate([x, x]), x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, np.concatenate([x, x]))


def test_nothing_is_rounded_inside_a_run() -> None:
    program, leaves = traced(lambda x: (x + 1e-12) - x, np.float32(1))
    assert BACKEND.run_exact(program, leaves)[0] == pytest.approx(float(np.float32(1e-12)), rel=1e-3)
    program, leaves = traced(lambda x: jnp.exp(x) * jnp.exp(-x), np.float32(200))
    assert BACKEND.run_exact(program, leaves)[0] == pytest.approx(1, rel=1e-13)


def test_a_value_beyond_its_dtype_is_infinite_only_outside() -> None:
    program, leaves = traced(lambda x: (jnp.exp(x), jnp.isfinite(jnp.exp(x))), np.float32(200))
    exact, finite = BACKEND.run_exact(program, leaves)
    assert np.isfinite(exact)
    assert finite
    assert np.isinf(BACKEND.compile(program)(*leaves)[0])


def test_results_never_share_memory_with_arguments() -> None:
    program, (x,) = traced(lambda x: x, np.ones(3))
    (y,) = BACKEND.compile(program)(x.astype(np.float32))
    y[:] = 5
    assert x[0] == 1


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_rounding_is_to_the_nearest_value_even_at_a_tie(dtype: Any) -> None:
    every = np.arange(2 ** (8 * np.dtype(dtype).itemsize)).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):
        values = every.astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    middles = (values[1:] + values[:-1]) / 2
    for nudge, expected in ((-1, values[:-1]), (1, values[1:])):
        np.testing.assert_array_equal(round_to_dtype(np.nextafter(middles, nudge * np.inf), dtype), expected)
    bits = np.abs(round_to_dtype(middles, dtype)).astype(dtype).view(f"u{np.dtype(dtype).itemsize}")
    assert not (bits & 1).any()


def test_narrowing_rounds_once() -> None:
    just_above_a_tie = 1 + 2**-8 + 2**-40
    assert float(narrow(np.array(just_above_a_tie), ml_dtypes.bfloat16)) == 1 + 2**-7


def test_the_hook_sees_every_equation_and_its_results_are_used() -> None:
    def function(x: Any) -> Any:
        carry, _ = lax.scan(lambda c, y: (jnp.sin(c) + y, None), x[0], x)
        carry = lax.while_loop(lambda c: c < 10, lambda c: c * 3, jnp.abs(carry) + 1)
        return lax.cond(carry > 0, jnp.tanh, jnp.cos, carry)

    program, leaves = traced(function, np.ones(3, np.float32))
    seen: list[str] = []

    def note(equation: Any, inputs: Any, outputs: Any) -> Any:
        assert len(inputs) == len(equation.inputs)
        seen.append(equation.name)
        return outputs

    plain = BACKEND.run_exact(program, leaves)
    np.testing.assert_array_equal(BACKEND.run_perturbed(program, leaves, note), plain)
    np.testing.assert_array_equal(BACKEND.run_perturbed(program, leaves, None), plain)
    assert seen.count("sin") == 3
    assert seen.count("mul") >= 2
    assert seen.count("tanh") == 1
    assert not {"scan", "while", "cond"} & set(seen)

    def double_sines(equation: Any, inputs: Any, outputs: Any) -> Any:
        return [2 * y for y in outputs] if equation.name == "sin" else outputs

    program, leaves = traced(lambda x: jnp.sin(x) + 1, np.float32(0.5))
    (moved,) = BACKEND.run_perturbed(program, leaves, double_sines)
    assert moved == pytest.approx(2 * np.sin(0.5) + 1, rel=1e-15)


def test_control_flow() -> None:
    x = np.arange(6, dtype=np.int32).reshape(3, 2)
    same_as_xla(lambda x: lax.scan(lambda c, y: (c + y, c * y), x[0], x, reverse=True), x)
    same_as_xla(lambda x: lax.scan(lambda c, _: (c + 1, c), x, None, length=0), x)
    same_as_xla(lambda x: lax.fori_loop(0, 5, lambda i, c: c * 2 + i, x), x)
    same_as_xla(lambda x: lax.map(lambda y: y[0] - y[1], x), x)
    for index in (-3, 0, 1, 2, 9):
        same_as_xla(lambda i, x: lax.switch(i, [lambda x: x, lambda x: x + 1, lambda x: x * 3], x), np.int32(index), x)


def test_reductions_with_a_body_of_any_kind() -> None:
    x = np.arange(12, dtype=np.int32).reshape(3, 4)

    def fold(a: Any, b: Any) -> Any:
        return lax.cond(a % 2 == 0, lambda: a + b, lambda: a * 3 - b)

    same_as_xla(lambda x: lax.reduce(x, np.int32(1), lambda a, b: a * 2 + b, (0,)), x)
    same_as_xla(lambda x: lax.reduce(x, np.int32(0), fold, (1,)), x)
    same_as_xla(lambda x: lax.reduce_window(x, np.int32(1), lax.mul, (2, 2), (1, 2), "SAME"), x)
    same_as_xla(
        lambda x: lax.reduce((x, x), (np.int32(0), np.int32(1)), lambda a, b: (a[0] + b[0], a[1] * b[1]), (0, 1)), x
    )


def test_scatters_with_a_body() -> None:
    x = np.arange(5, dtype=np.int32)
    same_as_xla(lambda x: x.at[jnp.array([1, 1, -1, 9])].apply(lambda y: y * 3 + 1), x)


def test_callbacks_get_declared_dtypes(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def host(x: Any) -> Any:
        seen.append(np.asarray(x).dtype)
        return np.asarray(x) * 2

    x = np.arange(3).astype(ml_dtypes.bfloat16)
    (y,) = run(lambda x: jax.pure_callback(host, jax.ShapeDtypeStruct((3,), jnp.bfloat16), x), x)
    np.testing.assert_array_equal(y, x * 2)
    run(lambda x: jax.debug.callback(lambda value, *, scale: seen.append((value.dtype, scale)), x, scale=3) or x, x)
    assert seen == [x.dtype, (x.dtype, 3)]
    run(lambda x: jax.debug.print("the sum is {total}", total=x.sum()) or x, x)
    assert "the sum is 3" in capsys.readouterr().out


def test_a_missing_rule_and_a_failing_one_name_the_equation() -> None:
    program, leaves = traced(lambda x: lax.rng_uniform(x, 1.0, (2,)), np.float32(0))
    with pytest.raises(UnsupportedPrimitive, match=r"no rule for rng_uniform\(float32\[\]"):
        BACKEND.run_exact(program, leaves)

    def broken(x: Any) -> Any:
        raise ValueError("on purpose")

    program, leaves = traced(lambda x: jax.pure_callback(broken, x, x), np.float32(0))
    with pytest.raises(ExecutionError, match=r"pure_callback\(float32\[\]\).* failed: on purpose"):
        BACKEND.run_exact(program, leaves)


def test_gaps_are_what_has_no_rule() -> None:
    assert all(gap.reason for gap in BACKEND.gaps)
    assert not {gap.primitive for gap in BACKEND.gaps} & set(BACKEND.rules)


def test_random_numbers_are_jax_s() -> None:
    key = jax.random.key_data(jax.random.key(7))

    def draw(data: Any) -> Any:
        key = jax.random.wrap_key_data(data)
        bits = [jax.random.bits(key, (3, 5), dtype) for dtype in (jnp.uint8, jnp.uint16, jnp.uint32)]
        return (
            bits,
            jax.random.uniform(key, (4,)),
            jax.random.permutation(key, 20),
            jax.random.randint(key, (9,), -5, 70),
        )

    same_as_xla(draw, np.asarray(key))


def test_wide_integers_wrap(enable_x64: Any) -> None:
    with enable_x64():
        x = np.array([2**63 - 1, -(2**63), 3], np.int64)
        same_as_xla(lambda x: (x + 1, x * x, x // 7, x >> 3, lax.population_count(x)), x)
        same_as_xla(lambda x: x.astype(np.float64).astype(np.int32), x)
