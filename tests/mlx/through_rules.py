"""Run functions through the MLX rules alone, without the engine's fallbacks, and compare with JAX on the CPU."""

import jax
import numpy as np
from m2ml_mlx.convert import from_host, to_host
from m2ml_mlx.rules import mlx_dtype, rules

from m2ml import compat
from m2ml.equivalence.jax_cases import cases, spread
from m2ml.interpreter import apply_rule, evaluate, flatten


def _apply(equation, arrays):
    outs = apply_rule(rules, equation, arrays)
    for out, aval in zip(outs, equation.outputs, strict=True):
        assert tuple(out.shape) == tuple(aval.shape), f"{equation.describe()}: shape {out.shape}, not {aval.shape}"
        assert out.dtype == mlx_dtype(aval.dtype), f"{equation.describe()}: {out.dtype}, not {aval.dtype}"
    return outs


def through_rules(fn, *args):
    """The leaves of ``fn(*args)``, every equation computed by its MLX rule."""
    jaxpr, _, _ = compat.trace(jax.jit(fn), args, {})
    code = flatten(jaxpr)
    leaves = [np.asarray(x, dtype=a.dtype) for x, a in zip(jax.tree.leaves(args), code.in_avals, strict=True)]
    return [to_host(x) for x in evaluate(code, _apply, from_host, [from_host(x) for x in leaves])]


def through_jax(fn, *args):
    return [np.asarray(x) for x in jax.tree.leaves(jax.jit(fn)(*args))]


def unit_roundoff(dtype):
    return float(jax.numpy.finfo(dtype).eps) / 2


def wide(x):
    """``x`` in double precision; integers and booleans as they are."""
    if x.dtype.kind in "biu":
        return x
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def assert_same(got, want):
    """Equal values, NaN in the same places, zeros of the same sign."""
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        np.testing.assert_array_equal(wide(g), wide(w))
        if w.dtype.kind not in "biuc":
            np.testing.assert_array_equal(np.signbit(g) & (g == 0), np.signbit(w) & (w == 0), err_msg="signs of zeros")


def assert_within(got, want, bound):
    """``|got - want| <= bound`` elementwise, and NaN and infinities in the same places."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    got, want = wide(got), wide(want)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    excess = np.abs(got - want)[finite] - np.broadcast_to(bound, want.shape)[finite]
    assert excess.size == 0 or excess.max() <= 0, f"off by {excess.max():.3g} more than the bound"


def check_exact(fn, *args):
    assert_same(through_rules(fn, *args), through_jax(fn, *args))


def sampled_harnesses(*groups, per_group):
    """A deterministic sample of JAX's own cases for these groups."""
    return [case.harness for group in groups for case in spread(cases()[group], per_group)]
