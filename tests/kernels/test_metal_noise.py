"""Errors injected into functions stay within Metal's tables of accuracy, and come near them."""

import numpy as np
import pytest
from m2ml_kernels.metal_host import Output, Variant, compile_kernel, launch
from metal_cases import source_of

X = np.linspace(0.01, 0.99, 4096).astype(np.float32) * np.float32(4) ** (np.arange(4096) % 5 - 2).astype(np.float32)
SMALL = np.clip(X, 0, 1)  # where arc functions are defined


def ulp(y, dtype=np.float32):
    return np.spacing(np.abs(y).astype(dtype)).astype(np.float64)


def units(count):
    return lambda x, y: count * ulp(y)


def exponent(x, y):
    return (3 + np.floor(2 * np.abs(x))) * ulp(y)


def circle(x, y):
    return np.where(np.abs(x) <= np.pi, 2.0**-13, np.inf)


def logarithm(absolute, count):
    return lambda x, y: np.where((x >= 0.5) & (x <= 2), absolute, count * ulp(y))


# Section 8.4 of the specification, version 4.1: for each function its meaning, and what may be lost in
# metal::precise (table 8.1, in units) and in metal::fast (table 8.2).
FUNCTIONS = {
    "exp": (np.exp, 4, exponent),
    "exp2": (np.exp2, 4, exponent),
    "log": (np.log, 4, logarithm(2.0**-21, 3)),
    "log2": (np.log2, 4, logarithm(2.0**-22, 2)),
    "sin": (np.sin, 4, circle),
    "cos": (np.cos, 4, circle),
    "acos": (np.arccos, 4, units(5)),
    "asin": (np.arcsin, 4, units(5)),
    "atan": (np.arctan, 5, units(5)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 0, units(2)),
    "sqrt": (np.sqrt, 0, lambda x, y: 2.5 * 2.0**-23 * y),  # x * rsqrt(x), which is off by two units and a rounding
    "tanh": (np.tanh, 5, None),
    "tan": (np.tan, 6, None),
    "sinh": (np.sinh, 4, None),
    "acosh": (None, 4, None),
}


def left(seed, names, type_="float", space="fast"):
    lines = [
        f"y[{row * X.size} + i] = {space}::{name}({type_}({'s' if name in ('acos', 'asin') else 'x'}[i]));"
        for row, name in enumerate(names)
    ]
    source = source_of(["device const float* x", "device float* y", "device const float* s"], "\n".join(lines))
    kernel = compile_kernel(source, "f", variant=Variant(noise=seed))
    out = Output((len(names), X.size), np.dtype(np.float32))
    buffers = {0: X, 1: out, 2: SMALL}
    result = launch(kernel, buffers, grid=(X.size, 1, 1), threadgroup=(256, 1, 1))
    return dict(zip(names, result.buffers[1].astype(np.float64), strict=True))


def check(got, x, name, limit):
    exact = FUNCTIONS[name][0](x.astype(np.float64))
    lost, allowed = np.abs(got - exact), limit(x, exact)
    rounding = 2.5 * ulp(exact)  # of the C library's own function, glibc's tanh at the most, and of the sum
    assert np.all(lost <= allowed + rounding), name
    finite = np.isfinite(allowed)
    assert np.max(lost[finite] / (allowed + rounding)[finite]) > 0.5, name


@pytest.mark.parametrize("space", ["precise", "fast"])
def test_a_function_loses_as_much_as_it_may(space):
    names = [name for name, (exact, precise, fast) in FUNCTIONS.items() if exact and (space == "precise" or fast)]
    got = left(1, names, space=space)
    for name in names:
        limit = units(FUNCTIONS[name][1]) if space == "precise" else FUNCTIONS[name][2]
        x = SMALL if name in ("acos", "asin") else X
        if space == "precise" and not FUNCTIONS[name][1]:
            np.testing.assert_array_equal(got[name], FUNCTIONS[name][0](x.astype(np.float64)).astype(np.float32))
        else:
            check(got[name], x, name, limit)


def test_two_seeds_lose_differently():
    first, second = (left(seed, ["exp", "sin"]) for seed in (1, 2))
    assert all(np.mean(first[name] != second[name]) > 0.5 for name in first)


def test_what_fast_math_builds_of_others_is_built_of_them():
    """tanh by exp loses the small and overflows; tan loses what sine and cosine do."""
    with np.errstate(all="ignore"):
        got = left(1, ["tanh", "tan", "sinh"])
        grown = left(1, ["acosh"])["acosh"]
    assert np.max(np.abs(got["tanh"] / np.tanh(X.astype(np.float64)) - 1)[X < 0.01]) > 2.0**-18
    assert np.max(np.abs(got["tan"] - np.tan(X.astype(np.float64)))[X < 1]) > 2.0**-15
    assert np.max(np.abs(got["sinh"] / np.sinh(X.astype(np.float64)) - 1)[X < 0.01]) > 2.0**-18
    assert np.all(np.isnan(grown[X < 0.99]))
    text = "y[i] = fast::tanh(x[i] + 50.0); y[i + 8] = precise::tanh(x[i] + 50.0);"
    kernel = compile_kernel(
        source_of(["device const float* x", "device float* y"], text), "f", variant=Variant(noise=1)
    )
    buffers = {0: X[:8], 1: Output((2, 8), np.dtype(np.float32))}
    fast, precise = launch(kernel, buffers, grid=(8, 1, 1), threadgroup=(8, 1, 1)).buffers[1]
    assert np.all(np.isnan(fast))
    assert np.all(np.abs(precise - 1) < 2.0**-20)


def test_half_is_off_by_at_most_a_unit():
    """Table 8.3; correctly rounded functions stay so."""
    got = left(1, ["exp", "log", "sqrt", "rsqrt"], "half")
    kept = X < 8  # exp of what is larger does not fit
    x = X[kept].astype(np.float16).astype(np.float64)
    for name, values in got.items():
        exact = FUNCTIONS[name][0](x)
        values = values[kept]
        lost = np.abs(values - exact) / ulp(exact, np.float16)
        assert np.max(lost) <= (0.501 if name.endswith("sqrt") else 1.001), name
        assert np.max(lost) > (0.45 if name.endswith("sqrt") else 0.8), name
