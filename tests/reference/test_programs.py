"""Primitives and parameters that JAX's own cases leave out, as whole programs against XLA on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from m2ml import compat
from m2ml.equivalence import measured_bounds
from m2ml.equivalence.judgement import judge
from m2ml.program import Program

Array = np.ndarray[Any, Any]
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(4, 6)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.25)
OTHER = np.abs(GENERATOR.normal(size=(4, 6))).astype(np.float32) + np.float32(0.5)
COUNTS = np.arange(24, dtype=np.int32).reshape(4, 6)
FAR = np.array([0, -1, 3, 4, -5, 100, 2**31 - 1, -(2**31), 1, 1], np.int32)


def agrees(function: Callable[..., Any], *args: Array) -> None:
    closed, out_tree, donated = compat.trace(jax.jit(function), args, {})
    program = Program("program", closed, jax.tree.structure((args, {})), out_tree, donated)
    wants = [np.asarray(y) for y in jax.tree.leaves(jax.jit(function)(*args))]
    for want, bound in zip(wants, measured_bounds(program, args), strict=True):
        report = judge("result", want, bound)
        assert report.ok, f"{report.mismatch} {report.worst} of the bound at {report.index}: {want}, {bound.expected}"


def ragged(ragged_axis: int, contract: tuple[int, int], group_axes: tuple[int, ...]) -> Callable[..., Any]:
    def function(x: Any, y: Any, sizes: Any) -> Any:
        dims = ((contract[:1], contract[1:]), ((), ()))
        return lax.ragged_dot_general(x, y, sizes, lax.RaggedDotDimensionNumbers(dims, [ragged_axis], list(group_axes)))

    return function


@jax.custom_batching.custom_vmap
def doubled_sine(x: Any) -> Any:
    return 2 * jnp.sin(x)


@doubled_sine.def_vmap
def _(axis_size: int, batched: Any, x: Any) -> Any:
    return doubled_sine(x), True


def pooled(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 3), (1, 2), "SAME")


IMAGE = GENERATOR.integers(-128, 127, (2, 3, 5, 5)).astype(np.int8)
KERNEL = GENERATOR.integers(-128, 127, (4, 3, 2, 2)).astype(np.int8)
SIZES = np.array([1, 2], np.int32)
PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Array, ...]]] = {
    "ragged_dot": (lax.ragged_dot, (X, GENERATOR.normal(size=(2, 6, 3)).astype(np.float32), SIZES)),
    "top_k_ties": (lambda x: lax.top_k(x % 5, 4), (COUNTS,)),
    "approx_min_k": (lambda x: lax.approx_min_k(x, 3), (X,)),
    "approx_max_k_partial": (lambda x: lax.approx_max_k(x, 2, aggregate_to_topk=False)[0], (X,)),
    "cumlogsumexp_complex": (lambda x: lax.cumlogsumexp(x + 1j * x, axis=1), (X,)),
    "cumsum_reversed": (lambda x: lax.cumsum(x, axis=0, reverse=True), (X,)),
    "cumprod_reversed": (lambda x: lax.cumprod(x, axis=0, reverse=True), (X,)),
    "cummax_reversed": (lambda x: lax.cummax(x, axis=0, reverse=True), (X,)),
    "zeta": (lax.zeta, (POSITIVE + 1, OTHER)),
    "polygamma": (lambda n, x: lax.polygamma(n, x), ((COUNTS % 4).astype(np.float32), OTHER)),
    "igamma_grad": (jax.grad(lambda a, x: lax.igamma(a, x).sum()), (POSITIVE, OTHER)),
    "igammac_grad": (jax.grad(lambda a, x: lax.igammac(a, x).sum()), (POSITIVE + 3, OTHER)),
    "random_gamma_grad": (lax.random_gamma_grad, (POSITIVE, OTHER)),
    "betainc": (lambda a, b, x: lax.betainc(a, b, x), (POSITIVE, OTHER, POSITIVE / 4)),
    "nextafter_half": (lambda x: lax.nextafter(x.astype(jnp.float16), jnp.float16(9)), (X,)),
    "nextafter_bfloat16": (lambda x: lax.nextafter(x.astype(jnp.bfloat16), jnp.bfloat16(-9)), (X,)),
    "cholesky_update": (lambda r, w: lax.linalg.cholesky_update(jnp.triu(r) + 3 * jnp.eye(4), w), (X[:, :4], X[:, 5])),
    "symmetric_product": (lambda a, c: lax.linalg.symmetric_product(a, c, alpha=2.0, beta=0.5), (X, X[:, :4])),
    "pivots": (lambda p: lax.linalg.lu_pivots_to_permutation(p, 5), (np.array([[3, 1, 4], [0, 2, 2]], np.int32),)),
    "solve": (lambda x: jnp.linalg.solve(x[:, :4] + 4 * jnp.eye(4), x), (X,)),
    "pinv_det_inv": (lambda x: [jnp.linalg.pinv(x), jnp.linalg.det(x[:, :4]), jnp.linalg.inv(x[:, :4] + 5)], (X,)),
    "expm": (jax.scipy.linalg.expm, (X[:, :4],)),
    "fft2": (lambda x: jnp.fft.fft2(x + 1j * x), (X,)),
    "irfft": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x), n=6), (X,)),
    "conv_int8": (
        partial(lax.conv, window_strides=(1, 1), padding="SAME", preferred_element_type=np.int32),
        (IMAGE, KERNEL),
    ),
    "conv_transpose": (lambda x, w: lax.conv_transpose(x, w, (2,), "SAME"), (X[None], X.reshape(2, 6, 2))),
    "dot_wraps": (lambda x: x @ x.T, (COUNTS * 10**8,)),
    "dot_unsigned": (lambda x: lax.dot(x, x.T, preferred_element_type=np.uint32), (COUNTS.astype(np.uint8) * 11,)),
    "dot_bool": (lambda x: lax.dot(x > 0, (x < 1).T), (X,)),
    "max_pool_grad": (jax.grad(lambda x: (pooled(x) ** 2).sum()), (X,)),
    "max_pool_jvp": (lambda x: jax.jvp(pooled, (x,), (x,)), (X,)),
    "pool_dilated": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 1), ((1, 2), (0, 1)), (2, 1), (1, 2)),
        (X,),
    ),
    "pad": (lambda x: lax.pad(x, 7.0, ((-1, 2, 3), (2, -4, 1))), (X,)),
    "pad_away": (lambda x: lax.pad(x, 7.0, ((-3, -1, 0), (-9, 4, 2))), (X,)),
    "checkpoint": (jax.grad(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)).sum())), (X,)),
    "platform": (lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos), (X,)),
    "composite": (lambda x: lax.composite(lambda x: jnp.sin(x) * 2, "a.b")(x), (X,)),
    "linear_call": (lambda x: jax.custom_derivatives.linear_call(lambda r, y: y * 3, lambda r, y: y * 3, (), x), (X,)),
    "custom_vmap": (lambda x: doubled_sine(x), (X,)),
    "vmap_of_index": (jax.vmap(lambda row, j: row[j % 6]), (X, FAR[:4])),
    "vmap_of_scatter": (jax.vmap(lambda row, j: row.at[j % 8].add(1.0, mode="drop")), (X, FAR[:4])),
    "vmap_of_dynamic_slice": (jax.vmap(lambda row, j: lax.dynamic_slice(row, (j,), (3,))), (X, FAR[:4])),
    "dynamic_update": (lambda x, i: lax.dynamic_update_slice(x, x[:2, :2] * 9, (i[4], i[5])), (X, FAR)),
    "unsafe_rbg": (lambda s: jax.random.bits(jax.random.key(s, impl="unsafe_rbg"), (5,)), (np.int32(3),)),
    "rbg_split": (lambda s: jax.random.key_data(jax.random.split(jax.random.key(s, impl="rbg"))), (np.int32(3),)),
    "choice": (lambda s: jax.random.choice(jax.random.key(s), 9, (4,), replace=False), (np.int32(3),)),
    "jnp_percentile": (lambda x: jnp.percentile(x, 30, axis=1), (X,)),
    "searchsorted": (lambda x: jnp.searchsorted(jnp.sort(x[0]), x[1]), (X,)),
    "median": (lambda x: [jnp.median(x), jnp.unique(x % 3, size=5)], (COUNTS,)),
    "bincount": (lambda x: jnp.bincount(x.ravel() % 7, length=5), (COUNTS,)),
    "interp": (lambda x: jnp.interp(x[0], jnp.sort(x[1]), x[2]), (X,)),
    "einsum": (lambda x: jnp.einsum("ij,kj,il->kl", x, x, x), (X,)),
    "resize": (lambda x: jax.image.resize(x, (7, 9), "bicubic"), (X,)),
    "segment_sum": (lambda x, i: jax.ops.segment_sum(x, i, num_segments=3), (X, FAR[:4])),
}


#: Programs whose function became public after jax 0.5.
NEWER = frozenset({"cholesky_update", "symmetric_product"})


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n not in NEWER or hasattr(lax.linalg, n)])
def test_program(name: str) -> None:
    function, args = PROGRAMS[name]
    agrees(function, *args)


RAGGED = {
    "free": (ragged(0, (1, 1), (0,)), (4, 6), (2, 6, 3)),
    "contracted": (ragged(1, (1, 0), ()), (4, 6), (6, 3)),
    "free, groups in the middle": (ragged(0, (1, 2), (1,)), (4, 6), (3, 2, 6)),
}


@pytest.mark.skipif(not hasattr(lax, "ragged_dot_general"), reason="this JAX has only the plain ragged_dot")
@pytest.mark.parametrize("mode", RAGGED)
def test_ragged_dot_modes(mode: str) -> None:
    function, *shapes = RAGGED[mode]
    agrees(function, *(GENERATOR.normal(size=shape).astype(np.float32) for shape in shapes), SIZES)


@pytest.mark.parametrize("mode", ["clip", "drop", "fill", "promise_in_bounds"])
def test_gather_modes(mode: str) -> None:
    if mode == "drop":
        return agrees(lambda x, i: x.at[i].get(mode="fill", fill_value=-7), COUNTS, FAR)
    for dtype in (np.float32, np.int8, np.uint8, np.bool_):
        inside = FAR % 4 if mode == "promise_in_bounds" else FAR
        agrees(lambda x, i: x.at[i].get(mode=mode), COUNTS.astype(dtype), inside)
        agrees(lambda x, i: x.at[1:3, i].get(mode=mode), COUNTS.astype(dtype), inside)
    return None


@pytest.mark.parametrize("mode", ["clip", "drop", "promise_in_bounds"])
@pytest.mark.parametrize("method", ["set", "add", "multiply", "min", "max"])
def test_scatter_modes(method: str, mode: str) -> None:
    places = FAR[:-1] % 4 if mode == "promise_in_bounds" else FAR[:-1]
    values = np.arange(1, 6 * len(places) + 1, dtype=np.int32).reshape(len(places), 6)
    agrees(lambda x, i, v: getattr(x.at[i], method)(v, mode=mode), COUNTS, places, values)
    agrees(lambda x, i, v: getattr(x.at[:, i], method)(v[:4, :1], mode=mode), COUNTS, places, values)


@pytest.mark.parametrize("name", ["polynomial", "one_minus_square", "log2", "mulhi", "stack", "unstack", "tile"])
def test_newer_primitives(name: str) -> None:
    if not hasattr(lax, name):
        assert name not in jax.jit(lambda x: jnp.stack([x, x])).trace(X).jaxpr.pretty_print()
        return
    calls: dict[str, Callable[..., Any]] = {
        "polynomial": lambda x, y: lax.polynomial(x, [1.0, 2.0, y]),
        "mulhi": lambda x, y: lax.mulhi(x.astype(np.int32) * 10**8, y.astype(np.int32) * 10**9),
        "stack": lambda x, y: lax.stack([x, y], axis=1),
        "unstack": lambda x, y: lax.unstack(x, axis=1),
        "tile": lambda x, y: lax.tile(x, (2, 3)),
    }
    agrees(calls.get(name, lambda x, y: getattr(lax, name)(x)), POSITIVE, OTHER)


def test_max_pool_prefers_the_first_of_equals() -> None:
    x = np.array([[1, 1, 0, 2], [1, 0, 2, 2]], np.float32)
    agrees(jax.grad(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID").sum()), x)
