"""gather, scatter, dynamic slices, sorting and random bits on MLX against JAX on the CPU, bit for bit where exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax
from through_rules import (
    assert_same,
    assert_within,
    check_exact,
    sampled_harnesses,
    through_jax,
    through_rules,
    unit_roundoff,
)

from m2ml.errors import UnsupportedPrimitive

DTYPES = "bool int8 int16 int32 uint8 uint16 uint32 float16 bfloat16 float32 complex64".split()
MODES = ("fill", "clip", "promise_in_bounds")
FAR = np.array([0, 2, -1, -3, 4, 5, 100, -100, 2, 2])


def values(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype == "complex64":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if "float" in dtype:
        return rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, None) or dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


# gather ---------------------------------------------------------------------------------------------


def rows(x, i, mode, fill=None):
    numbers = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
    return lax.gather(x, i[:, None], numbers, (1, x.shape[1]), mode=mode, fill_value=fill)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_out_of_range_in_both_directions(dtype, mode):
    check_exact(functools.partial(rows, mode=mode), values((5, 3), dtype), FAR.astype(np.int32))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", ["int8", "int16", "int32", "uint8", "uint16", "uint32"])
def test_every_index_dtype_on_an_axis_it_cannot_span(index, mode):
    far = np.array([0, 5, 127, -1 if index.startswith("i") else 255, np.iinfo(index).max, np.iinfo(index).min])
    check_exact(functools.partial(rows, mode=mode), values((300, 2), "float32"), far.astype(index))


@pytest.mark.parametrize("mode", ["clip", "promise_in_bounds"])
@pytest.mark.parametrize("index", ["int64", "uint64"])
def test_64_bit_indices_are_clamped(index, mode, enable_x64):
    far = np.array([0, 4, 5, 2**31, 2**32, 2**32 + 1, 2**63 - 1]).astype(index)
    with enable_x64():
        for i in (far, -far if index == "int64" else far + far):
            check_exact(functools.partial(rows, mode=mode), values((5, 3), "float32"), i)


@pytest.mark.parametrize("index", ["int64", "uint64"])
def test_64_bit_indices_out_of_range_are_filled(index, enable_x64):
    """Newer versions of JAX wrap them to 32 bits first and read element 0 for 2**32; MLX does as documented."""
    x = values((5, 3), "float32")
    with enable_x64():
        check_exact(functools.partial(rows, mode="fill"), x, np.array([0, 4, 5, 2**31 - 1]).astype(index))
        (got,) = through_rules(functools.partial(rows, mode="fill"), x, np.array([4, 2**32, 2**63 - 1]).astype(index))
    assert_same([got], [np.stack([x[4], np.full(3, np.nan, np.float32), np.full(3, np.nan, np.float32)])])


def test_a_given_fill_value():
    check_exact(functools.partial(rows, mode="fill", fill=7), values((5, 3), "int32"), FAR.astype(np.int32))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, i: x[i],
        lambda x, i: x[:, i],
        lambda x, i: x[i, i],
        lambda x, i: x[i, :, i],
        lambda x, i: x[:, i[:2], i[:, None][:, :1]],
        lambda x, i: jnp.take(x, i, axis=0),
        lambda x, i: jnp.take(x, i, axis=1, mode="clip"),
        lambda x, i: jnp.take(x, i.reshape(5, 2), axis=2),
        lambda x, i: jnp.take(x, i[0]),
        lambda x, i: jnp.take_along_axis(x, i[:4, None, None], axis=1),
        lambda x, i: jnp.take_along_axis(x, jnp.broadcast_to(i[:, None, None], (10, 5, 6)), axis=0),
        lambda x, i: jax.vmap(lambda a, k: a[k])(x, i[:4]),
        lambda x, i: jax.vmap(lambda a, k: lax.dynamic_slice(a, (k, k), (2, 3)))(x, i[:4]),
        lambda x, i: jax.vmap(lambda k: lax.dynamic_slice(x, (k, 0, k), (2, 5, 3)))(i),
        lambda x, i: x[i[:0]],
        lambda x, i: x[i[3]],
        lambda x, i: x[i[3], i[4], i[5]],
        lambda x, i: x[None, 0, 0, 0].at[i[:1]].get(mode="fill", fill_value=3.0),
    ],
)
def test_gathers_that_numpy_indexing_makes(fn):
    check_exact(fn, values((4, 5, 6), "float32"), FAR.astype(np.int32))


@st.composite
def windows(draw):
    """An operand, index vectors and dimension numbers, with axes of every role in any order."""
    rank, batch = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 3), min_size=0, max_size=2))
    roles = [draw(st.sampled_from(["indexed", "indexed", "plain"] + ["paired"] * bool(batch))) for _ in range(rank)]
    while roles.count("paired") > len(batch):
        roles[roles.index("paired")] = "plain"
    free_batch = draw(st.permutations(range(len(batch))))
    paired = [d for d in range(rank) if roles[d] == "paired"]
    shape = [draw(st.integers(1, 4)) for _ in range(rank)]
    for d, axis in zip(paired, free_batch, strict=False):
        shape[d] = batch[axis]
    sizes = [1 if d in paired else draw(st.integers(1, n)) for d, n in enumerate(shape)]
    collapsed = [d for d in range(rank) if d not in paired and sizes[d] == 1 and draw(st.booleans())]
    kept = rank - len(paired) - len(collapsed)
    offsets = sorted(draw(st.permutations(range(kept + len(batch))))[:kept])
    columns = draw(st.permutations([d for d in range(rank) if roles[d] == "indexed"]))
    seed = draw(st.integers(0, 2**31))
    indices = np.random.default_rng(seed).integers(-2, 6, (*batch, len(columns))).astype(np.int32)
    batching = {"operand": tuple(paired), "indices": tuple(free_batch[: len(paired)])}
    return tuple(shape), tuple(sizes), tuple(offsets), tuple(collapsed), tuple(columns), batching, indices


@given(windows(), st.sampled_from(MODES))
def test_gather_in_full_generality(case, mode):
    shape, sizes, offsets, collapsed, columns, batching, indices = case
    numbers = lax.GatherDimensionNumbers(
        offset_dims=offsets,
        collapsed_slice_dims=collapsed,
        start_index_map=columns,
        operand_batching_dims=batching["operand"],
        start_indices_batching_dims=batching["indices"],
    )
    check_exact(lambda x, i: lax.gather(x, i, numbers, sizes, mode=mode), values(shape, "float32"), indices)


# scatter --------------------------------------------------------------------------------------------

SCATTERS = {
    "set": lax.scatter,
    "add": lax.scatter_add,
    "mul": lax.scatter_mul,
    "min": lax.scatter_min,
    "max": lax.scatter_max,
}
if hasattr(lax, "scatter_sub"):
    SCATTERS["sub"] = lax.scatter_sub


def check_scatter(kind, fn, x, i, updates):
    """Sums and products are as good as two orders of rounding allow; all else is exact."""
    got, want = through_rules(fn, x, i, updates), through_jax(fn, x, i, updates)
    if kind in ("set", "min", "max") or x.dtype.kind in "biu":
        assert_same(got, want)
        return
    add = SCATTERS["add" if kind == "sub" else kind]
    magnitude = through_jax(
        functools.partial(fn, scatter=add),
        *(np.abs(a).astype(np.float32) if a is not i else a for a in (x, i, updates)),
    )
    roundings = 2 * (updates.size + 1) * (4 if x.dtype.kind == "c" else 1)
    assert_within(got[0], want[0], roundings * unit_roundoff(x.dtype) * magnitude[0])


def scatter_rows(x, i, u, mode, scatter):
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    return scatter(x, i[:, None], u, numbers, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype)
        for kind, dtype in itertools.product(SCATTERS, DTYPES)
        if dtype not in {"add": ["bool"], "sub": ["bool"], "mul": ["bool"]}.get(kind, [])
        and (kind, dtype) not in (("min", "complex64"), ("max", "complex64"))
    ],
)
def test_rows_scattered_with_duplicates_and_out_of_range(dtype, kind, mode):
    fn = functools.partial(scatter_rows, mode=mode, scatter=SCATTERS[kind])
    check_scatter(kind, fn, values((5, 3), dtype), FAR.astype(np.int32), values((10, 3), dtype, seed=1))


@pytest.mark.parametrize("kind", SCATTERS)
@pytest.mark.parametrize("far", [[], [7], [-9], [7, -9, 8], [4, 4, 4], [9, 1, -7, 1, 30]])
def test_windows_that_all_miss_or_all_meet(kind, far):
    fn = functools.partial(scatter_rows, mode="drop", scatter=SCATTERS[kind])
    i = np.array(far, np.int32)
    check_scatter(kind, fn, values((5, 3), "float32"), i, values((len(far), 3), "float32", seed=1))


@given(windows(), st.sampled_from(["fill", "clip"]), st.sampled_from(sorted(SCATTERS)))
def test_scatter_in_full_generality(case, mode, kind):
    shape, sizes, offsets, collapsed, columns, batching, indices = case
    # XLA takes one window only when index vectors are empty.
    assume(columns)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=offsets,
        inserted_window_dims=collapsed,
        scatter_dims_to_operand_dims=columns,
        operand_batching_dims=batching["operand"],
        scatter_indices_batching_dims=batching["indices"],
    )
    kept = [n for d, n in enumerate(sizes) if d not in collapsed and d not in batching["operand"]]
    batch = list(indices.shape[:-1])
    rank = len(kept) + len(batch)
    updates = values([kept.pop(0) if a in offsets else batch.pop(0) for a in range(rank)], "float32", seed=1)

    def fn(x, i, u, scatter=SCATTERS[kind]):
        return scatter(x, i, u, numbers, mode=mode)

    check_scatter(kind, fn, values(shape, "float32"), indices, updates)


@pytest.mark.parametrize("kind", ["min", "max"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_extrema_of_nan_infinities_and_zeros(kind, dtype):
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0])
    x, u = (a.reshape(-1).astype(values((), dtype).dtype) for a in np.meshgrid(special, special))
    i = np.arange(x.size, dtype=np.int32)

    def fn(x, i, u):
        return scatter_rows(
            x[:, None], jnp.concatenate([i, i]), jnp.concatenate([u, x])[:, None], "drop", SCATTERS[kind]
        )

    check_exact(fn, x, i, u)


def test_adding_nothing_keeps_the_sign_of_zero():
    x = np.array([-0.0, -0.0], np.float32)
    check_exact(lambda x, i: x.at[i].add(1.0, mode="drop"), x, np.array([5, 7], np.int32))


def test_64_bit_integers_are_exact(enable_x64):
    with enable_x64():
        x, u = values((5, 3), "int64"), values((10, 3), "int64", seed=1)
        for kind in SCATTERS:
            fn = functools.partial(scatter_rows, mode="drop", scatter=SCATTERS[kind])
            check_exact(fn, x, FAR.astype(np.int64), u)
            check_exact(fn, x.view(np.uint64), FAR.astype(np.int64), u.view(np.uint64))


def test_the_gradient_of_picking_one_entry_per_row():
    def loss(x, i):
        return jnp.sum(jnp.take_along_axis(x, i[..., None], axis=-1) ** 2)

    check_exact(jax.grad(loss), values((2, 5, 6), "float32"), FAR.reshape(2, 5).astype(np.int32))


def test_an_update_that_is_a_function_is_refused():
    with pytest.raises(UnsupportedPrimitive, match="its update is a function"):
        through_rules(lambda x, i: x.at[i].apply(jnp.sin), values((5,), "float32"), np.array([1, 2]))


# dynamic slices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["int8", "int32", "uint8", "uint32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_slices_are_moved_inside(dtype, index):
    x, u = values((100, 4), dtype), values((3, 2), dtype, seed=1)
    for start in (0, 1, 97, 98, 127, -1, -5) if index.startswith("i") else (0, 3, 97, 98, 255):
        i = np.array(start, index)
        check_exact(lambda x, i: lax.dynamic_slice(x, (i, i), (3, 2)), x, i)
        check_exact(lambda x, i, u: lax.dynamic_update_slice(x, u, (i, i)), x, i, u)


@pytest.mark.parametrize("start", [0, 100, 127])
def test_dynamic_slices_along_an_axis_that_the_start_cannot_span(start):
    """Computed here: JAX 0.5 clamps in 8 bits, wraps and reads elsewhere."""
    x = values((300,), "float32")
    (got,) = through_rules(lambda x, i: lax.dynamic_slice(x, (i,), (3,)), x, np.int8(start))
    assert_same([got], [x[start : start + 3]])


def test_dynamic_slices_of_nothing_and_of_everything():
    x, i = values((4, 3), "float32"), np.int32(7)
    check_exact(lambda x, i: lax.dynamic_slice(x, (i, i), (0, 3)), x, i)
    check_exact(lambda x, i: lax.dynamic_slice(x, (i, i), (4, 3)), x, i)
    check_exact(lambda x, i: lax.dynamic_slice(x[0, 0], (), ()), x, i)
    check_exact(lambda x, i: lax.dynamic_update_slice(x, x[:0], (i, i)), x, i)
    check_exact(lambda x, i: lax.dynamic_update_slice(x, -x, (i, i)), x, i)


# sorting --------------------------------------------------------------------------------------------

SPECIAL = np.array([1, np.nan, -0.0, 0.0, -np.inf, np.nan, 2, np.inf, 0.0, -0.0, 2, -1, 1], np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sort_carries_along_and_keeps_the_order_of_equals(dtype):
    x = (
        SPECIAL.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        if "float" in dtype
        else values((13,), dtype)
    )
    payload = np.arange(13)
    check_exact(lambda x, p: lax.sort((x, p), num_keys=1), x, payload)
    check_exact(lambda x, p: lax.sort((p // 5, x, p), num_keys=2), x, payload)
    check_exact(lambda x, p: lax.sort(jnp.stack([x, x[::-1]]), dimension=0), x, payload)


def test_sorting_complex_numbers_by_real_then_imaginary_part():
    re, im = np.meshgrid(SPECIAL[:9], SPECIAL[:9])
    x = np.stack([re, im], axis=-1).view(np.complex64).reshape(-1)
    check_exact(lambda x, p: lax.sort((x, p), num_keys=1)[1], x, np.arange(81))


def test_sorting_64_bit_integers(enable_x64):
    with enable_x64():
        for dtype in ("int64", "uint64"):
            check_exact(lambda x: lax.sort((x, jnp.arange(9)), num_keys=1), values((9,), dtype))
            check_exact(lambda x: lax.top_k(x, 4), values((9,), dtype))


def test_sorting_nothing():
    check_exact(lambda x: lax.sort((x, x), num_keys=1), np.zeros((0,), np.float32))
    check_exact(lambda x: lax.sort(x, dimension=1), np.zeros((3, 0), np.float32))


@pytest.mark.parametrize("k", [0, 1, 4, 13])
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "complex64"])
def test_top_k_takes_the_first_of_equals(dtype, k):
    x = (
        SPECIAL.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        if "float" in dtype
        else values((13,), dtype)
    )
    check_exact(lambda x: lax.top_k(jnp.stack([x, x[::-1]]), k), x)


def test_approx_top_k_is_exact():
    x = values((4, 50), "float32")
    check_exact(lambda x: (lax.approx_max_k(x, 3), lax.approx_min_k(x, 3, reduction_dimension=0)), x)


# random bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (3, 5), (0,)])
def test_random_bits_are_those_of_jax(impl, shape):
    def bits(seed):
        key = jax.random.key(seed, impl=impl)
        return [jax.random.bits(key, shape, dtype) for dtype in (jnp.uint8, jnp.uint16, jnp.uint32)]

    check_exact(bits, np.int32(3))


@pytest.mark.parametrize("algorithm", ["RNG_DEFAULT", "RNG_THREE_FRY", "RNG_PHILOX"])
@pytest.mark.parametrize("low", [0, 2**32 - 1])
def test_the_counter_of_the_bit_generator_carries(algorithm, low, enable_x64):
    state = np.array([2**32 - 1, 2**32 - 1, low, 2**32 - 1], np.uint32)
    with enable_x64():
        for key, shape, dtype in (
            (state, (), np.uint32),
            (state, (5,), np.uint8),
            (state, (2, 3), np.uint32),
            (state, (3, 5, 3), np.uint16),
            (state, (3, 5), np.uint64),
            (state.view(np.uint64), (7,), np.uint32),
        ):
            kind = getattr(lax.RandomAlgorithm, algorithm)
            check_exact(functools.partial(lax.rng_bit_generator, shape=shape, dtype=dtype, algorithm=kind), key)


def test_permutations_and_choices_are_those_of_jax():
    def fn(seed):
        key = jax.random.key(seed)
        keys = jax.random.split(jax.random.fold_in(key, 7), 3)
        return (
            jax.random.permutation(keys[0], 9),
            jax.random.randint(keys[1], (5,), -3, 12),
            jax.random.choice(keys[2], 20, (6,), replace=False),
            jax.random.bernoulli(key, 0.3, (8,)),
        )

    check_exact(fn, np.int32(11))


@pytest.mark.parametrize("scatter", [lax.scatter_min, lax.scatter_max])
def test_complex_numbers_are_ordered_by_their_real_part_first(scatter):
    """Real parts of every kind beside imaginary ones of every kind; a NaN in the update wins."""
    parts = [np.nan, -np.inf, -1, -0.0, 0.0, 1, np.inf]
    values = np.array([complex(x, y) for x in parts for y in parts], np.complex64)
    x, updates = (a.reshape(-1) for a in np.meshgrid(values, values))
    elements = functools.partial(scatter, dimension_numbers=lax.ScatterDimensionNumbers((), (0,), (0,)))
    check_exact(elements, x, np.arange(x.size)[:, None], updates)
    finite = values[np.isfinite(values) & (values != 0)]
    check_exact(elements, finite[:8], np.arange(finite.size)[::-1, None] % 10 - 1, finite)


# JAX's own cases ------------------------------------------------------------------------------------

EXACT_GROUPS = (
    *("gather", "scatter", "scatter_min", "scatter_max", "dynamic_slice", "dynamic_update_slice", "top_k"),
    *("random_split", "random_categorical", "random_uniform", "random_randint", "rng_bit_generator", "iota_2x32_shape"),
)


@pytest.mark.parametrize("case", sampled_harnesses(*EXACT_GROUPS, per_group=12), ids=lambda c: c.fullname[:80])
def test_jax_own_cases(case):
    check_exact(case.dyn_fun, *case.dyn_args_maker(np.random.RandomState(0)))


@pytest.mark.parametrize(
    "case", sampled_harnesses("scatter_add", "scatter_mul", per_group=16), ids=lambda c: c.fullname[:80]
)
def test_jax_own_sums_and_products(case):
    args = case.dyn_args_maker(np.random.RandomState(0))
    (got,), (want,) = through_rules(case.dyn_fun, *args), through_jax(case.dyn_fun, *args)
    if want.dtype.kind in "biu":
        assert_same([got], [want])
        return
    absolute = [np.abs(a).astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in map(np.asarray, args)]
    (magnitude,) = through_jax(case.dyn_fun, *absolute)
    roundings = 2 * (np.size(args[-1]) + 1) * (4 if want.dtype.kind == "c" else 1)
    assert_within(got, want, roundings * unit_roundoff(want.dtype) * np.abs(magnitude.astype(np.complex128)))
