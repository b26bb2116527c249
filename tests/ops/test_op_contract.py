"""What every op promises: errors of one sentence, every transformation, and a word on what runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import m2ml
from m2ml import kernel
from m2ml.op import Op, Ops, definitions_only
from m2ml.ops import (
    adamw,
    adamw_update,
    add_rms_norm,
    attention,
    batch_norm_act,
    dequantize,
    linear_cross_entropy,
    quantize,
    quantized_matmul,
    rms_norm,
    rope,
    rope_frequencies,
)

BACKENDS = ("cpu", "mlx", "reference")


@m2ml.op(shapes="x[*b n], shift?[n] -> y[*b n], sums[*b]")
def toy(x, shift=None, /, *, power: int = 3):
    """``x**power + shift``, and the sums of its rows."""
    y = x**power + (0 if shift is None else shift)
    return y, jnp.sum(y, axis=-1)


@m2ml.op(shapes="counts[*b] -> [...]")
def of_a_tree(tree, counts, /):
    """A tree of arrays and integers in, a tree of integers and floats out."""
    return {"double": jax.tree.map(lambda x: 2 * x, tree), "more": counts + 1}


@m2ml.op(shapes="x[*b n], factor[] -> [*b n]")
def scaled(x, factor, /):
    return jnp.sin(x) * factor


@scaled.defbackward
def _(args, outputs, cotangents, /):
    x, factor = args
    return cotangents[0] * jnp.cos(x) * factor, None


X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
SHIFT = np.linspace(-1, 1, 4, dtype=np.float32)
Q, PACKED = X.reshape(1, 1, 3, 4), quantize(np.ones((2, 64), np.float32))

TRANSFORMED = {
    "jit": lambda f: jax.jit(f),
    "grad": lambda f: jax.grad(lambda x, s: jnp.sum(jnp.sin(f(x, s)))),
    "grad of both": lambda f: jax.grad(lambda x, s: jnp.sum(jnp.sin(f(x, s))), argnums=(0, 1)),
    "jvp": lambda f: lambda x, s: jax.jvp(f, (x, s), (jnp.cos(x), s)),
    "jvp of one": lambda f: lambda x, s: jax.jvp(lambda x: f(x, s), (x,), (jnp.cos(x),)),
    "linearize": lambda f: lambda x, s: jax.linearize(f, x, s)[1](x, s),
    "vmap": lambda f: jax.vmap(f, in_axes=(0, None)),
    "vmap of all": lambda f: lambda x, s: jax.vmap(f)(jnp.stack([x, -x]), jnp.stack([s, 2 * s])),
    "vmap along the end": lambda f: (
        lambda x, s: jax.vmap(f, in_axes=(1, None), out_axes=1)(x[:, None] * x[:, :1, None], s)
    ),
    "hessian": lambda f: lambda x, s: jax.hessian(lambda x: jnp.sum(jnp.sin(f(x, s))))(x[0]),
    "jacfwd": lambda f: jax.jacfwd(lambda x, s: f(x, s)[0]),
    "jacrev": lambda f: jax.jacrev(lambda x, s: f(x, s)[0]),
    "scan": lambda f: lambda x, s: jax.lax.scan(lambda c, row: (jnp.sin(c + f(row, s)), f(c, s)), s, x),
    "grad of scan": lambda f: jax.grad(
        lambda x, s: jnp.sum(jax.lax.scan(lambda c, r: (jnp.sin(c + f(r, s)), 0), s, x)[0])
    ),
    "remat": lambda f: jax.grad(lambda x, s: jnp.sum(jnp.sin(jax.checkpoint(f)(x, s)))),
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda x, s: jnp.sum(jnp.sin(f(x, s)))), in_axes=(0, None)),
    "grad of vmap": lambda f: jax.grad(lambda x, s: jnp.sum(jnp.sin(jax.vmap(f, in_axes=(0, None))(x, s)))),
    "cond": lambda f: lambda x, s: jax.lax.cond(x[0, 0] > 0, f, lambda x, s: x, x, s),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TRANSFORMED)
def test_every_transformation_is_that_of_the_body(name, backend):
    def through(function):
        return TRANSFORMED[name](lambda x, s: function(x, s, power=3)[0])

    expected = jax.jit(through(toy.definition))(X, SHIFT)
    got = m2ml.get(m2ml.jit(through(toy), backend=backend)(X, SHIFT))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), through(toy)(X, SHIFT), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_trees_integers_and_absent_arrays(backend):
    tree, counts = {"a": X, "b": (np.int32([1, 2]), None)}, np.arange(3, dtype=np.int32)
    got = m2ml.get(m2ml.jit(of_a_tree, backend=backend)(tree, counts))
    assert got["double"]["b"][1] is None
    np.testing.assert_array_equal(got["double"]["a"], 2 * X)
    np.testing.assert_array_equal(got["double"]["b"][0], [2, 4])
    np.testing.assert_array_equal(got["more"], [1, 2, 3])

    def loss(x):
        out = of_a_tree({"a": x}, counts)
        return jnp.sum(out["double"]["a"] ** 2)

    np.testing.assert_allclose(m2ml.get(m2ml.jit(jax.grad(loss), backend=backend)(X)), 8 * X, rtol=1e-6)
    mapped = m2ml.get(m2ml.jit(jax.vmap(of_a_tree, in_axes=(0, None)), backend=backend)({"a": X}, counts))
    np.testing.assert_array_equal(mapped["double"]["a"], 2 * X)
    assert mapped["more"].shape == (3, 3)


def test_an_integer_result_has_no_derivative():
    counting = m2ml.op(shapes="x[n] -> [n]")(lambda x, /: (x > 0).astype(jnp.int32))
    counted, tangent = jax.jvp(counting, (X[0],), (X[1],))
    assert counted.dtype == jnp.int32
    assert tangent.dtype == jax.dtypes.float0


def test_a_backward_of_its_own_may_leave_arguments_out():
    gradients = jax.grad(lambda x, f: jnp.sum(scaled(x, f)), argnums=(0, 1))(X, jnp.float32(2))
    np.testing.assert_allclose(gradients[0], 2 * np.cos(X), rtol=1e-6)
    assert float(gradients[1]) == 0


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (
            lambda: rms_norm(X, X[0, :2]),
            ValueError,
            r"rms_norm: n is 4 in x\[3, 4\] but 2 in weight\[2\]; shapes are x\[\*b n\]",
        ),
        (lambda: rms_norm(X[0, 0]), ValueError, r"rms_norm: x has 0 axes \[\]; it takes x\[\*b n\]"),
        (lambda: rms_norm(None), ValueError, r"rms_norm: x is missing; it takes x\[\*b n\]"),
        (lambda: rms_norm(X, X), ValueError, r"rms_norm: weight has 2 axes \[3, 4\]; it takes weight\[n\]"),
        (
            lambda: add_rms_norm(X, X[:2]),
            ValueError,
            r"add_rms_norm: b is \[3\] in x\[3, 4\] but \[2\] in residual\[2, 4\]",
        ),
        (
            lambda: rms_norm(),
            TypeError,
            r"rms_norm: missing a required .*'x'; its signature is rms_norm\(x, weight=None, /, \*, eps=",
        ),
        (
            lambda: rms_norm(X, epsilon=1),
            TypeError,
            "rms_norm: got an unexpected keyword argument 'epsilon'; its signature",
        ),
        (lambda: rms_norm(X, eps=[1]), TypeError, "rms_norm: eps is static and must be hashable; got a list"),
        (lambda: rms_norm(X, eps=-1.0), ValueError, "rms_norm: eps is -1.0; it must be at least 0"),
        (lambda: rms_norm(X, eps=float("nan")), TypeError, "rms_norm: eps is nan; it must be a number"),
        (lambda: rms_norm("x"), TypeError, "rms_norm: x holds what is no array of numbers; got 'x'"),
        (lambda: rms_norm([1.0, 2.0]), TypeError, r"rms_norm: x is a list; it takes an array x\[\*b n\]"),
        (
            lambda: attention(Q, Q, Q, window=2.5),
            TypeError,
            "attention: window is 2.5; it must be a whole number or None",
        ),
        (lambda: attention(Q, Q, Q, causal="yes"), TypeError, "attention: causal is 'yes'; it must be True or False"),
        (lambda: attention(Q, Q, Q, window=0), ValueError, "attention: window is 0; it must be at least 1 or None"),
        (
            lambda: attention(Q, Q, Q, soft_cap=0.0),
            ValueError,
            "attention: soft_cap is 0.0; it must be a positive number",
        ),
        (
            lambda: attention(Q, Q[:, :, :2], Q[:, :, :2]),
            ValueError,
            "attention: h is 3 in q, which must be a multiple of g",
        ),
        (lambda: attention(Q, Q, Q, Q[0, 0] > 0), ValueError, r"attention: mask is \[3, 4\], which does not broadcast"),
        (
            lambda: quantize(X),
            ValueError,
            r"quantize: n is 4 in w\[3, 4\]; it must be a multiple of the group size, 64",
        ),
        (lambda: quantize(X, bits=7), ValueError, "quantize: bits is 7; it must be 2, 3, 4, 5, 6 or 8"),
        (lambda: quantize(X, bits=8, mode="mxfp4"), ValueError, "quantize: bits is 8; it must be 4"),
        (lambda: quantized_matmul(X, X), TypeError, r"quantized_matmul: w is float32\[3, 4\]; it takes a Quantized"),
        (
            lambda: quantized_matmul(PACKED, PACKED),
            TypeError,
            "quantized_matmul: x is a Quantized; it takes an array of",
        ),
        (lambda: dequantize(PACKED, dtype="int8"), TypeError, "dequantize: dtype is int8; it must be one of floating"),
        (lambda: dequantize(PACKED, dtype="x"), TypeError, "dequantize: dtype is 'x', which is no dtype"),
        (
            lambda: batch_norm_act(X, X[0], X[0], train=True, momentum=3.0),
            ValueError,
            "batch_norm_act: momentum is 3.0; it must be from 0 to 1",
        ),
        (
            lambda: adamw_update(X, X, X, X, np.int32(0), np.float32(1), b1=1.5),
            ValueError,
            "adamw_update: b1 is 1.5 and b2 0.999; both must be from 0 to below 1",
        ),
        (
            lambda: adamw(1e-3, mask={"a": True}).update([X], adamw(1e-3).init([X]), [X]),
            ValueError,
            "adamw: mask has the structure PyTreeDef.*, which is no prefix of params'",
        ),
        (
            lambda: linear_cross_entropy(X, X, np.int32([0, 1, 2]), soft_cap=-1.0),
            ValueError,
            "linear_cross_entropy: soft_cap is -1.0; it must be a positive number",
        ),
        (lambda: rope_frequencies(8, 0.0), ValueError, "rope_frequencies: base is 0.0; it must be a positive number"),
        (
            lambda: rope_frequencies(8, scaling={"rope_type": "linear", "factor": "8"}),
            ValueError,
            "rope_frequencies: factor is '8'; it must be a positive number",
        ),
        (lambda: rms_norm(X.astype(int)), TypeError, "rms_norm: x is int32; it takes floating-point numbers"),
        (
            lambda: rope(X[:, None], X[0, :3] > 0, X[0, :2] > 0),
            TypeError,
            "rope: inverse_frequencies is bool; it takes float",
        ),
    ],
)
def test_errors_are_one_sentence(call, kind, said):
    with pytest.raises(kind, match=f"^{said}") as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_op_takes_arrays_by_position_and_the_rest_by_name():
    with pytest.raises(TypeError, match="op wrong: arrays are positional-only and static arguments keyword-only"):
        m2ml.op(shapes="x[n] -> [n]", name="wrong")(lambda x: x)
    with pytest.raises(ValueError, match="a shape string is written like"):
        m2ml.op(shapes="x[n]")(lambda x, /: x)
    with pytest.raises(ValueError, match=r"x\[\*a \*b\] has more than one token for any number of axes"):
        m2ml.op(shapes="x[*a *b] -> [*a]")(lambda x, /: x)


def test_names_of_ops_are_taken_once():
    known = Ops()
    known.register(toy)
    known.register(toy)
    with pytest.raises(ValueError, match="there is an op 'toy' already; choose another name"):
        known.register(Op(toy.definition, "x[n] -> [n]"))


# Kernels ------------------------------------------------------------------------------------------------


def numbers(xp):
    """A kernel of `toy` that gives the right numbers plus 1000, so that a test sees it ran."""

    def run(x, shift=None, /, *, power):
        y = x**power + (0 if shift is None else shift) + 1000
        return y, xp.sum(y, axis=-1)

    return run


def load_mlx():
    import mlx.core as mx

    return numbers(mx)


def no_compiler():
    raise OSError("there is no compiler")


LOADS = {"cpu": lambda: numbers(jnp), "mlx": load_mlx}


@pytest.fixture
def registered(monkeypatch):
    """An empty registry of kernels; gives the function that registers one of `toy`."""
    monkeypatch.setattr(kernel, "kernels", kernel.Kernels())
    jax.clear_caches()

    def add(backend, name="marked", **settings):
        settings.setdefault("load", LOADS[backend])
        kernel.kernels.register(m2ml.Kernel("toy", backend, name, **settings))

    yield add
    jax.clear_caches()


def ran_by_kernel(jitted, *args):
    y = np.asarray(m2ml.get(jitted(*args))[0])
    return bool(np.all(y > 500))


@pytest.mark.parametrize("backend", LOADS)
def test_a_kernel_runs_and_is_switched_off(registered, backend, monkeypatch):
    registered(backend, about="for a test")
    jitted = m2ml.jit(lambda x: toy(x), backend=backend)
    assert ran_by_kernel(jitted, X)
    assert "toy: kernel marked" in str(jitted.explain(X))
    off = m2ml.jit(lambda x: toy(x), backend=backend, kernels=False)
    assert not ran_by_kernel(off, X)
    assert "toy: its definition; kernels: switched off" in str(off.explain(X))
    monkeypatch.setenv("M2ML_KERNELS", "0")
    assert not ran_by_kernel(m2ml.jit(lambda x: toy(x), backend=backend), X)


@pytest.mark.parametrize("backend", LOADS)
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dtypes": ("float16",)}, "it does not take float32"),
        ({"devices": ("metal",)}, "it is for metal, not"),
        (
            {"accepts": lambda x, shift, power: "" if x.shape[0] > 100 else f"{x.shape[0]} rows are few"},
            "3 rows are few",
        ),
        ({"load": no_compiler}, "there is no compiler"),
    ],
)
def test_a_kernel_that_declines_says_why(registered, backend, settings, reason):
    registered(backend, **settings)
    jitted = m2ml.jit(lambda x: toy(x), backend=backend)
    assert not ran_by_kernel(jitted, X)
    assert f"toy: its definition; marked: {reason}" in str(jitted.explain(X))


def test_the_kernel_of_highest_priority_runs(registered):
    registered("cpu", "slow", load=no_compiler, priority=9)
    registered("cpu", "plain")
    registered("cpu", "better", priority=1)
    assert "toy: kernel better; slow: there is no compiler" in str(m2ml.jit(lambda x: toy(x), backend="cpu").explain(X))
    with pytest.raises(ValueError, match="op toy on cpu has a kernel 'plain' already; rename one"):
        registered("cpu", "plain")


@pytest.mark.parametrize("backend", LOADS)
@pytest.mark.parametrize("mapped", [lambda x: jax.vmap(toy)(x), lambda x: jax.lax.map(toy, x)], ids=["vmap", "scan"])
def test_a_kernel_runs_inside_transformations(registered, backend, mapped):
    registered(backend)
    assert ran_by_kernel(m2ml.jit(mapped, backend=backend), X[None])


def test_a_kernel_that_gives_other_types_is_named(registered):
    registered("cpu", load=lambda: lambda x, shift=None, **static: (x.astype(jnp.float16), jnp.sum(x)))
    said = r"^kernel marked of toy gives float16\[3,4\], float32\[\]; the op gives float32\[3,4\], float32\[3\]"
    with pytest.raises(TypeError, match=said):
        m2ml.jit(lambda x: toy(x), backend="cpu")(X)


@pytest.mark.parametrize("backend", LOADS)
def test_gradients_never_go_through_a_kernel(registered, backend):
    registered(backend)
    gradient = m2ml.jit(jax.grad(lambda x: jnp.sum(toy(x)[0])), backend=backend)
    np.testing.assert_allclose(m2ml.get(gradient(X)), 3 * X**2, rtol=1e-5)


def test_the_gradient_of_what_runs_by_definition_is_not_taken_by_a_kernel(registered):
    def marked(args, outputs, cotangents, *, wrt, static):
        return (jnp.full_like(args[0], 1000.0),)

    kernel.kernels.register(m2ml.Kernel("toy_backward", "cpu", "marked", lambda: marked))

    def gradient(function):
        return jax.jit(jax.grad(lambda x: jnp.sum(function(x)[0])))(X)

    np.testing.assert_array_equal(gradient(toy), np.full_like(X, 1000.0))
    np.testing.assert_allclose(gradient(definitions_only(lambda x: toy(x))), 3 * X**2, rtol=1e-5)


@pytest.mark.parametrize("backend", LOADS)
def test_a_definition_that_calls_an_op_obeys_the_same_choice(registered, backend):
    registered(backend)
    outer = m2ml.op(shapes="x[*b n] -> [*b n]", name="outer")(lambda x, /: toy(x)[0])
    assert ran_by_kernel(m2ml.jit(lambda x: (outer(x),), backend=backend), X)
    assert not ran_by_kernel(m2ml.jit(lambda x: (outer(x),), backend=backend, kernels=False), X)


def test_a_kernel_may_give_a_tree_that_has_a_shape(registered):
    """The result of `quantize` has one, and yet it is no array."""
    from m2ml.ops import quantize

    w = np.ones((2, 64), np.float32)
    kernel.kernels.register(m2ml.Kernel("quantize", "cpu", "tree", lambda: quantize.definition))
    jitted = m2ml.jit(lambda w: quantize(w, bits=4), backend="cpu")
    assert "quantize: kernel tree" in str(jitted.explain(w))
    np.testing.assert_array_equal(jitted(w).packed, quantize(w, bits=4).packed)
