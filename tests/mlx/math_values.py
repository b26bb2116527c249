"""Values for the tests of rules: the special ones of each dtype, and grids whose sums are exact."""

import ml_dtypes
import numpy as np

SIGNED = ("int8", "int16", "int32")
UNSIGNED = ("uint8", "uint16", "uint32")
INTEGERS = SIGNED + UNSIGNED
FLOATS = ("float16", "bfloat16", "float32")
nan, inf = np.nan, np.inf


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def special(name):
    """Values at which an implementation goes wrong: limits, zeros, ones, halves, widths, powers of two."""
    dtype = dtype_of(name)
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        near = {info.min, info.min + 1, info.max - 1, info.max, info.bits - 1, info.bits, info.bits + 1}
        return np.array(sorted(near | {v for v in (-7, -2, -1, 0, 1, 2, 3, 7) if v >= info.min}), dtype)
    if dtype.kind == "c":
        return np.array([complex(a, b) for a in (0, 1, -2.5, 30) for b in (0, 1, -2.5)], dtype)
    info = ml_dtypes.finfo(dtype)
    edges = [0.0, 1, 0.5, 1.5, 2.5, 0.3, 0.7, 2, 3, 10, 127.5, 255.5, 32767.5, 0.49999997, 2**24 + 1, 2.0**31, 2.0**32]
    edges += [1e-3, 100.7, 88, float(info.tiny), float(info.max), inf]
    with np.errstate(over="ignore"):
        return np.array([*edges, *(-v for v in edges), nan], np.float64).astype(dtype)


def pairs(name):
    values = special(name)
    return np.repeat(values, len(values)), np.tile(values, len(values))


def grid(dtype, shape=(4, 6, 5), seed=0):
    """Small integers (all of an integer dtype's values) in ``dtype``."""
    rng, kind = np.random.default_rng(seed), dtype_of(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind in "iu":
        return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind, endpoint=True)
    x = rng.integers(-3, 4, shape).astype(np.float32)
    return (x + 1j * rng.integers(-3, 4, shape)).astype(kind) if kind.kind == "c" else x.astype(kind)


def assert_close(got, want, bound):
    """``|got - want| <= bound`` elementwise; NaN and infinities in the same places."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    got, want = got.astype(kind), want.astype(kind)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    distance = np.abs(got[finite] - want[finite])
    allowed = np.broadcast_to(bound, want.shape)[finite]
    worst = np.argmax(distance - allowed) if distance.size else 0
    assert np.all(distance <= allowed), f"{got[finite][worst]} is not {want[finite][worst]} +- {allowed[worst]}"
