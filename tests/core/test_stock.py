"""Functions of JAX and Flax that a library replaced: the stock ones stand in their places while m2ml traces."""

import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

import m2ml
from m2ml import stock
from m2ml.stock import find_replaced, report, stock_functions

#: A library that replaces functions for the whole process, as a plugin of JAX does when JAX starts.
LIBRARY = """
import jax
from flax import nnx

_gelu_kept = jax.nn.gelu
_kept_for = {}


def another_gelu(x, approximate=True):
    return fast_gelu_p.bind(x) if approximate else _gelu_kept(x, approximate=False)


def replace(layer):
    kept = layer.__call__

    def call(self, x, **more):
        return 0 * kept(self, x, **more)

    layer.__call__ = call


def impl(x):
    return _gelu_kept(x, approximate=True)
"""


@pytest.fixture
def library(monkeypatch):
    """The library, with its replacements in place; they are gone again after the test."""
    module = types.ModuleType("another_library")
    exec(LIBRARY, module.__dict__)
    module.fast_gelu_p = Primitive("another.gelu")
    module.fast_gelu_p.def_impl(module.impl)
    module.fast_gelu_p.def_abstract_eval(lambda x: x)
    mlir.register_lowering(module.fast_gelu_p, mlir.lower_fun(module.impl, multiple_results=False))
    monkeypatch.setattr(jax.nn, "gelu", module.another_gelu)
    monkeypatch.setattr(jax._src.nn.functions, "gelu", module.another_gelu)
    monkeypatch.setattr(nnx.LayerNorm, "__call__", nnx.LayerNorm.__call__)
    stock._say.cache_clear()
    module.gelu_before = module._gelu_kept
    module.replace(nnx.LayerNorm)
    assert {one.title for one in find_replaced()} == {"jax.nn.gelu", "LayerNorm.__call__"}
    return module


def use_gelu(x):
    return jax.nn.gelu(x)


def test_nothing_is_replaced_here():
    assert find_replaced() == []
    assert report([]) == ""


@pytest.mark.filterwarnings("ignore:another_library has put:UserWarning")
@pytest.mark.parametrize("backend", ["cpu", "mlx", "reference"])
def test_what_is_traced_is_jaxs_own(library, backend):
    """Under vmap and twice differentiated too, of which the replacement knows nothing."""
    x = np.linspace(-2, 2, 5, dtype="float32")
    second = m2ml.jit(jax.vmap(jax.grad(jax.grad(use_gelu)))).on(backend)
    wanted = jax.vmap(jax.grad(jax.grad(library.gelu_before)))(x)
    np.testing.assert_allclose(m2ml.get(second(x)), wanted, rtol=1e-5, atol=1e-5)
    assert "another.gelu" not in second.program(x).primitives
    assert jax.nn.gelu is library.another_gelu, "outside m2ml the library has its way"


@pytest.mark.filterwarnings("ignore:another_library has put:UserWarning")
def test_layers_of_flax_too(library):
    layer = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
    x = np.arange(8.0, dtype="float32").reshape(2, 4)
    assert not np.any(layer(x))
    rows = np.asarray(m2ml.jit(lambda layer, x: layer(x))(layer, x))
    np.testing.assert_allclose(rows.std(-1), 1, rtol=1e-4)


def test_it_is_said_once_what_was_done(library):
    with pytest.warns(UserWarning, match="another_library") as found:
        m2ml.jit(lambda x: use_gelu(m2ml.jit(use_gelu)(x))).program(1.0)
    m2ml.jit(use_gelu).program(2.0)
    assert [str(w.message) for w in found] == [
        "another_library has put functions of its own in place of jax.nn.gelu, LayerNorm.__call__; "
        "m2ml puts jax.nn.gelu, LayerNorm.__call__ back while it traces"
    ]


def test_where_warnings_are_errors_everything_is_as_it_was_afterwards(library):
    with pytest.raises(UserWarning, match="another_library has put"):
        m2ml.jit(use_gelu).program(1.0)
    assert jax.nn.gelu is library.another_gelu


@pytest.mark.filterwarnings("ignore:another_library has put:UserWarning")
def test_what_was_imported_under_its_own_name_is_put_back_as_well(library, monkeypatch):
    monkeypatch.setitem(globals(), "gelu", library.another_gelu)
    assert "another.gelu" not in m2ml.jit(lambda x: gelu(x)).program(1.0).primitives  # noqa: F821


@pytest.mark.filterwarnings("ignore:another_library has put:UserWarning")
@pytest.mark.parametrize("backend", ["cpu", "mlx", "reference"])
def test_what_slips_through_runs_by_its_own_definition(library, backend):
    """A reference under another name leaves the library's primitive in the program."""
    held = {"activation": library.another_gelu}
    run = m2ml.jit(lambda x: held["activation"](x)).on(backend)
    x = np.linspace(-2, 2, 5, dtype="float32")
    assert "another.gelu" not in run.program(x).primitives
    np.testing.assert_allclose(m2ml.get(run(x)), library.gelu_before(x), rtol=1e-5, atol=1e-6)


def test_a_primitive_that_is_not_written_in_jax_stays_what_it_is():
    odd_p = Primitive("odd")
    odd_p.def_impl(lambda x: np.asarray(x) + 1)
    odd_p.def_abstract_eval(lambda x: x)
    with pytest.raises(m2ml.UnsupportedPrimitive, match=r"there is no rule for odd\(float32\[\]\)"):
        m2ml.jit(lambda x: odd_p.bind(jnp.asarray(x)), backend="reference")(1.0)


def test_one_whose_original_is_lost_is_named(monkeypatch):
    lost = types.FunctionType((lambda x: x).__code__, {"__name__": "careless"})
    lost.__module__ = "careless"
    monkeypatch.setattr(jax.nn, "silu", lost)
    said = report(find_replaced())
    assert "careless has put functions of its own in place of jax.nn.silu" in said
    assert "jax.nn.silu cannot be put back, since the original is not kept" in said


@pytest.mark.filterwarnings("ignore:another_library has put:UserWarning")
def test_threads_and_nested_traces_leave_everything_as_it_was(library):
    inside, go_on = threading.Event(), threading.Event()

    def slow(x):
        inside.set()
        go_on.wait(30)
        return jax.nn.gelu(x)

    thread = threading.Thread(target=lambda: m2ml.jit(slow).program(1.0))
    thread.start()
    inside.wait(30)
    with stock_functions():
        assert "another.gelu" not in m2ml.jit(use_gelu).program(1.0).primitives
    assert jax.nn.gelu is library.gelu_before, "the other trace is not over yet"
    go_on.set()
    thread.join(30)
    assert jax.nn.gelu is library.another_gelu


def test_the_library_of_these_tests_breaks_transformations(library):
    """Without m2ml the replacement does harm: the tests above would fail without `m2ml.stock`."""
    assert library.fast_gelu_p not in ad.primitive_jvps
    with pytest.raises(NotImplementedError):
        jax.grad(use_gelu)(1.0)
