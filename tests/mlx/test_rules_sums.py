"""Reductions, contractions, convolutions, windows and shapes on MLX against JAX on the CPU.

Operands of sums are small integers, so that every sum is exact in any order and float results must be equal.
"""

import functools
import random

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest
from jax import lax
from m2ml_mlx.rules.elementwise import optimization_barrier
from math_values import FLOATS, INTEGERS, SIGNED, assert_close, dtype_of, grid, inf, nan
from through_rules import check_exact, sampled_harnesses, through_jax, through_rules
from through_rules import unit_roundoff as unit


def check_equal(fn, *args):
    """Equal values, in which zeros of either sign are equal."""
    for got, want in zip(through_rules(fn, *args), through_jax(fn, *args), strict=True):
        assert_close(got, want, 0)


# Reductions -----------------------------------------------------------------------------------------------


FUNCTIONS = {
    "sum": (lax.add, 0),
    "prod": (lax.mul, 1),
    "max": (lax.max, -inf),
    "min": (lax.min, inf),
    "and": (lax.bitwise_and, -1),
    "or": (lax.bitwise_or, 0),
    "xor": (lax.bitwise_xor, 0),
}


def reduced(x, name, axes):
    """What JAX turns into ``reduce_sum`` and its like."""
    function, identity = FUNCTIONS[name]
    if x.dtype == bool:
        identity = name in ("and", "min", "prod")
    elif x.dtype.kind in "iu":
        info = np.iinfo(x.dtype)
        identity = {-inf: info.min, inf: info.max, -1: ~x.dtype.type(0)}.get(identity, identity)
    return lax.reduce(x, x.dtype.type(identity), function, axes)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_reductions(dtype, axes):
    names = ["sum", "max", "min"] + (["prod", "and", "or", "xor"] if dtype in INTEGERS else [])
    for x in (grid(dtype), grid(dtype)[:, :0], grid(dtype)[:, 2:3]):
        check_equal(lambda x: [reduced(x, name, axes) for name in names], x)


def test_reductions_of_booleans():
    for x in (grid("bool"), grid("bool")[:, :0], np.ones((2, 3, 2), bool)):
        check_exact(lambda x: [reduced(x, n, (1,)) for n in ("and", "or", "xor", "max", "min")], x)
        if x.size:
            check_exact(lambda x: lax.argmax(x, 1, np.int32), x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_wins_and_the_first_place_counts(dtype):
    rows = [[1, nan, inf], [inf, 2, nan], [nan, nan, 1], [-inf, -inf, -inf], [-0.0, 0.0, 0.0], [3, 3, 1], [2, -1, -1]]
    x = np.array(rows).astype(dtype_of(dtype))
    check_exact(lambda x: [reduced(x, n, (a,)) for n in ("max", "min") for a in (0, 1)], x[:4])
    check_exact(lambda x: [f(x, a, np.int32) for f in (lax.argmax, lax.argmin) for a in (0, 1)], x)
    check_exact(lambda x: [f(x, a, r) for f in (lax.cummax, lax.cummin) for a in (0, 1) for r in (False, True)], x[:4])


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_running_sums(dtype):
    for x in (grid(dtype), grid(dtype)[:0], grid(dtype)[:1]):
        check_equal(lambda x: [lax.cumsum(x, a, r) for a in range(3) for r in (False, True)], x)


def test_reduce_with_a_function_of_its_own():
    def farthest(x):
        def pick(a, b):
            keep = jnp.abs(a[0]) >= jnp.abs(b[0])
            return jnp.where(keep, a[0], b[0]), jnp.where(keep, a[1], b[1])

        places = lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return lax.reduce((x, places), (jnp.float32(0), jnp.int32(-1)), pick, (1,))

    check_exact(farthest, np.array([[1, -4, 3, 2, 0], [0.5, 0.25, -8, 7, 1]], np.float32))
    check_exact(farthest, np.zeros((2, 0), np.float32))


# Contractions ----------------------------------------------------------------------------------------------


def shuffled(choice, batch, contracted, free):
    """A random layout of labelled axes: sizes, and the places of the batch and of the contracted axes."""
    labels = [(kind, i) for kind, sizes in (("b", batch), ("c", contracted), ("f", free)) for i in range(len(sizes))]
    choice.shuffle(labels)
    sizes = {"b": batch, "c": contracted, "f": free}
    places = {kind: [labels.index((kind, i)) for i in range(len(sizes[kind]))] for kind in "bc"}
    return [sizes[kind][i] for kind, i in labels], places["b"], places["c"]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "complex64", "bool"])
def test_dot_general_in_any_layout(dtype):
    choice = random.Random(dtype)
    for seed in range(8):
        batch, contracted, left, right = (
            [choice.choice([1, 2, 3, 5, 5, 0][: 5 + (seed == 0)]) for _ in range(n)]
            for n in (choice.randint(0, 2) for _ in range(4))
        )
        shape, batch_x, contract_x = shuffled(choice, batch, contracted, left)
        other, batch_y, contract_y = shuffled(choice, batch, contracted, right)
        numbers = ((contract_x, contract_y), (batch_x, batch_y))
        wide = {"int8": np.int32, "uint16": np.uint32, "bfloat16": np.float32, "float16": np.float32}.get(dtype)
        for preferred in {None, wide}:
            dot = functools.partial(lax.dot_general, dimension_numbers=numbers, preferred_element_type=preferred)
            check_equal(dot, grid(dtype, shape), grid(dtype, other, 1))


@pytest.mark.parametrize("inner", [700, 3000])
@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_long_integer_products_are_exact(dtype, inner):
    x, y = grid(dtype, (17, inner)), grid(dtype, (inner, 19), 1)
    check_exact(lax.dot, x, y)
    if dtype != "bool":
        preferred = np.int32 if dtype in SIGNED else np.uint32
        for value in (np.iinfo(dtype).min, np.iinfo(dtype).max):
            full = np.full((17, inner), value, dtype)
            check_exact(lambda x, y: lax.dot(x, y, preferred_element_type=preferred), full, full.T)


def convolution(choice):
    """A random convolution that JAX accepts, and its operands' shapes."""
    dims = choice.choice([0, 1, 1, 2, 2, 3])
    groups = choice.choice([1, 1, 2, 3]) if dims else 1  # XLA of jax 0.5 mixes up groups without spatial axes
    batches = choice.choice([1, 1, 2]) if groups == 1 else 1
    batch, features = choice.choice([1, 2]) * batches, choice.choice([1, 2]) * groups
    out = choice.choice([1, 2]) * groups * batches
    window, space = ([choice.choice(sizes) for _ in range(dims)] for sizes in ((1, 2, 3, 6), (3, 4, 6)))
    specs = [tuple(choice.sample(range(dims + 2), dims + 2)) for _ in range(3)]
    operands = ((batch, features, *space), (out, features // groups, *window))
    shapes = [
        [sizes[spec.index(axis)] for axis in range(dims + 2)] for spec, sizes in zip(specs, operands, strict=False)
    ]
    params = {
        "window_strides": [choice.choice([1, 1, 2]) for _ in range(dims)],
        "padding": [(choice.choice([-1, 0, 1, 5]), choice.choice([-1, 0, 2, 5])) for _ in range(dims)],
        "lhs_dilation": [choice.choice([1, 1, 2]) for _ in range(dims)],
        "rhs_dilation": [choice.choice([1, 1, 2]) for _ in range(dims)],
        "dimension_numbers": lax.ConvDimensionNumbers(*specs),
        "feature_group_count": groups,
        "batch_group_count": batches,
    }
    return functools.partial(lax.conv_general_dilated, **params), shapes


@pytest.mark.parametrize("dtype", [*FLOATS, "int8", "int32", "uint16", "complex64"])
def test_convolutions(dtype):
    choice = random.Random(dtype)
    for seed in range(8):
        convolve, (x, kernel) = convolution(choice)
        check_equal(convolve, grid(dtype, x, seed), grid(dtype, kernel, seed + 1))


def test_a_convolution_whose_input_is_cropped_to_one_row():
    """MLX takes the crop for contiguous and fails when it runs, unless it is made so."""
    x, w = np.full((1, 1, 1, 2, 1), 3, np.float32), np.full((1, 3, 2, 1, 1), 2, np.float32)
    numbers = lax.ConvDimensionNumbers((0, 4, 2, 3, 1), (0, 4, 1, 2, 3), (2, 0, 1, 3, 4))

    def convolve(x, w):
        padding = ((0, 2), (0, 2), (1, -1))
        return lax.conv_general_dilated(
            x, w, (1, 1, 2), padding, (1, 1, 1), (1, 3, 3), numbers, feature_group_count=1, batch_group_count=1
        )

    check_exact(convolve, x, w)


def test_gradients_of_a_convolution():
    for groups in (1, 4):
        convolve = functools.partial(
            lax.conv_general_dilated, window_strides=(2, 1), padding="SAME", feature_group_count=groups
        )
        x, kernel = grid("float32", (2, 4, 9, 8)), grid("float32", (8, 4 // groups, 3, 3), 1)
        y = grid("float32", jax.eval_shape(convolve, x, kernel).shape, 2)
        check_equal(lambda x, k, y, f=convolve: jax.vjp(f, x, k)[1](y), x, kernel, y)


# Windows ------------------------------------------------------------------------------------------------------

WINDOWS = [
    ((1, 2, 2), (1, 2, 2), "VALID", None, None),
    ((1, 3, 3), (1, 2, 2), "SAME", None, None),
    ((1, 3, 2), (1, 1, 1), ((0, 0), (2, 1), (0, 3)), None, (1, 2, 3)),
    ((2, 7, 9), (1, 1, 1), "VALID", None, None),
    ((1, 2, 2), (1, 3, 3), ((0, 0), (-1, 1), (1, -2)), (1, 2, 2), None),
    ((1, 7, 1), (1, 1, 1), ((0, 0), (6, 0), (0, 0)), None, None),
    ((1, 9, 9), (1, 1, 1), "VALID", None, None),
]


@pytest.mark.parametrize("where", WINDOWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_reductions_over_windows(dtype, where):
    window, strides, padding, base, dilation = where
    kind = dtype_of(dtype)
    low, high = (-inf, inf) if dtype not in INTEGERS else (np.iinfo(kind).min, np.iinfo(kind).max)

    def pool(x, initial, function):
        return lax.reduce_window(x, np.array(initial, kind)[()], function, window, strides, padding, base, dilation)

    x = grid(dtype, (2, 7, 9))
    check_equal(lambda x: [pool(x, v, f) for v, f in ((low, lax.max), (high, lax.min), (0, lax.add))], x)
    if dtype == "float32":
        x[0, 1, 1], x[1, 3, 3] = nan, inf
        check_equal(lambda x: [pool(x, v, f) for v, f in ((low, lax.max), (high, lax.min))], x)
        if np.prod(window) < 50:
            check_exact(lambda x: pool(x, 0, lambda a, b: jnp.abs(a) + jnp.abs(b)), np.nan_to_num(x, posinf=1))


@pytest.mark.parametrize("values", ["ties", "nan", "infinite"])
@pytest.mark.parametrize("where", [w for w in WINDOWS if w[3] is None and w[4] is None])
def test_gradient_of_max_pooling_goes_to_the_first_of_equals(where, values):
    window, strides, padding, _, _ = where
    x = np.random.default_rng(0).integers(0, 3, (2, 7, 9)).astype(np.float32)
    if values != "ties":
        x[0, 2:4, 2], x[1, :, 3:5] = (nan, nan) if values == "nan" else (-inf, -inf)

    def gradient(x):
        y, pull = jax.vjp(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding), x)
        return pull(lax.iota(jnp.float32, y.size).reshape(y.shape) + 1)[0]

    check_exact(gradient, x)


# Shapes, barriers, and JAX's own cases ------------------------------------------------------------------------


def test_a_barrier_keeps_a_repeated_computation(tmp_path):
    def repeated(x, z):
        (y, _) = optimization_barrier(None, x, z)
        return x @ x + mx.sin(y @ y)

    x = mx.ones((4, 4))
    mx.export_to_dot(str(tmp_path / "graph"), repeated(x, x + 1))
    assert (tmp_path / "graph").read_text().count("Depends") >= 1
    check_exact(lambda x: lax.optimization_barrier((x, x + 1)), np.ones(3, np.float32))


@pytest.mark.parametrize("config", [((-1, 2, 0), (1, -3, 0)), ((1, 0, 2), (0, -1, 1)), ((-4, 1, 0), (2, 2, 3))])
def test_padding_that_cuts_and_spreads(config):
    for shape in ((3, 4), (1, 4), (0, 4)):
        if all(
            (max(n - 1, 0) * (i + 1) + min(n, 1)) + low + high >= 0
            for n, (low, high, i) in zip(shape, config, strict=True)
        ):
            check_exact(lambda x: lax.pad(x, np.float32(7), config), grid("float32", shape))


EXACT_GROUPS = (
    "broadcast_in_dim reshape transpose squeeze slice pad concatenate rev iota add_any device_put reduce_max "
    "reduce_min argmax argmin reduce_window_max "
    "reduce_window_min select_and_gather_add bitcast_convert_type select_n clamp rem"
).split()
SUM_GROUPS = (
    "dot_general conv_general_dilated reduce_window_add reduce_window_mul cumsum cumprod reduce_sum reduce_prod reduce"
).split()


@pytest.mark.parametrize("case", sampled_harnesses(*EXACT_GROUPS, per_group=4), ids=lambda case: case.fullname)
def test_jax_cases_exactly(case):
    check_exact(case.dyn_fun, *case.dyn_args_maker(np.random.RandomState(0)))


@pytest.mark.parametrize("case", sampled_harnesses(*SUM_GROUPS, per_group=6), ids=lambda case: case.fullname)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_jax_cases_of_sums(case):
    """Both sides may round each of at most 100 terms once: the sum of the terms' sizes bounds the difference."""
    args = case.dyn_args_maker(np.random.RandomState(0))
    sizes = [np.abs(x).astype(x.dtype) if np.asarray(x).dtype.kind in "fcV" else x for x in map(np.asarray, args)]
    got, want, size = through_rules(case.dyn_fun, *args), *(through_jax(case.dyn_fun, *a) for a in (args, sizes))
    for g, w, s in zip(got, want, size, strict=True):
        u = 0.0 if w.dtype.kind in "biu" else unit(w.dtype)
        assert_close(g, w, 100 * u * np.abs(s.astype(np.complex128)))
